"""A mel spec for tests, and others like it."""

from typing import Any

from soundmill.audio.mel import MelSpec

SIZES = {"sample_rate": 16_000, "n_fft": 1024, "win_length": 1024, "hop_length": 160, "n_mels": 64}
TANGO = MelSpec(**SIZES, f_min=0.0, f_max=8000.0, mel_scale="slaney", norm="slaney", power=1.0, floor=1e-5, peak=None)


def spec_with(**changes: Any) -> MelSpec:
    """TANGO's with these changes."""
    return TANGO.model_copy(update=changes)
