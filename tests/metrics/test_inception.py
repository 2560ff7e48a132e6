"""Inception score: known answers, splits, what each sound adds."""

import numpy as np
import pytest

from soundmill.errors import UserError
from soundmill.metrics import inception

ROWS = np.array([[0.75, 0.25], [0.25, 0.75]])


def by_id(logits: np.ndarray) -> dict[str, np.ndarray]:
    return {f"clip{number:03d}": row for number, row in enumerate(logits)}


def test_known_answers():
    assert inception.in_splits(by_id(np.log(ROWS)), 0) == (pytest.approx(1.1397535284773888, abs=1e-14), 0, 1)
    assert inception.in_splits(by_id(np.log(ROWS[[0, 0, 0]])), 0)[0] == pytest.approx(1, abs=1e-14)
    assert inception.in_splits(by_id(1e3 * np.eye(5)), 0)[0] == pytest.approx(5)  # sure of all, and all different


def test_under_a_hundred_sounds_there_is_one_part():
    logits = np.random.default_rng(0).standard_normal((99, 4))
    value, std, splits = inception.in_splits(by_id(logits), 0)
    assert (std, splits) == (0, 1)
    assert value == pytest.approx(inception.in_splits(by_id(logits[::-1]), 1)[0])  # then the shuffle changes nothing
    value, std, splits = inception.in_splits(by_id(np.concatenate([logits, logits])), 0)
    assert splits == 10
    assert std > 0
    assert inception.in_splits(by_id(np.concatenate([logits, logits])), 0)[0] == value
    assert inception.in_splits(by_id(np.concatenate([logits, logits])), 1)[0] != value


def test_what_a_sound_adds_is_the_slope_of_the_score():
    logits = np.random.default_rng(0).standard_normal((400, 5))
    added = inception.influence(by_id(logits)).generated
    assert added.sums.sum() == pytest.approx(0, abs=1e-9)
    whole = inception.in_splits(by_id(logits[:40]), 0)[0]
    without = inception.in_splits(by_id(logits[1:40]), 0)[0]
    assert inception.influence(by_id(logits[:40])).generated.sums[0] / 39 == pytest.approx(whole - without, rel=0.1)


def test_an_embedder_without_logits_is_refused():
    with pytest.raises(UserError, match="needs a classifier"):
        inception.in_splits({}, 0)
