"""Seams and tempi of loops that are known."""

import numpy as np
import pytest

from bench.loops import _step, at_tempo, found_tempo, join_cuts, noise_like, seam, share

RATE = 16_000


def beats(seconds: float = 2.0) -> np.ndarray:
    """Four clicks, and a tone that fits into the bar."""
    rng, time = np.random.default_rng(0), np.arange(round(seconds * RATE)) / RATE
    wave = 0.05 * np.sin(2 * np.pi * 220 * time)
    for beat in range(4):
        at = round((beat + 0.5) * len(wave) / 4)
        wave[at : at + 1000] += rng.standard_normal(1000) * np.exp(-np.arange(1000) / 150)
    return wave.astype(np.float32)


def test_a_loop_that_closes_has_no_seam_and_one_that_does_not_has():
    whole = beats()
    broken = whole.copy()
    broken[-800:] += 0.5 * np.random.default_rng(1).standard_normal(800)
    assert seam(whole, RATE) < 1.5
    assert seam(broken, RATE) > 5 * seam(whole, RATE)
    ((cut, _),) = join_cuts([(whole, RATE), (np.roll(broken, 3000), RATE)])
    assert cut.shape == whole.shape


def test_stretched_beats_have_the_tempo_and_noise_has_none():
    sounds = [(beats(), RATE), (beats(1.9), RATE)]
    bars = at_tempo(sounds, 140.0)
    assert [len(bar) for bar, _ in bars] == [round(240 * RATE / 140)] * 2
    assert found_tempo(*bars[0], 140.0) == pytest.approx(140, rel=0.01)
    assert share(bars, 140.0) == 1.0
    assert share(at_tempo(noise_like(sounds * 4), 97.0), 97.0) == 0.0


def test_a_step_says_what_it_looked_through():
    sizes = ["projected_gan.train.generator.channels=4", "projected_gan.train.batch_size=2", "vocoder=griffin_lim"]
    told = _step([*sizes, "families.projected_gan.tagger=nowhere"])
    assert told["projectors"] == ["random"]
    assert told["items"] == 2
