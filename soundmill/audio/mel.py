"""Log-mel spectrograms under a named, complete description (`MelSpec`), and the shards that store them."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from soundmill.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

SPEC_KEY = b"mel_spec"  # in the schema metadata of every spectrogram shard


class MelSpec(BaseModel):
    """Everything a log-mel spectrogram depends on; two equal specs give equal spectrograms.

    `norm: slaney` gives every band unit area per Hz (librosa's and TANGO's mels), `none` unit peak (HTK's, VGGish's).
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    sample_rate: int = Field(ge=1000, le=768_000)
    n_fft: int = Field(ge=16, le=262_144)
    win_length: int = Field(ge=16)
    hop_length: int = Field(ge=1)
    n_mels: int = Field(ge=1, le=4096)
    f_min: float = Field(ge=0)
    f_max: float = Field(gt=0)
    mel_scale: Literal["htk", "slaney"]
    norm: Literal["slaney", "none"]
    power: float = Field(description="1: magnitude, 2: power")
    floor: float = Field(gt=0, description="smallest mel value before the logarithm")

    @model_validator(mode="after")
    def _consistent(self) -> MelSpec:
        if self.power not in (1.0, 2.0):
            raise ValueError(f"power must be 1 (magnitude) or 2 (power), not {self.power}")
        if self.win_length > self.n_fft:
            raise ValueError(f"win_length {self.win_length} must not exceed n_fft {self.n_fft}")
        if not self.f_min < self.f_max <= self.sample_rate / 2:
            raise ValueError(f"need f_min {self.f_min} < f_max {self.f_max} <= sample_rate / 2 = {self.sample_rate / 2}")
        return self


def num_frames(spec: MelSpec, num_samples: int) -> int:
    """Frames of a centred STFT: one at sample 0 and one every hop."""
    return 1 + num_samples // spec.hop_length


@functools.lru_cache(maxsize=16)
def mel_filterbank(spec: MelSpec) -> Tensor:
    """Triangular filters [n_fft // 2 + 1, n_mels]; a band so narrow that no FFT bin falls into it is a UserError."""
    import torchaudio.functional as F

    n_freqs = spec.n_fft // 2 + 1
    norm = "slaney" if spec.norm == "slaney" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of empty bands: an error below
        bank = F.melscale_fbanks(n_freqs, spec.f_min, spec.f_max, spec.n_mels, spec.sample_rate, norm, spec.mel_scale)
    empty = int((bank.amax(0) <= 0).sum())
    if empty:
        raise UserError(
            f"mel spec: {empty} of {spec.n_mels} bands hold no FFT bin, their rows would be constant; "
            f"raise n_fft (now {spec.n_fft}), raise f_min or lower n_mels"
        )
    return bank


def spectrogram(wave: Tensor, spec: MelSpec) -> Tensor:
    """|STFT|^power [B, n_fft // 2 + 1, frames] of waves [B, T]: centred, reflected at the ends, periodic Hann window."""
    import torch

    num_samples = wave.shape[-1]
    # Reflection needs more samples than it mirrors; a shorter clip is followed by silence.
    short = spec.n_fft // 2 + 1 - num_samples
    if short > 0:
        wave = torch.nn.functional.pad(wave, (0, short))
    window = torch.hann_window(spec.win_length, dtype=wave.dtype, device=wave.device)
    transform = torch.stft(wave, spec.n_fft, spec.hop_length, spec.win_length, window, center=True, return_complex=True)
    magnitude = transform[..., : num_frames(spec, num_samples)].abs()
    return magnitude if spec.power == 1.0 else magnitude.square()


def log_mel(wave: Tensor, spec: MelSpec) -> Tensor:
    """Natural logarithm of the mel spectrogram, not below ln(floor): waves [B, T] → [B, n_mels, frames]."""
    bank = mel_filterbank(spec).to(wave)
    return (bank.T @ spectrogram(wave, spec)).clamp_min(spec.floor).log()


def read_spec(directory: Path) -> MelSpec:
    """The spec that the shards below `directory` were made with; shards that disagree are a UserError."""
    import pyarrow.parquet as pq

    found: MelSpec | None = None
    for path in _shard_paths(directory):
        text = (pq.read_schema(path).metadata or {}).get(SPEC_KEY)
        if text is None:
            raise UserError(f"{path}: not a spectrogram shard (no {SPEC_KEY.decode()} in its metadata); remake it: `dvc repro`")
        try:
            spec = MelSpec.model_validate_json(text)
        except ValidationError as error:
            raise UserError(f"{path}: its mel spec is not readable ({error.errors()[0]['msg']}); remake it: `dvc repro`") from None
        if found not in (None, spec):
            raise UserError(f"{path}: made with another mel spec than its neighbours; remake {directory}: `dvc repro`")
        found = spec
    assert found is not None  # _shard_paths gives at least one
    return found


def iterate_index(directory: Path) -> Iterator[dict[str, Any]]:
    """`clip_id`, `num_mels`, `num_frames` and `digest` of every row below `directory`, in the order of `iterate_log_mels`."""
    for path in _shard_paths(directory):
        for table in _row_groups(path, ["clip_id", "num_mels", "num_frames", "digest"]):
            yield from table.to_pylist()


def iterate_log_mels(directory: Path) -> Iterator[tuple[str, np.ndarray]]:
    """(clip id, log-mel float16 [n_mels, frames]) of every row below `directory`, shard by shard in bounded memory."""
    for path in _shard_paths(directory):
        for table in _row_groups(path, ["clip_id", "log_mel", "num_mels", "num_frames"]):
            for row in table.to_pylist():
                size = row["num_mels"], row["num_frames"]
                values = np.frombuffer(row["log_mel"], dtype="<f2")
                if len(values) != size[0] * size[1]:
                    raise UserError(f"{path}: the spectrogram of clip {row['clip_id']!r} is not {size}; remake it: `dvc repro`")
                yield row["clip_id"], values.reshape(size)


def _row_groups(path: Path, columns: list[str]) -> Iterator[pa.Table]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group, columns=columns)
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read ({reason}); remake it: `dvc repro`") from None


def _shard_paths(directory: Path) -> list[Path]:
    paths = sorted(directory.rglob("*.parquet"))
    if not paths:
        raise UserError(f"{directory}: no spectrogram shards (*.parquet) here; make them: `dvc repro`")
    return paths
