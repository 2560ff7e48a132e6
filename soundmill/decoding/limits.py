"""Limits of one file: the error that refuses it, and the bounds of its length."""

from __future__ import annotations

MAX_CHANNELS = 1024  # libsndfile's own limit
MAX_SAMPLES_PER_SECOND = 8 * 192_000  # of all channels: with `max_seconds`, what a bomb may expand to
MIN_SAMPLES = 2  # one sample is no sound
BLOCK_SAMPLES = 1 << 18  # of all channels together, held at once: some seconds, a megabyte
LENGTH_TOLERANCE_SECONDS = 0.05  # decoded against declared: WMA of 5 s comes 34 ms short


class DecodeError(Exception):
    """One file cannot become clips: `reason` is short and stable (it is counted), `detail` says more to a person."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason} ({self.detail})" if self.detail else self.reason


def check_bound(num_frames: int, sample_rate: int, channels: int, max_seconds: float) -> None:
    """Raise for sound beyond what one file may give, declared or decoded."""
    if num_frames > max_seconds * sample_rate:
        raise DecodeError("too long", f"more than {max_seconds:g} s")
    if num_frames * channels > max_seconds * MAX_SAMPLES_PER_SECOND:
        raise DecodeError("too long", f"{channels} channels at {sample_rate} Hz expand beyond what {max_seconds:g} s may")


def check_length(decoded: int, declared: float, sample_rate: int, slack: int) -> None:
    """Hold the decoder to the length in the header, both in samples; `slack` is what the format may lose at its ends."""
    if abs(decoded - declared) > LENGTH_TOLERANCE_SECONDS * sample_rate + slack:
        reason = "truncated" if decoded < declared else "corrupt"
        raise DecodeError(reason, f"{decoded / sample_rate:.3f} s of sound, {declared / sample_rate:.3f} s declared")
