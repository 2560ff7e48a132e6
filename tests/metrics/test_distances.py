"""Fréchet distance: known answers, rank-deficient sets, streaming moments, influence; KID and MMD: known answers, no bias, subsets;
precision, recall, density, coverage: other implementations; what a clip adds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.distances import frechet_of_rows
from soundmill.errors import UserError
from soundmill.metrics import frechet, pairwise
from soundmill.metrics.frechet import Gathered, Moments
from soundmill.metrics.pairwise import by_neighbours, discrepancy, discrepancy_by_clip, gaussian, in_subsets, polynomial

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


def test_agrees_with_the_matrix_square_root_and_is_zero_of_the_same_set():
    from scipy.linalg import sqrtm

    random = np.random.default_rng(1)
    x, y = random.standard_normal((500, 8)) @ random.standard_normal((8, 8)), random.standard_normal((400, 8)) + 0.5
    c1, c2 = np.cov(x.T), np.cov(y.T)
    shift = x.mean(0) - y.mean(0)
    expected = shift @ shift + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real)
    assert frechet_of_rows(x, y) == pytest.approx(expected, rel=1e-10)
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


@pytest.mark.parametrize(("x", "y", "expected"), [([1, -1], [1, -1], -8), ([0, 0], [1, 1], 7)])
def test_known_discrepancies(x, y, expected):
    x, y = (np.array(values, dtype=np.float64)[:, None] for values in (x, y))
    assert discrepancy(x, y, polynomial) == pytest.approx(expected, abs=1e-12)
    assert discrepancy_by_clip(list(x[:, None]), list(y[:, None]), polynomial)[0] == pytest.approx(expected, abs=1e-12)


def test_kid_is_that_of_its_definition_and_the_gaussian_kernel_by_hand():
    """Term by term, as torch-fidelity has it: (γ·xᵀy + 1)³ with γ = 1/d."""
    random = np.random.default_rng(0)
    x, y = random.standard_normal((6, 3)), random.standard_normal((5, 3)) + 0.5
    pairs = {"x": (x, x), "y": (y, y), "xy": (x, y)}
    k = {name: np.array([[(a @ b / 3 + 1) ** 3 for b in right] for a in left]) for name, (left, right) in pairs.items()}
    expected = (k["x"].sum() - np.trace(k["x"])) / 30 + (k["y"].sum() - np.trace(k["y"])) / 20 - 2 * k["xy"].mean()
    assert discrepancy(x, y, polynomial) == pytest.approx(expected, abs=1e-12)
    x, y = np.array([[0.0, 0], [3, 4]]), np.array([[0.0, 0], [0, 1]])
    k = lambda squared: np.exp(-squared / 8)  # noqa: E731
    expected = k(25) + k(1) - (k(0) + k(1) + k(25) + k(18)) / 2
    assert discrepancy(x, y, gaussian(2)) == pytest.approx(expected, abs=1e-15)


def test_neither_is_biased():
    random = np.random.default_rng(1)
    sets = [[random.standard_normal((12, 4)) for _ in range(2)] for _ in range(300)]
    for kernel in (polynomial, gaussian(2.0)):
        result = np.array([discrepancy(x, y, kernel) for x, y in sets])
        assert abs(result.mean()) < 3 * result.std() / np.sqrt(len(result))
        assert result.min() < 0  # what has no bias is negative at times


def test_subsets_are_smaller_than_the_sets_and_seeded():
    random = np.random.default_rng(2)
    x, y = random.standard_normal((60, 4)), random.standard_normal((50, 4)) + 1
    value, std, size = in_subsets(x, y, 0)
    assert size == 25
    assert value == pytest.approx(discrepancy(x, y, polynomial), abs=4 * std / np.sqrt(pairwise.SUBSETS))
    assert in_subsets(x, y, 0) == (value, std, size)
    assert in_subsets(x, y, 1)[0] != value
    with pytest.raises(UserError, match="at least 4"):
        in_subsets(x, y[:3], 0)


def test_bandwidth_is_the_median_distance_of_other_rows():
    assert pairwise.bandwidth(np.array([[0.0], [1], [3]]), 0) == 2  # of 1, 2 and 3
    assert pairwise.median_distance(np.ones((9, 2)), 0) == pairwise.median_distance(np.ones((1, 2)), 0) == 0
    with pytest.raises(UserError, match="embeddings are equal"):
        pairwise.bandwidth(np.ones((9, 2)), 0)
    with pytest.raises(UserError, match="embeddings are equal"):
        pairwise.bandwidth(np.ones((1, 2)), 0)


@pytest.mark.parametrize("kernel", [polynomial, gaussian(1.5)])
def test_what_a_clip_adds_is_what_is_lost_without_it(kernel, monkeypatch):
    random = np.random.default_rng(3)
    x, y = random.standard_normal((100, 3)) + 0.5, random.standard_normal((80, 3))
    value, added = discrepancy_by_clip(list(x[:, None]), list(y[:, None]), kernel)
    assert value == pytest.approx(discrepancy(x, y, kernel), abs=1e-12)
    lost = np.array([value - discrepancy(np.delete(x, row, axis=0), y, kernel) for row in range(100)])
    np.testing.assert_allclose(added.generated.sums / 98, lost, atol=0.05 * np.abs(lost).max())
    lost = np.array([value - discrepancy(x, np.delete(y, row, axis=0), kernel) for row in range(80)])
    np.testing.assert_allclose(added.reference.sums / 78, lost, atol=0.05 * np.abs(lost).max())
    monkeypatch.setattr(pairwise, "BLOCK", 300)  # three rows at a time
    again, of_clips = discrepancy_by_clip(np.split(x, [2, 2, 9, 70]), np.split(y, [30]), kernel)  # the second has no row
    assert again == pytest.approx(value, abs=1e-12)
    expected = [part.sum() for part in np.split(added.generated.sums, [2, 2, 9, 70])]
    np.testing.assert_allclose(of_clips.generated.sums, expected, atol=1e-9)


NAMES = ("precision", "recall", "density", "coverage")


def clips(rows: np.ndarray, each: int = 1) -> list[np.ndarray]:
    return list(rows.reshape(-1, each, rows.shape[1]))


def by_another(generated: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """The published definitions over whole matrices of distances, rows as clips."""
    from scipy.spatial.distance import cdist

    def radii(rows: np.ndarray) -> np.ndarray:
        return np.sort(cdist(rows, rows), axis=1)[:, pairwise.NEAREST]  # the nearest is the row itself

    apart = cdist(reference, generated)
    real = apart <= radii(reference)[:, None]
    return {
        "precision": real.any(axis=0).mean(),
        "recall": (apart <= radii(generated)).any(axis=1).mean(),
        "density": real.sum(axis=0).mean() / pairwise.NEAREST,
        "coverage": real.any(axis=1).mean(),
    }


@pytest.mark.parametrize("block", [2**22, 500])
def test_agree_with_another_implementation(block, monkeypatch):
    monkeypatch.setattr(pairwise, "BLOCK", block)
    random = np.random.default_rng(0)
    generated, reference = random.standard_normal((90, 5)) * 0.8 + 0.3, random.standard_normal((110, 5))
    for name, expected in by_another(generated, reference).items():
        assert by_neighbours(name, clips(generated), clips(reference))[0] == pytest.approx(expected, abs=1e-12)


def test_identical_sets_lie_within_each_other_and_too_few_clips_are_refused():
    rows = np.random.default_rng(1).standard_normal((30, 4)) * 1e3
    for same in (rows, np.full((30, 4), 0.1)):
        for name in ("precision", "recall", "coverage"):
            assert by_neighbours(name, clips(same), clips(same))[0] == 1
    rows = np.random.default_rng(7).standard_normal((8, 2))
    with pytest.raises(UserError, match="2 clips are too few"):
        by_neighbours("precision", clips(rows), clips(rows, 4))


def test_patches_of_one_clip_are_no_neighbours():
    """Patches that lie close together within a clip make no ball smaller: the set of clips is what it is."""
    random = np.random.default_rng(5)
    centres = random.standard_normal((40, 1, 3))
    reference = list(centres + 1e-4 * random.standard_normal((40, 8, 3)))
    generated = list(random.standard_normal((40, 8, 3)))
    assert by_neighbours("precision", generated, reference)[0] > 0.5
    assert by_neighbours("precision", [np.concatenate(generated)], [*np.concatenate(reference)[:, None]])[0] < 0.05


@pytest.mark.parametrize("name", NAMES)
def test_what_a_clip_adds_to_a_manifold_is_what_is_lost_without_it(name, monkeypatch):
    """With radii held, as the influence holds them."""
    random = np.random.default_rng(6)
    generated, reference = clips(random.standard_normal((80, 4)), 2), clips(random.standard_normal((80, 4)) + 0.7, 2)
    value, added = by_neighbours(name, generated, reference)
    owner = "generated" if name == "recall" else "reference"
    radii = pairwise._radii
    held = radii(np.concatenate({"generated": generated, "reference": reference}[owner]), pairwise._owners(np.full(40, 2)))
    for clip in range(6):
        for side, of in (("generated", added.generated), ("reference", added.reference)):
            sets = {"generated": generated, "reference": reference}
            sets[side] = sets[side][:clip] + sets[side][clip + 1 :]
            kept = np.ones(80, dtype=bool)
            kept[2 * clip : 2 * clip + 2] = side != owner
            monkeypatch.setattr(pairwise, "_radii", lambda rows, owner, kept=kept: held[kept])
            less = by_neighbours(name, sets["generated"], sets["reference"])[0]
            if name == "density" and side == "reference":
                less *= 80 / 78  # a mean over real rows of the balls about each
            monkeypatch.setattr(pairwise, "_radii", radii)
            assert of.sums[clip] / 78 == pytest.approx(value - less, abs=6e-3)
