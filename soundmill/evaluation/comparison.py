"""Whether one model is better than another: two sets of sounds for the same prompts against one reference, paired by clip id."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from soundmill.errors import UserError, first_of
from soundmill.metrics import bootstrap, scores
from soundmill.metrics.scores import EmbeddingSet, Metric

ROUNDING = 1e-9  # relative to the largest value; smaller differences count as zero
LEVEL = 0.05  # of significance


def compare(
    metric: str,
    a: EmbeddingSet,
    b: EmbeddingSet,
    reference: EmbeddingSet,
    *,
    seed: int,
    replicates: int,
    progress: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """`a`, `b`, their `difference` (a − b) with 95 % interval `low`, `high`, `p` of no difference, and which is `better`.

    p is from a permutation test that swaps a and b clip by clip. The test statistic is the metric of the exchanged sets (for
    Fréchet distances see `frechet.exchanged`); for a metric that is a mean over clips, their values; else the clips' influences on
    the metric of a and b together. The test is exact for any number of clips, and with B permutations p ≥ 1 / (B + 1) (Phipson &
    Smyth 2010). The interval resamples the clips' influences on the difference, so the difficulty of a clip and the choice of the
    reference, which affect both sets, cancel. The error of FAD∞'s fit is in the interval, not in p. For `better` see
    `beyond_chance`. `progress` counts up to 1 + replicates; without replicates there is neither interval nor p.
    """
    kind = scores.METRICS[metric]
    for side, other, name in ((a, b, "a"), (b, a, "b")):
        if unpaired := sorted(set(side.ids) - set(other.ids)):
            raise UserError(f"only {name} has {first_of(unpaired)}; a comparison needs equal clip ids, none is skipped")
    (a, b), warnings = scores.bounded(metric, [a, b], "generated", seed)
    (reference,), reference_warnings = scores.bounded(metric, [reference], "reference", seed)
    first, second = (kind.statistic(side, reference, seed) for side in (a, b))
    difference = first.value - second.value
    result = {"a": first.value, "b": second.value, "difference": difference, "clips": len(a.ids)}
    of_sides = (f"{name}: {text}" for name, part in (("a", first), ("b", second)) for text in part.warnings)
    warnings = (*of_sides, *warnings, *reference_warnings)
    values = [dict(sorted((part.of or {}).items())) for part in (first, second)]  # of single clips, if the metric is their mean
    if unpaired := sorted(values[0].keys() ^ values[1].keys()):
        raise UserError(f"{first_of(unpaired)}: one of the two sounds is too short for this metric")
    progress(1)
    if replicates:
        shifts = (first.influence() - second.influence()).shifts(seed, replicates, progress)
        error = float(np.hypot(first.error, second.error))
        if kind.exchanged:
            p = p_of_exchanges(kind.exchanged(a, b, reference, seed, exchanges(len(a.ids), seed, replicates)))
        elif values[0]:
            p = permutation(np.subtract(*(list(of.values()) for of in values)), seed, replicates)
        else:
            p = permutation(_by_influence(kind, a, b, reference, seed), seed, replicates)
        lower, higher = ("a", "b") if difference < 0 else ("b", "a")
        better = lower if kind.better == "lower" else higher
        result |= bootstrap.interval(difference, shifts, -np.inf, np.inf, error)
        result |= {"p": p, "better": better if beyond_chance(p, result["low"], result["high"]) else "neither"}
    return result | {"warnings": list(warnings)}


def beyond_chance(p: float, low: float, high: float) -> bool:
    """Whether p is below LEVEL and the 95 % interval excludes zero: sets that differ only in their spread may have a small p."""
    return p < LEVEL and not low <= 0 <= high


def holm(p: Sequence[float]) -> list[float]:
    """p values of several tests, corrected for their number (Holm 1979)."""
    corrected, highest = [0.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=lambda index: p[index])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[index]))
        corrected[index] = highest
    return corrected


def _by_influence(kind: Metric, a: EmbeddingSet, b: EmbeddingSet, reference: EmbeddingSet, seed: int) -> np.ndarray:
    """Difference between the influences of each clip of a and of b on the metric of both sets together."""

    def both() -> Iterator[tuple[str, np.ndarray]]:
        for name, side in (("a", a), ("b", b)):
            yield from ((f"{name} {clip_id}", patches) for clip_id, patches in side.frames())

    logits = {f"{name} {clip_id}": row for name, side in (("a", a), ("b", b)) for clip_id, row in side.logits.items()}
    together = EmbeddingSet(tuple(f"{name} {clip_id}" for name in "ab" for clip_id in a.ids), both, logits)
    sums = kind.statistic(together, reference, seed).influence().generated.sums  # sorted by id: all of a, then all of b
    differences = sums[: len(a.ids)] - sums[len(a.ids) :]
    differences[np.abs(differences) <= ROUNDING * np.abs(sums).max()] = 0  # equal sounds have no sign to exchange
    return differences


def permutation(differences: np.ndarray, seed: int, replicates: int) -> float:
    """Two-sided p of paired differences [N]: the share of random sign changes whose sum is at least as large."""
    least = abs(differences.sum()) * (1 - 1e-12)  # sums in another order differ in the last bits
    extreme = 0
    for number in range(replicates):
        signs = _kept(seed, number, len(differences)) * 2 - 1
        extreme += bool(abs(signs @ differences) >= least)
    return (1 + extreme) / (1 + replicates)


def exchanges(pairs: int, seed: int, replicates: int) -> np.ndarray:
    """Random exchanges [1 + replicates, pairs] float32: 1 keeps a pair, 0 swaps it; the first row swaps none."""
    chosen = np.ones((1 + replicates, pairs), np.float32)
    chosen[1:] = [_kept(seed, number, pairs) for number in range(replicates)]
    return chosen


def p_of_exchanges(values: np.ndarray) -> float:
    """p from the metric of both sets [2, 1 + B], first as they are: the share of exchanges with at least as large a difference."""
    differences = np.abs(values[0] - values[1])
    return float(np.mean(differences >= differences[0] - ROUNDING * np.abs(values).max()))


def _kept(seed: int, number: int, pairs: int) -> np.ndarray:
    return np.random.default_rng([seed, 1, number]).integers(0, 2, pairs)
