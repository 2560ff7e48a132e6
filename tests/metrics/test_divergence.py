"""KL divergence over pairs: known answers, direction, pairing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from soundmill.errors import UserError
from soundmill.metrics import divergence
from soundmill.metrics.divergence import EPSILON, exact, kl_divergence, paired_kl, reverse, softmax

P = np.array([0.05, 0.1, 0.2, 0.05, 0.15, 0.25, 0.08, 0.12])
Q = np.array([0.3, 0.1, 0.2, 0.1, 0.1, 0.02, 0.08, 0.1])


def test_known_answers():
    assert kl_divergence(P, Q, 0) == pytest.approx(0.589885181619163, abs=1e-14)
    assert kl_divergence(P, Q, EPSILON) == pytest.approx(0.5898663152950138, abs=1e-14)
    assert kl_divergence(Q, P, 0) == pytest.approx(0.497549319448034, abs=1e-14)
    assert paired_kl({"a": np.log(P)}, {"a": np.log(Q)})["a"] == pytest.approx(0.5898663152950138, abs=1e-12)


def test_other_tools_kls_have_known_answers():
    logits = {"a": np.log(P) + 700}, {"a": np.log(Q) - 700}
    assert paired_kl(*logits, exact)["a"] == pytest.approx(0.589885181619163, abs=1e-12)
    assert paired_kl(*logits, reverse)["a"] == pytest.approx(float(kl_divergence(Q, P, EPSILON)), abs=1e-12)
    assert exact(np.array([0.0, -50.0]), np.array([-50.0, 0.0])) == pytest.approx(50)  # ε would make it 13.8
    with pytest.raises(UserError, match="2 and 3 classes"):
        exact(np.zeros(2), np.zeros(3))


@given(arrays(np.float32, 5, elements=st.floats(-1e4, 1e4, width=32)))
def test_softmax_is_a_distribution_for_any_size_of_logit(logits):
    result = softmax(logits)
    assert result.dtype == np.float64
    assert result.sum() == pytest.approx(1)
    np.testing.assert_allclose(result, softmax(logits.astype(np.float64) + 1000), atol=1e-9)


def test_a_missing_pair_is_an_error_that_names_it():
    logits = np.zeros(3)
    with pytest.raises(UserError, match="no reference clip for generated clip dog_2;"):
        paired_kl({"dog_1": logits}, {"dog_1": logits, "dog_2": logits})
    with pytest.raises(UserError, match="no generated sound for reference clips cat_1, cat_2;"):
        paired_kl({"cat_2": logits, "dog_1": logits, "cat_1": logits}, {"dog_1": logits})
    with pytest.raises(UserError, match="no pairs"):
        paired_kl({}, {})


def test_logits_that_are_not_finite_and_other_class_counts_are_refused():
    with pytest.raises(UserError, match="generated clip a are not finite"):
        paired_kl({"a": np.zeros(2)}, {"a": np.array([np.nan, 0])})
    with pytest.raises(UserError, match="2 and 3 classes"):
        paired_kl({"a": np.zeros(2)}, {"a": np.zeros(3)})
    with pytest.raises(UserError, match="needs a classifier"):
        divergence.inception_score({}, 0)


ROWS = np.array([[0.75, 0.25], [0.25, 0.75]])


def by_id(logits: np.ndarray) -> dict[str, np.ndarray]:
    return {f"clip{number:03d}": row for number, row in enumerate(logits)}


def test_known_inception_scores():
    assert divergence.inception_score(by_id(np.log(ROWS)), 0) == (pytest.approx(1.1397535284773888, abs=1e-14), 0, 1)
    assert divergence.inception_score(by_id(np.log(ROWS[[0, 0, 0]])), 0)[0] == pytest.approx(1, abs=1e-14)
    assert divergence.inception_score(by_id(1e3 * np.eye(5)), 0)[0] == pytest.approx(5)  # sure of all, and all different


def test_under_a_hundred_sounds_there_is_one_part():
    logits = np.random.default_rng(0).standard_normal((99, 4))
    value, std, splits = divergence.inception_score(by_id(logits), 0)
    assert (std, splits) == (0, 1)
    assert value == pytest.approx(divergence.inception_score(by_id(logits[::-1]), 1)[0])  # then the shuffle changes nothing
    value, std, splits = divergence.inception_score(by_id(np.concatenate([logits, logits])), 0)
    assert splits == 10
    assert std > 0
    assert divergence.inception_score(by_id(np.concatenate([logits, logits])), 0)[0] == value
    assert divergence.inception_score(by_id(np.concatenate([logits, logits])), 1)[0] != value


def test_what_a_sound_adds_is_the_slope_of_the_score():
    logits = np.random.default_rng(0).standard_normal((400, 5))
    added = divergence.inception_influence(by_id(logits)).generated
    assert added.sums.sum() == pytest.approx(0, abs=1e-9)
    whole = divergence.inception_score(by_id(logits[:40]), 0)[0]
    without = divergence.inception_score(by_id(logits[1:40]), 0)[0]
    assert divergence.inception_influence(by_id(logits[:40])).generated.sums[0] / 39 == pytest.approx(whole - without, rel=0.1)
