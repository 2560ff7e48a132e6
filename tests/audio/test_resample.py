"""The resampler: exact lengths, no audible aliases, and the same samples however the stream was cut."""

from fractions import Fraction

import numpy as np
import pytest
import soxr
from hypothesis import given
from hypothesis import strategies as st

from soundmill.audio.resample import BLOCK_SAMPLES, resample, resample_blocks, resampled_length

RATES = [8000, 11025, 16000, 22050, 32000, 44100, 48000, 96000, 192000]


def tone(frequency: float, rate: int, seconds: float) -> np.ndarray:
    return np.sin(2 * np.pi * frequency * np.arange(int(rate * seconds)) / rate).astype(np.float32)


def level(wave: np.ndarray) -> float:
    """RMS in dB of the middle, away from both edges."""
    middle = wave[len(wave) // 4 : -len(wave) // 4].astype(np.float64)
    return 20 * np.log10(np.sqrt(np.mean(middle**2)) + 1e-12)


@given(st.integers(0, 10**9), st.integers(1, 10**6), st.integers(1000, 192_000))
def test_length_is_the_nearest_whole_number(num_samples, rate_in, rate_out):
    exact = Fraction(num_samples * rate_out, rate_in)
    assert abs(resampled_length(num_samples, rate_in, rate_out) - exact) <= Fraction(1, 2)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("num_samples", [0, 1, 2, 7, 999, 44_101])
def test_exactly_the_promised_length(rate, num_samples):
    wave = np.random.default_rng(num_samples).standard_normal(num_samples).astype(np.float32)
    output = resample(wave, rate, 16_000)
    assert len(output) == resampled_length(num_samples, rate, 16_000)
    assert rate != 16_000 or (output == wave).all()


@given(st.data())
def test_a_stream_in_pieces_equals_one_shot(data):
    rate = data.draw(st.sampled_from([8000, 22_050, 44_100, 48_000, 96_001]))
    wave = np.random.default_rng(0).standard_normal(data.draw(st.integers(1, 30_000))).astype(np.float32)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wave)), max_size=6)))
    parts = np.split(wave, cuts)
    streamed = np.concatenate(list(resample_blocks(parts, rate, 16_000)))
    np.testing.assert_array_equal(streamed, resample(wave, rate, 16_000))


@pytest.mark.parametrize("frequency", [8_200, 9_000, 12_000, 20_000])
def test_aliases_are_more_than_60_db_down(frequency):
    assert level(resample(tone(frequency, 44_100, 1.0), 44_100, 16_000)) < level(tone(1000, 16_000, 1.0)) - 60


@pytest.mark.parametrize("rate", RATES)
def test_a_tone_in_band_keeps_its_level_and_place(rate):
    output = resample(tone(1000, rate, 1.0), rate, 16_000)
    expected = tone(1000, 16_000, 1.0)
    middle = slice(4000, 12_000)
    np.testing.assert_allclose(output[middle], expected[middle], atol=2e-3)


def test_upsampling_a_crawling_rate_stays_in_bounded_blocks():
    blocks = [len(block) for block in resample_blocks([np.ones(30_000, dtype=np.float32)], 100, 16_000)]
    assert sum(blocks) == 30_000 * 160
    assert max(blocks) < 2 * BLOCK_SAMPLES


def test_a_stream_that_follows_or_accompanies_another_gives_the_same_samples():
    rng = np.random.default_rng(3)
    waves = [rng.standard_normal(size).astype(np.float32) for size in (70_000, 5, 70_000)]
    fresh = [soxr.resample(wave, 44_100, 16_000, "HQ") for wave in waves]
    resample(np.full(50_000, 3e38, np.float32), 44_100, 16_000)  # beyond any number, once filtered
    abandoned = resample_blocks([waves[0], waves[2]], 44_100, 16_000)
    next(abandoned)
    both = zip(*(resample_blocks(np.split(waves[index], 7), 44_100, 16_000) for index in (0, 2)), strict=True)
    first, second = (np.concatenate(parts) for parts in zip(*both, strict=True))
    for result, wave in ((first, fresh[0]), (resample(waves[1], 44_100, 16_000), fresh[1]), (second, fresh[2])):
        np.testing.assert_array_equal(result[: len(wave)], wave[: len(result)])
