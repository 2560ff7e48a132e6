"""Limits of one file: DecodeError and the bounds of its length."""

MAX_CHANNELS = 1024  # libsndfile's own limit
MAX_SAMPLES_PER_SECOND = 8 * 192_000  # of all channels; with `max_seconds`, bounds decompression bombs
MIN_SAMPLES = 2  # fewer are rejected
BLOCK_SAMPLES = 1 << 18  # of all channels, in memory at once: 1 MB
LENGTH_TOLERANCE_SECONDS = 0.05  # decoded against declared length: 5 s of WMA are 34 ms short


class DecodeError(Exception):
    """A file cannot be used: `reason` is short and stable, for counting; `detail` explains it."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason} ({self.detail})" if self.detail else self.reason


def check_bound(num_frames: int, sample_rate: int, channels: int, max_seconds: float) -> None:
    """DecodeError if a declared or decoded length exceeds the limits."""
    if num_frames > max_seconds * sample_rate:
        raise DecodeError("too long", f"more than {max_seconds:g} s")
    if num_frames * channels > max_seconds * MAX_SAMPLES_PER_SECOND:
        raise DecodeError("too long", f"{channels} channels at {sample_rate} Hz exceed the size of {max_seconds:g} s")


def check_length(decoded: int, declared: float, sample_rate: int, slack: int) -> None:
    """Compare decoded and declared length in samples; `slack`: what the format may lose at its ends."""
    if abs(decoded - declared) > LENGTH_TOLERANCE_SECONDS * sample_rate + slack:
        reason = "truncated" if decoded < declared else "corrupt"
        raise DecodeError(reason, f"{decoded / sample_rate:.3f} s of sound, {declared / sample_rate:.3f} s declared")
