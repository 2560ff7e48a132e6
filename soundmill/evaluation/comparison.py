"""Is one model really better than another? Two sets of sounds of the same prompts against one reference, paired by clip id."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from soundmill.errors import UserError
from soundmill.evaluation import resampling, scores
from soundmill.evaluation.scores import Side, Statistic

METRICS = tuple(scores.METRICS)  # what can be compared: all
LEVEL = 0.05  # of p, under which one of them is called better


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

    Every replicate draws the same clips of a, b and, where it is another set, of the reference: what is easy or hard for both, and
    what the choice of the reference makes of both, cancels out. Where the metric is a mean over clips, p is that of a permutation
    test, in which a and b change places clip by clip; else of how often the resampled differences are as far from their own mean as
    the measured one is from zero. Both have the one and two sides of Phipson & Smyth (2010): p is never zero. `progress` counts up
    to 1 + replicates; without replicates there is neither interval nor p.
    """
    kind = scores.find(metric)
    _check_partners(a, b)
    (a, b), said = scores.bounded(metric, [a, b], "generated", seed)
    (reference,), more = scores.bounded(metric, [reference], "reference", seed)
    first, second = (kind.statistic(side, reference, seed) for side in (a, b))
    difference = first.value - second.value
    found = {"a": first.value, "b": second.value, "difference": difference, "clips": len(a.ids)}
    said = [f"{name}: {text}" for name, part in (("a", first), ("b", second)) for text in part.warnings] + [*said, *more]
    progress(1)
    if replicates:
        drawn = _resampled(first, second, seed, replicates, progress)
        error = float(np.hypot(first.error, second.error))
        p = _by_places(first.of, second.of, seed, replicates) if first.of is not None else _by_spread(difference, drawn, error)
        lower = "a" if difference < 0 else "b"
        better = {"lower": lower, "higher": "ab"[lower == "a"]}[kind.better]
        found |= resampling.interval(difference, drawn, -np.inf, np.inf, error)
        found |= {"p": p, "better": better if p < LEVEL else "neither"}
    return found | {"warnings": said}


def _check_partners(a: Side, b: Side) -> None:
    for side, other, name in ((a, b, "a"), (b, a, "b")):
        lonely = sorted(set(side.ids) - set(other.ids))
        if lonely:
            more = f" and {len(lonely) - 10} more" if len(lonely) > 10 else ""
            raise UserError(
                f"only {name} has {', '.join(lonely[:10])}{more}; a comparison needs the same clip ids, none is skipped"
            )


def _resampled(first: Statistic, second: Statistic, seed: int, replicates: int, progress: Callable[[int], None]) -> np.ndarray:
    if first.of is not None and set(first.of) != set(second.of or {}):
        lonely = sorted(set(first.of) ^ set(second.of or {}))
        raise UserError(f"{', '.join(lonely[:10])}: the metric can be had of one of both sounds only, so it cannot be compared")
    lengths = [np.minimum(*parts) for parts in zip(first.lengths, second.lengths, strict=True)]
    drawn = []
    for weights in resampling.blocks(seed, replicates, lengths):
        drawn.append(first.under(*weights) - second.under(*weights))
        progress(len(weights[0]))
    return np.concatenate(drawn)


def _by_spread(difference: float, drawn: np.ndarray, error: float) -> float:
    """Share of resampled differences as far from their mean as the difference is from zero."""
    away = drawn - drawn.mean()
    if error:
        away = away * np.hypot(1, error / max(away.std(), np.finfo(float).tiny))
    return _share(np.abs(away) >= abs(difference))


def _by_places(first: Mapping[str, float], second: Mapping[str, float] | None, seed: int, replicates: int) -> float:
    """Share of random exchanges of the two clips of a pair after which the mean difference is as large."""
    differences = np.array([first[clip_id] - second[clip_id] for clip_id in sorted(first)])
    least = abs(differences.sum()) * (1 - 1e-12)  # sums in another order differ in their last bits
    found = []
    for start in range(0, replicates, resampling.BLOCK):
        numbers = range(start, min(start + resampling.BLOCK, replicates))
        signs = [np.random.default_rng([seed, 1, number]).integers(0, 2, len(differences)) * 2 - 1 for number in numbers]
        found.append(np.abs(np.stack(signs) @ differences) >= least)
    return _share(np.concatenate(found))


def _share(extreme: np.ndarray) -> float:
    return float((1 + extreme.sum()) / (1 + len(extreme)))
