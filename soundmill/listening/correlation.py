"""Which scores agree with the listeners: rank correlations of scores with ratings, over models and over single sounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from soundmill.evaluation.library import rounded
from soundmill.evaluation.score_rows import BETTER, METRICS
from soundmill.metrics.bootstrap import INTERVAL

MIN_RANKED = 3  # values of a rank correlation
MIN_RESAMPLED = 5  # models of an interval over models: of fewer, resamples have too few different ones
REPLICATES = 1000
SEED = 0


@dataclass(frozen=True)
class _Draws:
    """Bootstrap resamples: how often each rater counts [B, raters], and the drawn requests [B, requests] and models [B, models]."""

    raters: np.ndarray
    requests: np.ndarray
    models: np.ndarray

    @classmethod
    def of(cls, models: int, raters: int, requests: int) -> _Draws:
        """A single rater is not resampled, nor are fewer than MIN_RESAMPLED models; a resample has MIN_RANKED models or more."""
        random = np.random.default_rng(SEED)
        heard = random.integers(raters, size=(REPLICATES, raters))
        asked = random.integers(requests, size=(REPLICATES, requests))
        drawn = np.tile(np.arange(models), (REPLICATES, 1))
        if models >= MIN_RESAMPLED:
            for row in drawn:
                row[:] = next(some for some in _resamples(random, models) if len(np.unique(some)) >= MIN_RANKED)
        times = np.stack([np.bincount(row, minlength=raters) for row in heard])
        return cls(times, asked, drawn)


def _resamples(random: np.random.Generator, count: int) -> Iterator[np.ndarray]:
    while True:
        yield random.integers(count, size=count)


def correlations(
    ratings: Mapping[str, np.ndarray],
    requests: Sequence[str],
    scores: Mapping[str, Mapping[str, float]],
    of: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> dict[str, dict[str, dict[str, Any]]]:
    """Spearman's and Kendall's rank correlations of each score with the ratings, over `models` and over `sounds`.

    `ratings` [raters, requests] are by model; `scores` are those of a model's whole set, `of` those of single sounds by request.
    Intervals (95 %) are percentiles over resamples of raters and requests and, over models, of models: so they generalise to other
    raters, requests and models. Over sounds the models are these. Raters and requests are drawn for all models at once.
    """
    values = np.stack(list(ratings.values()))
    draws = _Draws.of(*values.shape)
    means = np.einsum("br,mrq->bmq", draws.raters, values) / values.shape[1]  # by resample, model and request
    rows = np.arange(REPLICATES)[:, None]
    found: dict[str, dict[str, dict[str, Any]]] = {"models": {}, "sounds": {}}

    of_models = np.take_along_axis(means, draws.requests[:, None, :], axis=2).mean(axis=2)
    for name in sorted(set.intersection(*(set(scores[model]) for model in ratings))):
        score = np.array([scores[model][name] for model in ratings])
        resampled = (score[draws.models], of_models[rows, draws.models]) if len(score) >= MIN_RESAMPLED else None
        if one := _correlation(name, score, values.mean(axis=(1, 2)), resampled):
            found["models"][name] = one

    of_sounds = np.take_along_axis(means, draws.requests[:, None, :], axis=2).reshape(REPLICATES, -1)
    for name in sorted({name for model in ratings for by_name in of[model].values() for name in by_name}):
        score = np.array([[of[model].get(request, {}).get(name, np.nan) for request in requests] for model in ratings])
        resampled = (score[:, draws.requests].swapaxes(0, 1).reshape(REPLICATES, -1), of_sounds)
        if one := _correlation(name, score.ravel(), values.mean(axis=1).ravel(), resampled):
            found["sounds"][name] = one
    return found


def _correlation(
    name: str, score: np.ndarray, rating: np.ndarray, resampled: tuple[np.ndarray, np.ndarray] | None
) -> dict[str, Any] | None:
    """Both correlations of scores [n], NaN where unknown, with ratings [n], with intervals if there are resamples [B, n] of them;
    None if they are undefined."""
    count = int((~np.isnan(score)).sum())
    if count < MIN_RANKED or np.isnan(_spearman(score[None], rating[None])[0]):
        return None
    result: dict[str, Any] = {"count": count}
    for key, statistic in (("rho", _spearman), ("tau", _kendall)):
        result[key] = rounded(float(statistic(score[None], rating[None])[0]))
        if resampled:
            ends = np.nanpercentile(statistic(*resampled), INTERVAL)  # a resample of equal values has no order
            result |= {f"{key}_low": rounded(float(ends[0])), f"{key}_high": rounded(float(ends[1]))}
    return result | {"verdict": _verdict(name, result)}


def _spearman(score: np.ndarray, rating: np.ndarray) -> np.ndarray:
    """Of each row of values [B, n], without those whose score is NaN; NaN if either has no order."""
    from scipy.stats import rankdata

    rating = np.where(np.isnan(score), np.nan, rating)
    ranks = [rankdata(values, axis=1, nan_policy="omit") for values in (score, rating)]
    first, second = (one - np.nanmean(one, axis=1, keepdims=True) for one in ranks)
    with np.errstate(invalid="ignore"):
        return np.nansum(first * second, axis=1) / np.sqrt(np.nansum(first**2, axis=1) * np.nansum(second**2, axis=1))


def _kendall(score: np.ndarray, rating: np.ndarray) -> np.ndarray:
    """As `_spearman`, tau-b."""
    from scipy.stats import kendalltau

    return kendalltau(score, rating, axis=1, nan_policy="omit").statistic


def _verdict(name: str, result: Mapping[str, Any]) -> str:
    """`agrees` with the listeners, `contradicts` them, or `open`: the interval of rho holds 0 or is missing."""
    metric = max((one for one in METRICS if f"{name}_".startswith(f"{one}_")), key=len, default=None)
    if metric is None or "rho_low" not in result or result["rho_low"] <= 0 <= result["rho_high"]:
        return "open"
    return "agrees" if (result["rho_low"] > 0) == (BETTER[metric] == "higher") else "contradicts"
