"""Log-mel spectrograms under a named, complete description (`MelSpec`), and the shards that store them."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from soundmill.audio import fourier
from soundmill.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa
    from scipy.sparse import csr_array

SPEC_KEY = b"mel_spec"  # in the schema metadata of every spectrogram shard
FRAMES_AT_ONCE = 128  # transformed together: they stay in the processor's cache


class MelSpec(BaseModel):
    """Everything a log-mel spectrogram depends on; two equal specs give equal spectrograms.

    `norm: slaney` gives every band unit area per Hz (librosa's and TANGO's mels), `none` unit peak (HTK's, VGGish's).
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    sample_rate: int = Field(ge=100, le=768_000)
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
    peak: float | None = Field(gt=0, description="a wave's mean is subtracted and its peak brought here first; null: as it is")

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
def mel_filterbank(spec: MelSpec) -> np.ndarray:
    """Triangular filters float32 [n_fft // 2 + 1, n_mels]; a band so narrow that no FFT bin falls into it is a UserError."""
    to_mel, to_hertz = SCALES[spec.mel_scale]
    edges = to_hertz(np.linspace(to_mel(spec.f_min), to_mel(spec.f_max), spec.n_mels + 2))
    bins = np.linspace(0, spec.sample_rate / 2, spec.n_fft // 2 + 1)[:, None]
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    bank = np.maximum(0, np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)))
    empty = int((bank.max(axis=0) <= 0).sum())
    if empty:
        raise UserError(
            f"mel spec: {empty} of {spec.n_mels} bands hold no FFT bin, their rows would be constant; "
            f"raise n_fft (now {spec.n_fft}), raise f_min or lower n_mels"
        )
    if spec.norm == "slaney":
        bank *= 2 / (high - low)
    bank = bank.astype(np.float32)
    bank.flags.writeable = False  # every caller gets the same one
    return bank


def _htk_mel(hertz: float) -> float:
    return 2595 * math.log10(1 + hertz / 700)


def _htk_hertz(mel: np.ndarray) -> np.ndarray:
    return 700 * (10 ** (mel / 2595) - 1)


def _slaney_mel(hertz: float) -> float:
    return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)


def _slaney_hertz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((mel - 15) / 27))


SCALES = {"htk": (_htk_mel, _htk_hertz), "slaney": (_slaney_mel, _slaney_hertz)}  # Young et al. 2002; Slaney 1998


def spectra(wave: np.ndarray, spec: MelSpec) -> Iterator[np.ndarray]:
    """|STFT|^power of a wave [T], frame after frame: float32 [some frames, n_fft // 2 + 1].

    Centred, reflected at the ends, periodic Hann window: torch.stft's and librosa's convention.
    """
    count = num_frames(spec, len(wave))
    # Reflection needs more samples than it mirrors; a shorter clip is followed by silence.
    short = max(0, spec.n_fft // 2 + 1 - len(wave))
    wave = np.pad(np.asarray(wave, np.float32), (0, short)) if short else np.asarray(wave, np.float32)
    mirrored = np.pad(wave, spec.n_fft // 2, mode="reflect")
    lead = (spec.n_fft - spec.win_length) // 2  # the window stands in the middle of a frame; where does not change a magnitude
    frames = np.lib.stride_tricks.sliding_window_view(mirrored[lead:], spec.win_length)[:: spec.hop_length][:count]
    window = np.hanning(spec.win_length + 1)[:-1].astype(np.float32)
    padded = np.zeros((FRAMES_AT_ONCE, spec.n_fft), np.float32)
    transform = np.empty((FRAMES_AT_ONCE, spec.n_fft // 2 + 1), np.complex64)
    for start in range(0, count, FRAMES_AT_ONCE):
        some = frames[start : start + FRAMES_AT_ONCE]
        np.multiply(some, window, out=padded[: len(some), : spec.win_length])
        found = fourier.rfft(padded[: len(some)], transform[: len(some)])
        power = found.real**2 + found.imag**2
        yield np.sqrt(power) if spec.power == 1.0 else power


def log_mel(waves: np.ndarray, spec: MelSpec) -> np.ndarray:
    """Natural logarithm of the mel spectrogram, not below ln(floor): waves [..., T] → float32 [..., n_mels, frames]."""
    bank = _sparse_filterbank(spec)
    *batch, num_samples = waves.shape
    found = np.empty((math.prod(batch), spec.n_mels, num_frames(spec, num_samples)), np.float32)
    for bands, wave in zip(found, waves.reshape(len(found), num_samples), strict=True):
        start = 0
        for block in spectra(levelled(wave, spec), spec):
            bands[:, start : start + len(block)] = bank @ block.T
            start += len(block)
    np.maximum(found, np.float32(spec.floor), out=found)
    return np.log(found, out=found).reshape(*batch, *found.shape[1:])


def levelled(wave: np.ndarray, spec: MelSpec) -> np.ndarray:
    """The wave [T] as the spec wants it before it is transformed; one that never moves stays at zero."""
    if spec.peak is None:
        return wave
    centred = wave - np.float32(wave.mean(dtype=np.float64))
    return centred * np.float32(spec.peak / max(float(np.abs(centred).max()), 1e-8))


@functools.lru_cache(maxsize=16)
def _sparse_filterbank(spec: MelSpec) -> csr_array:
    """Of the filters' values two in each row are not zero; summed in one order on every machine, which BLAS does not promise."""
    from scipy.sparse import csr_array

    return csr_array(mel_filterbank(spec).T)


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
        with pq.ParquetFile(path, pre_buffer=False) as file:  # as shards.open_parquet
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
