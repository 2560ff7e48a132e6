"""Whether one model is better than another: two sets of sounds of the same prompts against one reference, paired by clip id."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from soundmill.errors import UserError
from soundmill.evaluation import bootstrap, scores
from soundmill.evaluation.scores import Metric, Side, Statistic

METRICS = tuple(scores.METRICS)  # what can be compared: all
ROUNDING = 1e-9  # of the largest value: what differs by less is equal
LEVEL = 0.05  # of p, under which a difference is more than chance


def compare(
    metric: str,
    a: Side,
    b: Side,
    reference: Side,
    *,
    seed: int,
    replicates: int,
    progress: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """`a`, `b`, their `difference` (a − b) with 95 % interval `low`, `high`, `p` of no difference, and which is `better`.

    p is that of a permutation test, in which a and b change places clip by clip: of the metric of the exchanged sets (for Fréchet
    distances see `frechet.exchanged`), of the clips' own values where the metric is a mean of them, else of
    what each clip adds to the metric of a and b together. So it holds its size however few clips there are, and of B permutations
    it is never under 1 / (B + 1) (Phipson & Smyth 2010). For the
    interval, what each clip adds to the difference is resampled, so what is easy or hard for both, and what the choice of the
    reference makes of both, cancels out; the error of FAD∞'s line is in the interval and not in p. One is better where
    `beyond_chance` says so. `progress` counts up to 1 + replicates; without replicates there is neither interval nor p.
    """
    kind = scores.find(metric)
    _check_partners(a, b)
    (a, b), warnings = scores.bounded(metric, [a, b], "generated", seed)
    (reference,), reference_warnings = scores.bounded(metric, [reference], "reference", seed)
    first, second = (kind.statistic(side, reference, seed) for side in (a, b))
    difference = first.value - second.value
    result = {"a": first.value, "b": second.value, "difference": difference, "clips": len(a.ids)}
    own = (f"{name}: {text}" for name, part in (("a", first), ("b", second)) for text in part.warnings)
    warnings = (*own, *warnings, *reference_warnings)
    _check_values(first, second)
    progress(1)
    if replicates:
        moved = scores.resampled(first.influence() - second.influence(), seed, replicates, progress)
        error = float(np.hypot(first.error, second.error))
        if kind.exchanged:
            p = of_exchanges(kind.exchanged(a, b, reference, seed, exchanges(len(a.ids), seed, replicates)))
        else:
            by_clip = _by_value(first.of, second.of) if first.of and second.of else _by_influence(kind, a, b, reference, seed)
            p = permutation(by_clip, seed, replicates)
        lower, higher = ("a", "b") if difference < 0 else ("b", "a")
        better = lower if kind.better == "lower" else higher
        result |= bootstrap.interval(difference, moved, -np.inf, np.inf, error)
        result |= {"p": p, "better": better if beyond_chance(p, result["low"], result["high"]) else "neither"}
    return result | {"warnings": list(warnings)}


def beyond_chance(p: float, low: float, high: float) -> bool:
    """Whether a difference with this p and 95 % interval is more than chance: p is below LEVEL and the interval leaves out zero.

    Sets that differ in their spread alone may have a small p.
    """
    return p < LEVEL and not low <= 0 <= high


def holm(p: Sequence[float]) -> list[float]:
    """p of several tests, corrected for their number (Holm 1979)."""
    corrected, highest = [0.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=lambda index: p[index])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[index]))
        corrected[index] = highest
    return corrected


def _check_partners(a: Side, b: Side) -> None:
    for side, other, name in ((a, b, "a"), (b, a, "b")):
        lonely = sorted(set(side.ids) - set(other.ids))
        if lonely:
            more = f" and {len(lonely) - 10} more" if len(lonely) > 10 else ""
            raise UserError(
                f"only {name} has {', '.join(lonely[:10])}{more}; a comparison needs the same clip ids, none is skipped"
            )


def _check_values(first: Statistic, second: Statistic) -> None:
    lonely = sorted(set(first.of or ()) ^ set(second.of or ()))
    if lonely:
        raise UserError(
            f"{', '.join(lonely[:10])}: one of both sounds is too short for this metric, so they cannot be compared by it"
        )


def _by_value(first: Mapping[str, float], second: Mapping[str, float]) -> np.ndarray:
    return np.array([first[clip_id] - second[clip_id] for clip_id in sorted(first)])


def _by_influence(kind: Metric, a: Side, b: Side, reference: Side, seed: int) -> np.ndarray:
    """What each clip of a adds to the metric of both sets together more than that of b."""

    def both() -> Iterator[tuple[str, np.ndarray]]:
        for name, side in (("a", a), ("b", b)):
            yield from ((f"{name} {clip_id}", patches) for clip_id, patches in side.frames())

    logits = {f"{name} {clip_id}": row for name, side in (("a", a), ("b", b)) for clip_id, row in side.logits.items()}
    together = Side(tuple(f"{name} {clip_id}" for name in "ab" for clip_id in a.ids), both, logits)
    sums = kind.statistic(together, reference, seed).influence().generated.sums  # in the order of ids: all of a, all of b
    differences = sums[: len(a.ids)] - sums[len(a.ids) :]
    differences[np.abs(differences) <= ROUNDING * np.abs(sums).max()] = 0  # else equal sounds had signs to exchange
    return differences


def permutation(differences: np.ndarray, seed: int, replicates: int) -> float:
    """p of paired differences [N]: the share of random exchanges of the two of each pair that make the sum as large, either way."""
    least = abs(differences.sum()) * (1 - 1e-12)  # sums in another order differ in their last bits
    extreme = 0
    for number in range(replicates):
        signs = _places(seed, number, len(differences)) * 2 - 1
        extreme += bool(abs(signs @ differences) >= least)
    return (1 + extreme) / (1 + replicates)


def exchanges(pairs: int, seed: int, replicates: int) -> np.ndarray:
    """Which of a pair is in the first set [1 + replicates, pairs] float32: at first all of them its own, then at random."""
    chosen = np.ones((1 + replicates, pairs), np.float32)
    chosen[1:] = [_places(seed, number, pairs) for number in range(replicates)]
    return chosen


def of_exchanges(values: np.ndarray) -> float:
    """p of a metric [2, 1 + B] of both sets, at first as they are, then exchanged: the share after which they are as far apart."""
    apart = np.abs(values[0] - values[1])
    return float(np.mean(apart >= apart[0] - ROUNDING * np.abs(values).max()))


def _places(seed: int, number: int, pairs: int) -> np.ndarray:
    """1 for each pair whose two stay where they are in an exchange, 0 for one whose two change places."""
    return np.random.default_rng([seed, 1, number]).integers(0, 2, pairs)
