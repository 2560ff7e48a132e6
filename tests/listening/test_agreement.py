"""Agreement between raters, by known answers."""

import math

import numpy as np
import pytest

from soundmill.listening.agreement import krippendorff_alpha

_ = math.nan
OBSERVERS = np.array(  # four observers of twelve units: Krippendorff, Computing Krippendorff's Alpha-Reliability, 2011, section C
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
        [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
    ]
)


@pytest.mark.parametrize(("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_krippendorffs_own_example(level, alpha):
    assert krippendorff_alpha(OBSERVERS, level) == pytest.approx(alpha, abs=5e-4)


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
def test_agreement_is_one_if_perfect_and_about_zero_by_chance(level):
    ratings = np.random.default_rng(0).integers(1, 6, (3, 4000)).astype(float)
    assert krippendorff_alpha(ratings, level) == pytest.approx(0.0, abs=0.02)
    assert krippendorff_alpha(np.tile(ratings[:1], (3, 1)), level) == 1.0
    assert krippendorff_alpha(ratings[::-1], level) == pytest.approx(krippendorff_alpha(ratings, level))  # raters have no order
    assert math.isnan(krippendorff_alpha(np.ones((2, 5)), level))
