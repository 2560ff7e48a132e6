"""Seamless loops."""

import numpy as np


def closed(waves: np.ndarray, start: int, num_samples: int, fade: int) -> np.ndarray:
    """Cut a loop from waves float32 [..., T] that repeat it: `num_samples` from `start`, the last `fade` samples crossfaded into
    those before `start`."""
    loop = waves[..., start : start + num_samples].copy()
    share = np.arange(1, fade + 1, dtype=np.float32) / fade
    loop[..., num_samples - fade :] += share * (waves[..., start - fade : start] - loop[..., num_samples - fade :])
    return loop
