"""The upper band's distance, of sounds whose distance is known."""

from __future__ import annotations

import numpy as np
import pytest

from bench.new_band import by_sinc, compare, energy_above
from soundmill.errors import UserError
from soundmill.evaluation.waveforms import FLOOR_DB

RATE, FACTOR = 16_000, 4
NOISE = 0.1 * np.random.default_rng(0).standard_normal((1, RATE)).astype(np.float32)


def test_the_real_clip_is_at_zero_and_sinc_leaves_the_band_empty():
    found = compare(iter([(NOISE, NOISE, RATE)]), FACTOR)
    assert found["generated_lsd"] == [0, 0, 0]
    assert found["generated_energy_db"] == [0, 0, 0]
    assert found["sinc_energy_db"][0] < -15
    assert 30 < found["sinc_lsd"][0] <= FLOOR_DB


def test_half_the_amplitude_above_is_six_decibels_whatever_is_below():
    low = by_sinc(NOISE, FACTOR)
    output = low * 3 + (NOISE - low) * 0.5
    spectrum = np.fft.rfft(NOISE[0])
    spectrum[np.fft.rfftfreq(RATE, 1 / RATE) > RATE / (2 * FACTOR)] *= 0.5
    exact = np.fft.irfft(spectrum)[None]
    found = compare(iter([(exact, NOISE, RATE)]), FACTOR)
    assert found["generated_lsd"][0] == pytest.approx(6.02, abs=0.1)
    assert found["generated_energy_db"][0] == pytest.approx(-6.02, abs=0.01)
    assert compare(iter([(output, NOISE, RATE)]), FACTOR)["generated_lsd"][0] == pytest.approx(6.02, abs=0.6)


def test_energy_is_of_the_band_and_clips_without_it_are_left_out():
    time = np.arange(RATE) / RATE
    tones = {hertz: np.sin(2 * np.pi * hertz * time)[None] for hertz in (1000, 5000)}
    assert energy_above(tones[5000], RATE, FACTOR) == pytest.approx(RATE / 2)
    assert energy_above(tones[1000], RATE, FACTOR) < 1e-12
    both = ((tones[1000], tones[1000], RATE), (tones[5000], tones[5000], RATE))
    found = compare(iter(both), FACTOR)
    assert (found["clips"], found["empty_band"]) == (1, 1)
    with pytest.raises(UserError, match="upper band of all clips is empty"):
        compare(iter(both[:1]), FACTOR)
