"""Precision, recall, density and coverage: by hand, against another implementation, in degenerate sets, what each clip adds."""

import numpy as np
import pytest

from soundmill.errors import UserError
from soundmill.metrics import coverage
from soundmill.metrics.coverage import by_neighbours

NAMES = ("precision", "recall", "density", "coverage")


def clips(rows: np.ndarray, each: int = 1) -> list[np.ndarray]:
    return list(rows.reshape(-1, each, rows.shape[1]))


def by_another(generated: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """The published definitions over whole matrices of distances, rows as clips."""
    from scipy.spatial.distance import cdist

    def radii(rows: np.ndarray) -> np.ndarray:
        return np.sort(cdist(rows, rows), axis=1)[:, coverage.NEAREST]  # the nearest is the row itself

    apart = cdist(reference, generated)
    real = apart <= radii(reference)[:, None]
    return {
        "precision": real.any(axis=0).mean(),
        "recall": (apart <= radii(generated)).any(axis=1).mean(),
        "density": real.sum(axis=0).mean() / coverage.NEAREST,
        "coverage": real.any(axis=1).mean(),
    }


@pytest.mark.parametrize("block", [2**22, 500])
def test_agree_with_another_implementation(block, monkeypatch):
    monkeypatch.setattr(coverage, "BLOCK", block)
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
def test_what_a_clip_adds_is_what_is_lost_without_it(name, monkeypatch):
    """With radii held, as the influence holds them."""
    random = np.random.default_rng(6)
    generated, reference = clips(random.standard_normal((80, 4)), 2), clips(random.standard_normal((80, 4)) + 0.7, 2)
    value, added = by_neighbours(name, generated, reference)
    radii = coverage._radii
    held = {len(part): radii(np.concatenate(part), coverage._owners(np.full(40, 2))) for part in (generated, reference)}
    for clip in range(6):
        for side, of in (("generated", added.generated), ("reference", added.reference)):
            sets = {"generated": generated, "reference": reference}
            owner = sets["generated"] if name == "recall" else sets["reference"]
            held = radii(np.concatenate(owner), coverage._owners(np.full(40, 2)))
            sets[side] = sets[side][:clip] + sets[side][clip + 1 :]
            kept = np.ones(80, dtype=bool)
            if owner is {"generated": generated, "reference": reference}[side]:
                kept[2 * clip : 2 * clip + 2] = False
            monkeypatch.setattr(coverage, "_radii", lambda rows, owner, held=held, kept=kept: held[kept])
            less = by_neighbours(name, sets["generated"], sets["reference"])[0]
            if name == "density" and side == "reference":
                less *= 80 / 78  # a mean over real rows of the balls about each
            monkeypatch.setattr(coverage, "_radii", radii)
            assert of.sums[clip] / 78 == pytest.approx(value - less, abs=6e-3)


def test_too_few_clips_are_refused():
    rows = np.random.default_rng(7).standard_normal((8, 2))
    with pytest.raises(UserError, match="2 clips are too few"):
        by_neighbours("precision", clips(rows), clips(rows, 4))
