"""Agreement between raters."""

from typing import Literal

import numpy as np

Level = Literal["nominal", "ordinal", "interval"]


def krippendorff_alpha(ratings: np.ndarray, level: Level) -> float:
    """Krippendorff's alpha of `ratings`, (raters, units) with NaN for missing ones; units with fewer than two do not count.

    1 is perfect agreement, 0 that of chance. Undefined, NaN, if all ratings are equal. Krippendorff, Computing Krippendorff's
    Alpha-Reliability, 2011, section E.
    """
    values = np.unique(ratings[~np.isnan(ratings)])
    counts = (ratings[:, :, None] == values).sum(axis=0).astype(float)  # (units, values)
    counts = counts[counts.sum(axis=1) >= 2]
    pairable = counts.sum(axis=1)
    coincidences = (counts / (pairable - 1)[:, None]).T @ counts
    coincidences -= np.diag((counts / (pairable - 1)[:, None]).sum(axis=0))  # a rating is not paired with itself
    totals = counts.sum(axis=0)
    expected = (np.outer(totals, totals) - np.diag(totals)) / (totals.sum() - 1)
    distances = _squared_distances(values, totals, level)
    with np.errstate(invalid="ignore"):
        return float(1 - (coincidences * distances).sum() / (expected * distances).sum())


def _squared_distances(values: np.ndarray, totals: np.ndarray, level: Level) -> np.ndarray:
    if level == "nominal":
        return 1.0 - np.eye(len(values))
    if level == "ordinal":  # the number of ratings between two values, with half of those at the ends
        values = np.cumsum(totals) - totals / 2
    return np.subtract.outer(values, values) ** 2
