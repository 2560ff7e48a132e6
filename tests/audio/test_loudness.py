"""Loudness: ITU's own numbers, clips shorter than a block, silence, and gains that would clip."""

import math

import numpy as np
import pytest

from soundmill.audio.levels import FULL_SCALE, integrated_loudness, level, matching_gains


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


def test_a_gain_that_would_clip_is_limited():
    wave = tone(2.0, 16_000, amplitude=0.001)
    wave[0, 16_000] = 0.5
    output, outcome = level(wave, 16_000, -10.0)
    assert outcome == "limited"
    assert np.abs(output).max() == pytest.approx(FULL_SCALE, abs=1e-6)


def test_the_peak_comes_to_full_scale():
    output, outcome = level(tone(0.05, 16_000, amplitude=0.2), 16_000, "peak")
    assert outcome == "changed"
    assert np.abs(output).max() == pytest.approx(FULL_SCALE, abs=1e-6)


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


def test_gains_bring_sounds_to_one_loudness_whatever_their_rate_and_channels():
    sounds = [(tone(1.0, 16_000, 1, 0.05), 16_000), (tone(1.0, 44_100, 2, 0.5), 44_100)]
    gains = matching_gains(sounds, -23.0, -35.0, 30.0)
    assert gains[0] - gains[1] == pytest.approx(20.0, abs=0.1)
    assert gains[1] == pytest.approx(-23.0 + 20 * math.log10(2), abs=0.1)  # two channels of full scale are 0 LUFS


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
