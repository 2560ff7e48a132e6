"""The linear probe: recovers separable classes, agrees with scikit-learn, folds never part a group."""

import numpy as np
import pytest

from soundmill.errors import UserError
from soundmill.evaluation import probe


def blobs(seed: int, count: int = 30, dimensions: int = 12) -> tuple[np.ndarray, list[str]]:
    random = np.random.default_rng(seed)
    labels = [("bark", "rain", "bell")[index % 3] for index in range(count)]
    centres = {name: np.random.default_rng(len(name)).standard_normal(dimensions) * 3 for name in ("bark", "rains", "bells!")}
    rows = [list(centres.values())[index % 3] + random.standard_normal(dimensions) for index in range(count)]
    return np.array(rows), labels


def test_recovers_classes_of_unseen_rows():
    rows, labels = blobs(0)
    other, expected = blobs(1)
    assert probe.fit(rows, labels).predict(other) == expected


def test_agrees_with_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    rows, labels = blobs(2)
    model = probe.fit(rows, labels)
    scaled = (rows - model.mean) / model.scale
    oracle = LogisticRegression(C=1 / probe.L2, max_iter=5000, tol=1e-10).fit(scaled, labels)
    assert model.classes == list(oracle.classes_)
    np.testing.assert_allclose(model.weights.T, oracle.coef_, atol=2e-3)


def test_fit_has_no_chance_in_it_and_survives_constant_embeddings():
    rows, labels = blobs(3)
    np.testing.assert_array_equal(probe.fit(rows, labels).weights, probe.fit(rows, labels).weights)
    assert set(probe.fit(np.ones((4, 3)), ["a", "a", "a", "b"]).predict(np.ones((2, 3)))) == {"a"}
    with pytest.raises(UserError, match="two classes"):
        probe.fit(np.ones((3, 2)), ["a"] * 3)


def test_folds_keep_groups_whole_and_classes_even():
    groups = [f"recording{index // 2}" for index in range(60)]
    labels = ["bark" if index < 30 else "rain" for index in range(60)]
    result = probe.folds(groups, labels, seed=0)
    assert set(result) == set(range(probe.FOLDS))
    assert all(result[index] == result[index + 1] for index in range(0, 60, 2))
    for label in ("bark", "rain"):
        counts = np.bincount([fold for fold, name in zip(result, labels, strict=True) if name == label])
        assert counts.tolist() == [6] * 5
    order = np.random.default_rng(0).permutation(60)
    shuffled = probe.folds([groups[i] for i in order], [labels[i] for i in order], seed=0)
    assert shuffled == [result[i] for i in order]
    assert result != probe.folds(groups, labels, seed=1)
