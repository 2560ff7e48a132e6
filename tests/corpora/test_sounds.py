"""Every sound-event generator: right length, seeded, lively, and told apart from the others by a linear classifier."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from soundmill.corpora.sounds import GENERATORS

RATE = 32_000


@pytest.mark.parametrize("label", GENERATORS)
@pytest.mark.parametrize("seconds", [0.8, 2.37])
def test_a_take_has_the_length_asked_for_and_sounds_throughout(label, seconds):
    wave = GENERATORS[label](np.random.default_rng(1), seconds, RATE)
    assert len(wave) == round(seconds * RATE)
    assert np.isfinite(wave).all()
    halves = [np.abs(half).max() for half in np.array_split(wave, 2)]
    assert min(halves) > 0.02 * max(halves)


@pytest.mark.parametrize("label", GENERATORS)
def test_takes_follow_from_the_seed_alone_and_differ(label):
    first, again, other = (GENERATORS[label](np.random.default_rng(seed), 1.0, RATE) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.allclose(first, other)


def features(wave: np.ndarray) -> np.ndarray:
    """Mean and spread over time of 24 bands of the log spectrum."""
    frames = np.lib.stride_tricks.sliding_window_view(wave, 1024)[::512] * np.hanning(1024)
    power = np.abs(np.fft.rfft(frames)) ** 2
    edges = np.geomspace(2, 250, 25).astype(int)
    bands = np.stack([power[:, a : max(b, a + 1)].mean(1) for a, b in pairwise(edges)], 1)
    level = np.log(np.maximum(bands / bands.mean(), 1e-6))
    return np.concatenate([level.mean(0), level.std(0)])


@pytest.mark.slow
def test_a_linear_classifier_tells_the_events_apart():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def takes(seeds):
        return zip(
            *[
                (features(make(np.random.default_rng([seed, 9]), 2.0, RATE)), label)
                for label, make in GENERATORS.items()
                for seed in seeds
            ],
            strict=True,
        )

    x, y = takes(range(12))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(np.stack(x), y)
    x, y = takes(range(100, 106))
    assert model.score(np.stack(x), y) > 0.95
