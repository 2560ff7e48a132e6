"""Energy above a frequency, of sounds whose share is known."""

from __future__ import annotations

import numpy as np
import pytest

from bench.hiss import share_above, shares
from soundmill.errors import UserError

RATE = 44_100
TIME = np.arange(RATE) / RATE


def test_a_tone_below_and_one_above():
    low, high = (np.sin(2 * np.pi * hertz * TIME) for hertz in (1000, 15_000))
    assert share_above(low, RATE, 10_000) < -100
    assert share_above(high, RATE, 10_000) == pytest.approx(0, abs=1e-6)
    assert share_above(low + 0.1 * high, RATE, 10_000) == pytest.approx(-20.04, abs=0.01)
    white = np.random.default_rng(0).standard_normal(RATE)
    assert share_above(white, RATE, 10_000) == pytest.approx(10 * np.log10(12_050 / 22_050), abs=0.1)
    assert share_above(np.zeros(100), RATE, 10_000) is None
    found = shares(iter([(low[:, None], RATE), (np.zeros((10, 2)), RATE), ((low + 0.1 * high)[:, None], RATE)]), 10_000)
    assert found["sounds"] == 2
    with pytest.raises(UserError, match="must be below half"):
        share_above(low, 16_000, 10_000)
