"""Intervals of what each clip adds: the bootstrap of a mean, two sides, differences."""

import numpy as np
import pytest

from soundmill.metrics import bootstrap
from soundmill.metrics.bootstrap import Influence, SetInfluence


def test_of_a_mean_it_is_the_bootstrap():
    values = np.random.default_rng(0).standard_normal(40) + 3
    moved = Influence(SetInfluence.of(values)).shifts(0, 30)
    for replicate, result in enumerate(moved):
        drawn = np.random.default_rng([0, replicate]).integers(40, size=40)
        assert result == pytest.approx(values[drawn].mean() - values.mean(), abs=1e-12)
    ends = bootstrap.interval(values.mean(), Influence(SetInfluence.of(values)).shifts(0, 2000), -np.inf, np.inf)
    assert ends["high"] - ends["low"] == pytest.approx(2 * 1.96 * values.std() / np.sqrt(40), rel=0.1)


def test_clips_of_more_rows_count_more():
    """A mean over rows, resampled by clip."""
    random = np.random.default_rng(1)
    clips = [random.standard_normal(size) for size in (1, 5, 0, 3, 9, 2)]
    influence = Influence(SetInfluence.of(np.array([clip.sum() for clip in clips]), np.array([len(clip) for clip in clips])))
    for replicate, result in enumerate(influence.shifts(0, 30)):
        drawn = np.random.default_rng([0, replicate]).integers(6, size=6)
        rows = np.concatenate([clips[index] for index in drawn])
        assert result == pytest.approx(rows.mean() - np.concatenate(clips).mean(), abs=1e-12)


def test_a_replicate_depends_on_its_number_and_the_seed_alone():
    influence = Influence(SetInfluence.of(np.arange(9.0)), SetInfluence.of(np.arange(5.0)))
    whole = influence.shifts(0, 60)
    np.testing.assert_array_equal(influence.shifts(0, 20), whole[:20])
    assert not np.allclose(influence.shifts(1, 20), whole[:20])


def test_what_two_sets_share_cancels_out_in_their_difference():
    random = np.random.default_rng(2)
    hard = random.standard_normal(50) * 10
    first, second = (
        Influence(SetInfluence.of(hard + random.standard_normal(50) * 0.1), SetInfluence.of(hard[:20])) for _ in range(2)
    )
    assert first.shifts(0, 200).std() > 1
    assert (first - second).shifts(0, 200).std() < 0.1
    np.testing.assert_allclose((first - first).shifts(0, 9), 0, atol=1e-12)


def test_interval_stays_within_what_the_metric_can_be_and_knows_another_error():
    moved = np.array([-0.2, -0.1, 0, 0.1, 0.2])
    ends = bootstrap.interval(0.95, moved, 0, 1)
    assert ends["high"] == 1
    assert 0.75 <= ends["low"] < 0.8
    wider = bootstrap.interval(0.95, moved, 0, 1, error=0.2)
    assert wider["low"] == pytest.approx(0.95 - np.hypot(0.95 - ends["low"], 1.96 * 0.2))
