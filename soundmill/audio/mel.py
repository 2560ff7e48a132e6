"""Log-mel spectrograms and their complete description (`MelSpec`)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from soundmill.audio.pieces import pieces
from soundmill.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from torchaudio.transforms import MelSpectrogram

FRAMES_AT_ONCE = 4096  # for waves in blocks


class MelSpec(BaseModel):
    """Everything that a log-mel spectrogram depends on; equal specs give equal spectrograms.

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
    peak: float | None = Field(gt=0, description="first subtract the wave's mean and scale its peak to this; null: do not")

    @model_validator(mode="after")
    def _consistent(self) -> MelSpec:
        if self.power not in (1.0, 2.0):
            raise ValueError(f"power must be 1 (magnitude) or 2 (power), not {self.power}")
        if self.win_length > self.n_fft:
            raise ValueError(f"win_length {self.win_length} must not exceed n_fft {self.n_fft}")
        if not self.f_min < self.f_max <= self.sample_rate / 2:
            raise ValueError(f"need f_min {self.f_min} < f_max {self.f_max} <= sample_rate / 2 = {self.sample_rate / 2}")
        return self


class SpectrogramParams(MelSpec):
    """A mel spec in params.yaml, with the variant of clips that it is used for."""

    clips: str = Field(min_length=1)

    @property
    def spec(self) -> MelSpec:
        return MelSpec(**self.model_dump(exclude={"clips"}))


def picture_spec(
    sample_rate: int, n_fft: int, win_length: int, hop_length: int, n_mels: int, f_min: float, norm: Literal["slaney", "none"]
) -> MelSpec:
    """A spec of power spectrograms up to half the sample rate, on the slaney mel scale."""
    return MelSpec(
        sample_rate=sample_rate,
        n_fft=n_fft,
        win_length=win_length,
        hop_length=hop_length,
        n_mels=n_mels,
        f_min=f_min,
        f_max=sample_rate / 2,
        mel_scale="slaney",
        norm=norm,
        power=2.0,
        floor=1e-10,
        peak=None,
    )


def num_frames(spec: MelSpec, num_samples: int) -> int:
    """Frames of a centred STFT: one at sample 0 and one every hop."""
    return 1 + num_samples // spec.hop_length


