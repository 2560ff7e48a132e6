"""The resampler: soxr HQ (aliases at -83 dB, ffmpeg's default at -15 dB), streaming, exact lengths."""

from collections.abc import Iterable, Iterator

import numpy as np
import soxr

QUALITY = "HQ"
BLOCK_SAMPLES = 1 << 18  # of input or output, whichever is larger


def resampled_length(num_samples: int, rate_in: int, rate_out: int) -> int:
    """Samples at `rate_out` of `num_samples` at `rate_in`, rounded half up."""
    return (2 * num_samples * rate_out + rate_in) // (2 * rate_in)


def resample_blocks(blocks: Iterable[np.ndarray], rate_in: int, rate_out: int, channels: int = 1) -> Iterator[np.ndarray]:
    """Resample float32 blocks, [n] or [n, channels], to `resampled_length` samples in all, however cut, in bounded memory."""
    if rate_in == rate_out:
        for block in blocks:
            yield np.asarray(block, dtype=np.float32)
        return
    stream = soxr.ResampleStream(rate_in, rate_out, channels, dtype="float32", quality=QUALITY)
    most = max(1, min(BLOCK_SAMPLES, BLOCK_SAMPLES * rate_in // rate_out))
    taken = given = 0
    for block in blocks:
        for start in range(0, len(block), most):
            part = np.ascontiguousarray(block[start : start + most], dtype=np.float32)
            taken += len(part)
            resampled = stream.resample_chunk(part)
            given += len(resampled)
            yield resampled
    left = resampled_length(taken, rate_in, rate_out) - given
    tail = np.zeros(left if channels == 1 else (left, channels), dtype=np.float32)
    if taken:
        rest = stream.resample_chunk(tail[:0], last=True)[:left]
        tail[: len(rest)] = rest
    yield tail


def resample(wave: np.ndarray, rate_in: int, rate_out: int) -> np.ndarray:
    """Resample one wave float32, [T] or [C, T], to `resampled_length(T)` samples."""
    if wave.ndim == 2:
        return np.stack([resample(channel, rate_in, rate_out) for channel in wave])
    return np.concatenate([*resample_blocks([wave], rate_in, rate_out)])
