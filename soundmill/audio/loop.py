"""Loops that go on at their beginning."""

from __future__ import annotations

import numpy as np


def closed(waves: np.ndarray, start: int, num_samples: int, fade: int) -> np.ndarray:
    """Of waves float32 [..., T] that go on around a loop, the loop from `start` on; its last `fade` samples fade into what comes
    before it."""
    loop = waves[..., start : start + num_samples].copy()
    share = np.arange(1, fade + 1, dtype=np.float32) / fade
    loop[..., num_samples - fade :] += share * (waves[..., start - fade : start] - loop[..., num_samples - fade :])
    return loop
