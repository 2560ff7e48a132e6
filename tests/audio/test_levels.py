"""Loudness: ITU's own numbers, clips shorter than a block, silence, gains that would clip; A-weighted levels, and mixes by them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from soundmill.audio import levels
from soundmill.audio.levels import a_weighting, integrated_loudness, level, matching_gains, mix, mix_ratio, pressure_level
from tests import waves


def tone(seconds: float, rate: int, channels: int = 1, amplitude: float = 1.0, hertz: float = 997.0) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    return np.tile(amplitude * np.sin(2 * np.pi * hertz * time), (channels, 1)).astype(np.float32)


@pytest.mark.parametrize("rate", [22_050, 44_100, 48_000])
@pytest.mark.parametrize(("channels", "expected"), [(1, -3.01), (2, 0.0)])
def test_a_full_scale_tone_has_the_loudness_of_the_standard(rate, channels, expected):
    """ITU-R BS.1770-4: a 997 Hz sine at full scale in one channel is -3.01 LKFS."""
    measured = integrated_loudness(tone(2.0, rate, channels), rate)
    assert measured == pytest.approx(expected, abs=0.1)  # EBU R 128 allows meters as much


@pytest.mark.parametrize("rate", [16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("seconds", [0.05, 0.0743, 0.2, 0.399])
def test_a_clip_under_a_block_is_measured_in_one_of_its_own_length(rate, seconds):
    assert integrated_loudness(tone(seconds, rate), rate) == pytest.approx(integrated_loudness(tone(2.0, rate), rate), abs=0.3)


@pytest.mark.parametrize("seconds", [0.1, 2.0])
def test_a_clip_comes_to_the_target(seconds):
    wave, outcome = level(tone(seconds, 44_100, 2, 0.01), 44_100, -23.0)
    assert outcome == "changed"
    assert integrated_loudness(wave, 44_100) == pytest.approx(-23.0, abs=0.01)


@pytest.mark.parametrize(("target", "expected"), [(-10.0, "limited"), ("peak", "changed")])
def test_the_peak_comes_to_full_scale_and_no_further(target, expected):
    wave = tone(2.0, 16_000, amplitude=0.001)
    wave[0, 16_000] = 0.5
    output, outcome = level(wave, 16_000, target)
    assert outcome == expected
    assert np.abs(output).max() == pytest.approx(levels.FULL_SCALE, abs=1e-6)


@pytest.mark.parametrize("target", ["peak", -23.0])
@pytest.mark.parametrize("samples", [0, 100, 48_000])
def test_silence_stays_as_it_is(target, samples):
    output, outcome = level(np.zeros((2, samples), np.float32), 48_000, target)
    assert outcome == "silent"
    assert output.shape == (2, samples)
    assert not output.any()


def test_what_no_block_hears_is_silent():
    wave = tone(2.0, 16_000, amplitude=1e-5)
    assert integrated_loudness(wave, 16_000) == -math.inf
    assert level(wave, 16_000, -23.0)[1] == "silent"


def test_gains_stop_at_high_peaks_at_the_lowest_loudness_and_at_the_most_gain():
    click = np.zeros((1, 16_000), np.float32)
    click[0, 8_000] = 1.0
    still = np.zeros((1, 16_000), np.float32)
    loud, faint = tone(1.0, 16_000, 1, 0.5), tone(1.0, 16_000, 1, 0.001)
    together = matching_gains([(loud, 16_000), (click, 16_000)], -23.0, -60.0, 30.0)
    assert together[1] == pytest.approx(0.0, abs=0.001)  # its peak is at full scale
    assert integrated_loudness(np.tile(loud * 10 ** (together[0] / 20), (2, 1)).astype(np.float32), 16_000) == pytest.approx(
        integrated_loudness(np.tile(click, (2, 1)), 16_000), abs=0.1
    )
    floor = matching_gains([(loud, 16_000), (click, 16_000)], -23.0, -25.0, 30.0)
    assert floor[0] == pytest.approx(-25.0 + 20 * math.log10(2), abs=0.1)
    assert matching_gains([(faint, 16_000), (still, 16_000)], -23.0, -35.0, 30.0) == [30.0, 0.0]


@pytest.mark.parametrize(("tenths", "decibel"), [(15, -39.4), (20, -19.1), (27, -3.2), (30, 0.0), (33, 1.2), (36, 1.0), (39, -1.1)])
def test_a_curve_is_the_standards_table(tenths, decibel):
    gain = a_weighting(np.array([10 ** (tenths / 10)]))[0]
    assert 10 * math.log10(gain) == pytest.approx(decibel, abs=0.06)


def test_level_is_of_the_loudest_moment_even_at_the_very_end():
    wave = np.zeros(16_000, np.float32)
    wave[-300:] = waves.tone(1000)[:300]
    assert pressure_level(wave, 16_000) > 0
    later = np.concatenate([np.zeros(80_000, np.float32), waves.tone(1000)])
    assert pressure_level(later, 16_000) == pytest.approx(pressure_level(waves.tone(1000), 16_000), abs=0.1)


@pytest.mark.parametrize("samples", [0, 1, 2047, 2048, 2049, 700_000])
def test_silence_and_very_short_clips_have_a_finite_level(samples):
    assert pressure_level(np.zeros(samples, np.float32), 16_000) == -80.0
    assert math.isfinite(pressure_level(np.full(samples, 1e-30, np.float32), 16_000))


def test_known_answers():
    assert [levels.window_length(rate) for rate in (16_000, 44_100)] == [2048, 4096]  # the paper's
    assert mix_ratio(-12.3, -12.3) == 0.5
    assert mix_ratio(-10, -30) == pytest.approx(1 / 11)
    assert mix_ratio(-30, -10) == pytest.approx(10 / 11)


@given(st.floats(0.01, 0.99))
def test_mix_of_unrelated_sounds_keeps_their_power(ratio):
    first, second = waves.noise(12.5, seed=1), waves.noise(12.5, seed=2)
    assert mix(first, second, ratio).var() == pytest.approx(0.01, rel=0.02)


def test_mix_equalises_the_levels():
    loud, soft = waves.tone(1000, amplitude=0.8), waves.tone(1500, amplitude=0.008)
    ratio = mix_ratio(pressure_level(loud, 16_000), pressure_level(soft, 16_000))
    spectrum = np.abs(np.fft.rfft(mix(loud, soft, ratio))) ** 2 * a_weighting(np.fft.rfftfreq(16_000, 1 / 16_000))
    assert 10 * math.log10(spectrum[1000] / spectrum[1500]) == pytest.approx(0, abs=0.05)


@given(st.integers(0, 3000), st.integers(0, 3000), st.floats(0.05, 0.95))
def test_mix_is_as_long_as_the_longer_and_symmetric(first, second, ratio):
    a, b = waves.noise(first / 16_000, seed=1), waves.noise(second / 16_000, seed=2)
    mixed = mix(a, b, ratio)
    assert mixed.dtype == np.float32
    assert len(mixed) == max(first, second)
    np.testing.assert_allclose(mixed, mix(b, a, 1 - ratio), atol=1e-6)


def test_captions_join_as_in_tango():
    assert levels.join_captions("A dog barks", "Rain falls on a roof") == "A dog barks and rain falls on a roof"
    assert levels.join_captions("A dog barks", "") == "A dog barks and "