def check_bands(spec: MelSpec) -> None:
    """UserError if a band contains no FFT bin; without torch, so that parameters are checked in milliseconds."""
    bins = np.linspace(0, spec.sample_rate // 2, spec.n_fft // 2 + 1)  # Hz, as torchaudio has them
    edges = _band_edges(spec)
    margin = 1e-5 * bins[1]  # so near to an edge, the float32 filters are rounding errors
    inside = np.searchsorted(bins, edges[2:] - margin) - np.searchsorted(bins, edges[:-2] + margin)
    empty = int((inside <= 0).sum())
    if empty:
        what = f"{empty} of {spec.n_mels} bands contain no FFT bin, so their rows would be constant"
        raise UserError(f"mel spec: {what}; raise n_fft (now {spec.n_fft}), raise f_min or lower n_mels")


def check_sample_rate(spec: MelSpec, rate: int, clips: str) -> None:
    """UserError if a spec is not for the sample rate of `clips`."""
    if spec.sample_rate != rate:
        raise UserError(f"mel spec: sample_rate is {spec.sample_rate}, but {clips} has {rate}; make them agree")


def check_overlap(spec: MelSpec) -> None:
    """UserError if the windows of a spec overlap too little for Griffin-Lim."""
    if spec.hop_length > spec.win_length // 2:
        most = f"at most half of win_length {spec.win_length} to get sound back"
        raise UserError(f"mel spec: hop_length {spec.hop_length} must be {most}")


def _band_edges(spec: MelSpec) -> np.ndarray:
    """Hz [n_mels + 2], equally spaced in mels; band m lies between edges m and m + 2."""
    if spec.mel_scale == "htk":
        low, high = (math.log1p(hertz / 700) for hertz in (spec.f_min, spec.f_max))
        return 700 * np.expm1(np.linspace(low, high, spec.n_mels + 2))
    # slaney: linear below 1 kHz, with 15 mels, and logarithmic above, with 27 per factor of 6.4.
    step = math.log(6.4) / 27
    low, high = (15 * hertz / 1000 if hertz < 1000 else 15 + math.log(hertz / 1000) / step for hertz in (spec.f_min, spec.f_max))
    mels = np.linspace(low, high, spec.n_mels + 2)
    return np.where(mels < 15, mels * 1000 / 15, 1000 * np.exp(step * (mels - 15)))


def mel_spectrogram(spec: MelSpec) -> MelSpectrogram:
    """torchaudio's differentiable transform: waves [..., T] → |STFT|^power in mel bands [..., n_mels, frames].

    Centred, reflected at the ends, periodic Hann window. UserError if a band contains no FFT bin.
    """
    import torchaudio

    check_bands(spec)
    return torchaudio.transforms.MelSpectrogram(
        sample_rate=spec.sample_rate,
        n_fft=spec.n_fft,
        win_length=spec.win_length,
        hop_length=spec.hop_length,
        f_min=spec.f_min,
        f_max=spec.f_max,
        n_mels=spec.n_mels,
        power=spec.power,
        norm=None if spec.norm == "none" else spec.norm,
        mel_scale=spec.mel_scale,
    )


_on_cpu = functools.lru_cache(maxsize=16)(mel_spectrogram)


def mel_filterbank(spec: MelSpec) -> Tensor:
    """Triangular filters [n_fft // 2 + 1, n_mels] on the CPU, cached."""
    return _on_cpu(spec).mel_scale.fb


def of_unit_peak(log_mels: Tensor, spec: MelSpec) -> Tensor:
    """Convert log-mels [..., n_mels, frames] of `spec` to bands of unit peak (`norm: none`)."""
    if spec.norm == "none":
        return log_mels
    gain = mel_filterbank(spec).sum(0) / mel_filterbank(spec.model_copy(update={"norm": "none"})).sum(0)
    return log_mels - gain.log().to(log_mels)[:, None]


def log_mel(waves: np.ndarray, spec: MelSpec) -> np.ndarray:
    """ln of the mel spectrogram, at least ln(floor): waves [..., T], one by one, → float32 [..., n_mels, frames]."""
    import torch

    *batch, num_samples = waves.shape
    transform, frames = _on_cpu(spec), num_frames(spec, num_samples)
    # Reflection needs a minimum length; shorter clips are zero-padded.
    missing = max(0, spec.n_fft // 2 + 1 - num_samples)
    log_mels = np.empty((math.prod(batch), spec.n_mels, frames), np.float32)
    with torch.inference_mode():
        for row, wave in zip(log_mels, waves.reshape(len(log_mels), num_samples), strict=True):
            samples = torch.tensor(np.pad(levelled(wave, spec), (0, missing)), dtype=torch.float32)
            row[:] = transform(samples)[:, :frames].clamp_min(spec.floor).log().numpy()
    return log_mels.reshape(*batch, *log_mels.shape[1:])


def log_mel_of_blocks(blocks: Callable[[], Iterable[np.ndarray]], spec: MelSpec) -> tuple[np.ndarray, int]:
    """`log_mel` [n_mels, frames] of one wave in blocks [n] (each call of `blocks` restarts it), and its number of samples."""
    import torch

    num_samples, total, low, high = 0, 0.0, np.inf, -np.inf
    for block in blocks():
        if len(block):
            num_samples, total = num_samples + len(block), total + float(block.sum(dtype=np.float64))
            low, high = min(low, float(block.min())), max(high, float(block.max()))
    if not num_samples:
        return log_mel(np.zeros(0, np.float32), spec), 0
    mean = np.float32(total / num_samples)
    scale = np.float32(spec.peak / max(high - mean, mean - low, 1e-8)) if spec.peak is not None else None
    missing, hop = max(0, spec.n_fft // 2 + 1 - num_samples), spec.hop_length
    around = -(-(spec.n_fft // 2 + 1) // hop) * hop
    transform, parts, frames = _on_cpu(spec), [np.zeros((spec.n_mels, 0), np.float32)], num_frames(spec, num_samples)
    with torch.inference_mode():
        for piece in pieces((torch.from_numpy(block) for block in blocks()), FRAMES_AT_ONCE * hop, around):
            samples = piece.values if scale is None else (piece.values - mean) * scale
            samples = torch.nn.functional.pad(samples, (0, missing))
            is_last = len(piece.values) == piece.before + piece.count
            count = frames - piece.start // hop if is_last else FRAMES_AT_ONCE
            log_mels = transform(samples)[:, piece.before // hop :][:, :count]
            parts.append(log_mels.clamp_min(spec.floor).log().numpy())
    return np.concatenate(parts, 1), num_samples


def levelled(wave: np.ndarray, spec: MelSpec) -> np.ndarray:
    """The wave [T] with mean and peak as in the spec; a constant wave becomes zero."""
    if spec.peak is None:
        return wave
    return (wave - np.float32(wave.mean(dtype=np.float64))) * np.float32(gain_of(wave, spec))


def gain_of(wave: np.ndarray, spec: MelSpec) -> float:
    """What `levelled` multiplies a wave by, after its mean is subtracted."""
    if spec.peak is None:
        return 1.0
    return spec.peak / max(float(np.abs(wave - np.float32(wave.mean(dtype=np.float64))).max()), 1e-8)
