"""What each way to spoil a sound changes, and what it keeps."""

from types import SimpleNamespace

import numpy as np
import pytest

from soundmill.evaluation import spoilings

RATE = 16_000
TIME = np.arange(2 * RATE) / RATE
RANDOM = np.random.default_rng(0)


def tone(hertz: float) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hertz * TIME)).astype(np.float32)


def level(wave: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(np.square(wave, dtype=np.float64))))


def peak(wave: np.ndarray) -> float:
    """The loudest frequency in Hz."""
    return float(np.abs(np.fft.rfft(wave)).argmax() * RATE / len(wave))


@pytest.mark.parametrize("kind", spoilings.SPOILINGS)
@pytest.mark.parametrize("num_samples", [0, 1, 2, 100, 4_000, 32_000])
def test_the_length_is_kept_and_the_result_depends_on_id_and_seed_alone(kind, num_samples):
    wave = np.clip(tone(300) + tone(700) + 0.5 * np.sign(tone(3)), -1, 1)[:num_samples].astype(np.float32)
    before = wave.copy()
    spoiled = spoilings.spoil(kind, wave, RATE, "a", 0)
    assert spoiled.shape == wave.shape
    assert spoiled.dtype == np.float32
    assert np.isfinite(spoiled).all()
    np.testing.assert_array_equal(wave, before)
    np.testing.assert_array_equal(spoilings.spoil(kind, wave, RATE, "a", 0), spoiled)
    if num_samples == 32_000:
        chance = kind not in ("low_pass_4khz", "pitch_2_semitones", "bits_8")
        for clip_id, seed in (("b", 0), ("a", 1)):
            assert np.array_equal(spoilings.spoil(kind, wave, RATE, clip_id, seed), spoiled) != chance
        assert not np.array_equal(spoiled, wave)


@pytest.mark.parametrize("seconds", [0.2, 0.05])
def test_pieces_are_moved_and_nothing_else(seconds):
    wave = RANDOM.standard_normal(32_100)
    in_place = SimpleNamespace(permutation=np.arange)
    np.testing.assert_allclose(spoilings.shuffle_pieces(wave, RATE, in_place, seconds), wave, atol=1e-12)
    two = np.concatenate([tone(400)[:RATE], tone(2_000)[:RATE]])  # one tone after the other
    shuffled = spoilings.shuffle_pieces(two, RATE, np.random.default_rng(1), seconds)
    for half in np.split(shuffled, 2):  # both tones everywhere
        spectrum = np.abs(np.fft.rfft(half))
        assert min(spectrum[380:420].max(), spectrum[1980:2020].max()) > 10 * np.median(spectrum)


def test_random_phases_keep_the_spectrum():
    wave = np.zeros(32_000)
    wave[8_000:9_000] = RANDOM.standard_normal(1_000) * 0.5
    spoiled = spoilings.spoil("random_phases", wave, RATE, "a", 0)
    np.testing.assert_allclose(np.abs(np.fft.rfft(spoiled))[1:-1], np.abs(np.fft.rfft(wave))[1:-1], atol=1e-3)
    assert level(spoiled[16_000:]) == pytest.approx(level(wave), abs=1)  # the burst is everywhere


def test_a_low_pass_removes_what_is_above_it():
    assert level(spoilings.spoil("low_pass_4khz", tone(6_000), RATE, "a", 0)) < level(tone(6_000)) - 30
    np.testing.assert_allclose(
        spoilings.spoil("low_pass_4khz", tone(1_000), RATE, "a", 0)[2000:-2000], tone(1_000)[2000:-2000], atol=1e-3
    )
    np.testing.assert_array_equal(spoilings.spoil("low_pass_4khz", tone(1_000), 8_000, "a", 0), tone(1_000))


@pytest.mark.parametrize(("kind", "decibels"), [("noise_20db", 20), ("noise_0db", 0)])
def test_noise_has_the_ratio_to_the_sound(kind, decibels):
    added = spoilings.spoil(kind, 0.1 * tone(500), RATE, "a", 0) - 0.1 * tone(500)
    assert level(0.1 * tone(500)) - level(added) == pytest.approx(decibels, abs=0.2)
    assert not spoilings.spoil(kind, np.zeros(1_000, np.float32), RATE, "a", 0).any()


def test_pitch_rises_and_events_stay_where_they_are():
    assert peak(spoilings.spoil("pitch_2_semitones", tone(440), RATE, "a", 0)) == pytest.approx(440 * 2 ** (2 / 12), abs=1)
    wave = np.zeros(32_000)
    wave[20_000:20_400] = RANDOM.standard_normal(400) * 0.3
    spoiled = spoilings.spoil("pitch_2_semitones", wave, RATE, "a", 0)
    assert np.average(np.arange(32_000), weights=np.square(spoiled)) == pytest.approx(20_200, abs=0.02 * RATE)


def test_samples_of_8_bits():
    spoiled = spoilings.spoil("bits_8", tone(440), RATE, "a", 0)
    assert len(np.unique(spoiled)) < 80
    assert np.abs(spoiled - tone(440)).max() <= 1 / 254 + 1e-6
