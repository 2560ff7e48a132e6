"""Fréchet distance: known answers, rank-deficient sets, streaming moments, influence."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from soundmill.errors import UserError
from soundmill.metrics import frechet
from soundmill.metrics.frechet import Gathered, Moments, frechet_of_rows

ZERO = np.zeros(2)


def of_gaussians(mean1, cov1, mean2, cov2) -> float:
    sets = [
        Gathered(np.zeros(0, int), 0, np.asarray(mean, np.float64), np.asarray(covariance, np.float64), None)
        for mean, covariance in ((mean1, cov1), (mean2, cov2))
    ]
    return sets[0].distance(sets[1])


def rank_one(*values: float) -> np.ndarray:
    return np.outer(values, values)


@pytest.mark.parametrize(
    ("mean1", "cov1", "mean2", "cov2", "expected"),
    [
        ([0, 0], np.diag([1, 4]), [3, 4], np.diag([9, 16]), 33.0),
        (ZERO, [[2, 1], [1, 2]], ZERO, np.diag([1, 4]), 0.7712204476543416),
        (ZERO, np.diag([1, 0]), ZERO, np.diag([0, 1]), 2.0),
        (ZERO, rank_one(1, 2), ZERO, rank_one(2, -1.5), 9.25),
        (ZERO, np.zeros((2, 2)), ZERO, np.diag([2, 3]), 5.0),
        (ZERO, np.zeros((2, 2)), [1, 1], np.zeros((2, 2)), 2.0),
    ],
)
def test_known_answers(mean1, cov1, mean2, cov2, expected):
    assert of_gaussians(mean1, cov1, mean2, cov2) == pytest.approx(expected, abs=1e-12)
    assert of_gaussians(mean2, cov2, mean1, cov1) == pytest.approx(expected, abs=1e-12)


def test_agrees_with_the_matrix_square_root_where_that_can_be_trusted():
    from scipy.linalg import sqrtm

    random = np.random.default_rng(1)
    x, y = random.standard_normal((500, 8)) @ random.standard_normal((8, 8)), random.standard_normal((400, 8)) + 0.5
    c1, c2 = np.cov(x.T), np.cov(y.T)
    shift = x.mean(0) - y.mean(0)
    expected = shift @ shift + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real)
    assert frechet_of_rows(x, y) == pytest.approx(expected, rel=1e-10)


def test_same_set_is_at_distance_zero_even_when_rank_deficient():
    rows = np.random.default_rng(2).standard_normal((10, 64))
    assert frechet_of_rows(rows, rows) == pytest.approx(0, abs=1e-10)
    gaussian = Moments.of(rows).mean, Moments.of(rows).covariance
    assert of_gaussians(*gaussian, *gaussian) == pytest.approx(0, abs=1e-10)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) > 1), st.integers(0, 2**32 - 1))
def test_streaming_equals_batch_in_any_order(sizes, seed):
    random = np.random.default_rng(seed)
    parts = [random.standard_normal((size, 3)) * 5 + 100 for size in sizes]
    batch = Moments.of(np.concatenate(parts))
    for order in (parts, parts[::-1]):
        stream = Moments.over(order)
        assert stream.count == batch.count
        np.testing.assert_allclose(stream.mean, batch.mean, rtol=1e-12)
        np.testing.assert_allclose(stream.covariance, batch.covariance, rtol=1e-9, atol=1e-9)
    left, right = Moments.over(parts[:1]) + Moments.over(parts[:1]), Moments.of(np.concatenate(parts[:1] * 2))
    np.testing.assert_allclose(left.scatter, right.scatter, rtol=1e-9, atol=1e-9)


def test_covariance_has_ddof_one_and_survives_a_large_mean():
    rows = np.random.default_rng(4).standard_normal((50, 3)) + 1e8
    np.testing.assert_allclose(Moments.over(np.split(rows, 5)).covariance, np.cov(rows.T), rtol=1e-6)


ROWS, GAPS = np.zeros((4, 2)), np.where(np.arange(8).reshape(4, 2) == 5, np.nan, 0)


@pytest.mark.parametrize(
    ("compare", "said"),
    [
        (lambda: Moments.of(GAPS), "row 2"),
        (lambda: frechet_of_rows(ROWS, GAPS), "row 2"),
        (lambda: frechet_of_rows(np.zeros((1, 2)), np.zeros((3, 2))), "at least 2"),
        (lambda: frechet_of_rows(ROWS, np.zeros((4, 3))), "size 2 and 3"),
        (lambda: of_gaussians(np.zeros(2), np.eye(2), np.zeros(3), np.eye(3)), "size 2 and 3"),
        (lambda: Moments.of(ROWS) + Moments.of(np.zeros((4, 3))), "pooled"),
        (lambda: Moments.of(np.zeros(4)), "matrix"),
        (lambda: Moments.over([]), "no embeddings"),
    ],
)
def test_what_has_no_distance_is_refused(compare, said):
    with pytest.raises(UserError, match=said):
        compare()


def test_influence_is_the_slope_of_the_distance():
    """Against the distance of sets in which one clip has a little more weight, by finite differences."""
    random = np.random.default_rng(6)
    sets = [
        {f"c{number:03d}": random.standard_normal((2, 5)) @ random.standard_normal((5, 5)) for number in range(400)}
        for _ in range(2)
    ]
    streams, ids = tuple(part.items for part in sets), tuple(sorted(part) for part in sets)
    gathered = [frechet.Gathered.over(*side) for side in zip(streams, ids, strict=True)]
    result = frechet.influence(*gathered, streams, ids)

    def distance(weights: list[np.ndarray]) -> float:
        gaussians = []
        for part, times in zip(sets, weights, strict=True):
            rows, counts = np.concatenate([part[clip_id] for clip_id in sorted(part)]), np.repeat(times, 2)
            mean = counts @ rows / counts.sum()
            gaussians += [mean, ((rows - mean).T * counts) @ (rows - mean) / counts.sum()]
        return of_gaussians(*gaussians)

    for which, side in enumerate((result.generated, result.reference)):
        for clip in range(4):
            ends = []
            for step in (1e-3, -1e-3):
                weights = [np.ones(400), np.ones(400)]
                weights[which][clip] += step
                ends.append(distance(weights))
            slope = (ends[0] - ends[1]) / 2e-3
            assert side.sums[clip] / 800 == pytest.approx(slope, rel=0.01, abs=1e-5)


@pytest.mark.parametrize(("size", "counts"), [(20, (15, 90)), (20, (100, 90)), (20, (15, 12))])
def test_bias_is_that_of_drawn_sets(size, counts, monkeypatch):
    monkeypatch.setattr(frechet, "EQUAL_SETS", 100)
    random = np.random.default_rng(7)
    scales = np.linspace(0.1, 2, size)
    drawn = [frechet_of_rows(*(random.standard_normal((count, size)) * scales for count in counts)) for _ in range(100)]
    assert frechet.of_equal_sets(scales**2, counts, 0) == pytest.approx(np.mean(drawn), rel=0.05)


def test_bias_is_as_large_as_known(monkeypatch):
    assert frechet.of_equal_sets(np.ones(128), (500, 500), 0) == pytest.approx(16.9, rel=0.03)
    monkeypatch.setattr(frechet, "EQUAL_SETS", 1)
    assert frechet.of_equal_sets(np.ones(2048), (886, 886), 0) == pytest.approx(1919, rel=0.005)


@pytest.mark.parametrize("clips", [6, 80])
def test_a_gathered_stream_is_the_set(clips):
    random = np.random.default_rng(8)
    held = {f"c{number:02d}": random.standard_normal((3, 30)).astype(np.float32) for number in range(clips)}
    result = frechet.Gathered.over(lambda: reversed(held.items()), sorted(held))
    rows = np.concatenate([held[clip_id] for clip_id in sorted(held)])
    assert (result.half is None) == (3 * clips >= 30)
    np.testing.assert_allclose(result.factor().T @ result.factor(), np.cov(rows.T), atol=1e-5)
    covariance = np.linalg.eigvalsh(np.cov(rows.T))
    np.testing.assert_allclose(sorted(result.spectrum())[-5:], covariance[-5:], rtol=1e-4)
    some = frechet.Gathered.over(held.items, ["c04", "c01"])
    np.testing.assert_allclose(some.mean, np.concatenate([held["c01"], held["c04"]]).mean(axis=0), atol=1e-6)
    assert some.lengths.tolist() == [3, 3]
