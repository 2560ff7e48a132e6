"""The standard deviations of waves, of all samples and per frequency, of waves whose spectrum is known."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import scipy.signal

from soundmill.errors import UserError
from soundmill.models.components.waves.source import wave_deviation, wave_deviation_per_frequency
from soundmill.training.loader import Arrays, Described, gather

NOISE = np.random.default_rng(0).standard_normal((2, 200_000))


def stored(waves: Sequence[np.ndarray], directory: Path) -> Arrays:
    ids = [str(number) for number in range(len(waves))]
    index = [Described(name, wave.shape, "") for name, wave in zip(ids, waves, strict=True)]
    contents = [(name, wave.astype("<f2")) for name, wave in zip(ids, waves, strict=True)]
    return gather(lambda: index, lambda: contents, ids, directory / "waves", "clip")


def test_white_noise_has_its_standard_deviation_at_every_frequency(tmp_path):
    waves = stored([0.1 * NOISE], tmp_path)
    np.testing.assert_allclose(wave_deviation_per_frequency(waves, "key"), np.full(257, 0.1), rtol=0.12)
    assert wave_deviation(waves, "key") == pytest.approx(0.1, rel=0.01)


def test_filtered_noise_has_the_response_of_its_filter(tmp_path):
    waves = stored([0.1 * scipy.signal.lfilter([1], [1, -0.9], one) for one in NOISE], tmp_path)
    _, response = scipy.signal.freqz([1], [1, -0.9], 257, include_nyquist=True)
    found = np.array(wave_deviation_per_frequency(waves, "key"))
    np.testing.assert_allclose(found, 0.1 * np.abs(response), rtol=0.15)
    assert np.sqrt(np.square(found).mean()) == pytest.approx(wave_deviation(waves, "key"), rel=0.02)


def test_clips_count_by_their_samples_and_short_ones_too(tmp_path):
    waves = stored([0.1 * NOISE[:, :150_000], 0.3 * NOISE[:, :50_000], np.zeros((2, 100))], tmp_path)
    expected = np.sqrt(0.75 * 0.1**2 + 0.25 * 0.3**2)
    np.testing.assert_allclose(wave_deviation_per_frequency(waves, "key"), np.full(257, expected), rtol=0.12)


def test_frequencies_that_recordings_lack_are_30_db_below_the_highest(tmp_path):
    tone = 0.5 * np.sin(0.1 * np.pi * np.arange(16_000))
    found = wave_deviation_per_frequency(stored([tone], tmp_path), "key")
    assert max(found) == found[round(0.1 * 256)]
    assert min(found) == found[-1] == pytest.approx(max(found) / 10**1.5)


def test_silence_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"all 1 training clips are digital silence.*some\.key"):
        wave_deviation_per_frequency(stored([np.zeros(16_000)], tmp_path), "some.key")
