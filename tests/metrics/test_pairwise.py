"""KID and MMD: known answers, no bias, subsets; precision, recall, density, coverage: other implementations; what a clip adds."""

import numpy as np
import pytest

from soundmill.errors import UserError
from soundmill.metrics import pairwise
from soundmill.metrics.pairwise import by_neighbours, discrepancy, discrepancy_by_clip, gaussian, in_subsets, polynomial


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [([1, -1], [1, -1], -8), ([0, 0], [1, 1], 7)],
)
def test_known_answers(x, y, expected):
    x, y = (np.array(values, dtype=np.float64)[:, None] for values in (x, y))
    assert discrepancy(x, y, polynomial) == pytest.approx(expected, abs=1e-12)
    assert discrepancy_by_clip(list(x[:, None]), list(y[:, None]), polynomial)[0] == pytest.approx(expected, abs=1e-12)


def test_gaussian_kernel_by_hand():
    x, y = np.array([[0.0, 0], [3, 4]]), np.array([[0.0, 0], [0, 1]])
    k = lambda squared: np.exp(-squared / 8)  # noqa: E731
    expected = k(25) + k(1) - (k(0) + k(1) + k(25) + k(18)) / 2
    assert discrepancy(x, y, gaussian(2)) == pytest.approx(expected, abs=1e-15)


def test_kid_is_that_of_its_definition():
    """Term by term, as torch-fidelity has it: (γ·xᵀy + 1)³ with γ = 1/d."""
    random = np.random.default_rng(0)
    x, y = random.standard_normal((6, 3)), random.standard_normal((5, 3)) + 0.5
    pairs = {"x": (x, x), "y": (y, y), "xy": (x, y)}
    k = {name: np.array([[(a @ b / 3 + 1) ** 3 for b in right] for a in left]) for name, (left, right) in pairs.items()}
    expected = (k["x"].sum() - np.trace(k["x"])) / 30 + (k["y"].sum() - np.trace(k["y"])) / 20 - 2 * k["xy"].mean()
    assert discrepancy(x, y, polynomial) == pytest.approx(expected, abs=1e-12)


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


def test_identical_sets_lie_within_each_other_even_where_all_rows_are_alike():
    rows = np.random.default_rng(1).standard_normal((30, 4)) * 1e3
    for same in (rows, np.full((30, 4), 0.1)):
        for name in ("precision", "recall", "coverage"):
            assert by_neighbours(name, clips(same), clips(same))[0] == 1


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


def test_too_few_clips_are_refused():
    rows = np.random.default_rng(7).standard_normal((8, 2))
    with pytest.raises(UserError, match="2 clips are too few"):
        by_neighbours("precision", clips(rows), clips(rows, 4))
