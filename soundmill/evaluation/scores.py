"""Every metric under one call: the embeddings of two sets of sounds in, a value with its interval and warnings out.

A metric is a `Statistic`: its value, and what each clip adds to it (bootstrap.Influence), of which intervals and comparisons are
made. Memory is O(d²) and does not grow with the clips, but for one number of each; metrics that compare embeddings pair by pair,
whose time grows with their square, rest on a seeded part of a large set, with a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np

from soundmill import hashing
from soundmill.errors import UserError
from soundmill.evaluation import bootstrap, coverage, frechet, inception, kernels
from soundmill.evaluation.bootstrap import Influence
from soundmill.evaluation.divergence import check_pairs, paired_kl
from soundmill.params import did_you_mean

ROWS_PER_DIMENSION = 10  # fewer embeddings than this make a Fréchet distance mostly bias
STRAIGHT = 4  # embeddings per dimension from which on FAD∞'s line is one
MOST_ROWS = 10_000  # of a set whose embeddings are compared pair by pair


@dataclass(frozen=True)
class Side:
    """One embedder's embeddings of a set of sounds; every call of `frames` streams (clip id, patches [P, D]) of every clip once.

    Ids may come in any order and are kept sorted; logits [K] are by id, and none where the embedder is no classifier. A clip of no
    patch adds nothing to a metric of patches.
    """

    ids: tuple[str, ...]
    frames: Callable[[], Iterable[tuple[str, np.ndarray]]]
    logits: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(set(self.ids)) < len(self.ids):
            twice = sorted({clip_id for clip_id in self.ids if self.ids.count(clip_id) > 1})
            raise UserError(f"clip {', '.join(twice[:10])} is there twice; each clip counts once")
        object.__setattr__(self, "ids", tuple(sorted(self.ids)))

    @classmethod
    def of(cls, frames: Mapping[str, np.ndarray], logits: Mapping[str, np.ndarray] | None = None) -> Side:
        """A set that is in memory."""
        return cls(tuple(frames), frames.items, logits or {})

    def only(self, ids: Iterable[str]) -> Side:
        """The clips of these ids."""
        kept = frozenset(ids)
        logits = {clip_id: self.logits[clip_id] for clip_id in kept if clip_id in self.logits}
        return Side(tuple(kept), lambda: (item for item in self.frames() if item[0] in kept), logits)

    def stream(self) -> Iterator[tuple[str, np.ndarray]]:
        """(clip id, patches) in the stream's order; a clip that is not the set's, twice, missing or not finite raises UserError."""
        waiting = set(self.ids)
        for clip_id, patches in self.frames():
            if clip_id not in waiting:
                raise UserError(f"clip {clip_id} is streamed twice or is none of the set's; each clip counts once")
            waiting.remove(clip_id)
            if not np.isfinite(patches).all():
                raise UserError(f"embeddings of clip {clip_id} are not finite; the sound or the weights are at fault")
            yield clip_id, patches
        if waiting:
            raise UserError(f"no embeddings of clip {', '.join(sorted(waiting)[:10])}; no part of a set is ever scored alone")

    def clips(self) -> list[np.ndarray]:
        """Patches of every clip, in the order of the ids."""
        held = dict(self.stream())
        if not held:
            raise UserError("no embeddings to compare: there is no sound, or none is long enough for a patch")
        return [held[clip_id] for clip_id in self.ids]

    def clip_logits(self) -> ClipLogits:
        """Logits of every clip, in the order of the ids."""
        return ClipLogits(self.ids, self.logits)


@dataclass(frozen=True)
class ClipLogits(Mapping[str, np.ndarray]):
    """Logits by clip id, looked up at each access; a missing or empty one raises UserError."""

    ids: tuple[str, ...]
    logits: Mapping[str, np.ndarray]

    def __getitem__(self, clip_id: str) -> np.ndarray:
        logits = self.logits.get(clip_id, ())
        if not len(logits):
            raise UserError(f"no logits of clip {clip_id}: this metric needs an embedder that is a classifier")
        return logits

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Statistic:
    """A metric of two sets; `influence` is called only for an interval."""

    value: float
    influence: Callable[[], Influence]
    extras: Mapping[str, Any] = field(default_factory=dict)
    of: Mapping[str, float] | None = None  # by clip id
    error: float = 0.0  # a standard error that the choice of clips does not show
    warnings: tuple[str, ...] = ()


# The metric [2, B] of both sets after each of B exchanges of partners: of two sets with equal ids, the reference and the seed, and
# which clip of a pair is in the first set [B, N], 1 the first set's own and 0 its partner.
Exchanged = Callable[[Side, Side, Side, int, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Metric:
    """A metric; `description` stands beside its numbers in reports."""

    description: str
    better: Literal["lower", "higher"]
    statistic: Callable[[Side, Side, int], Statistic]
    least: float = -np.inf
    most: float = np.inf
    paired: bool = False  # ids of both sides have to agree
    needs_logits: bool = False
    pairwise: bool = False  # compares embeddings pair by pair, so it rests on a part of a large set
    exchanged: Exchanged | None = None  # of one whose difference is no sum of what single clips add


def _frechet(generated: Side, reference: Side, seed: int) -> Statistic:
    first, second = _gathered(generated, reference)
    bias, warnings = _bias(first, second, seed)
    return Statistic(first.distance(second), _influence(first, second, generated, reference), bias, warnings=warnings)


def _gathered(*sides: Side) -> list[frechet.Gathered]:
    return [frechet.Gathered.over(side.stream, side.ids) for side in sides]


def _influence(first: frechet.Gathered, second: frechet.Gathered, generated: Side, reference: Side) -> Callable[[], Influence]:
    streams, ids = (generated.stream, reference.stream), (generated.ids, reference.ids)
    return partial(frechet.influence, first, second, streams, ids)


def _bias(first: frechet.Gathered, second: frechet.Gathered, seed: int) -> tuple[dict[str, float], tuple[str, ...]]:
    """What two sets of one Gaussian are apart, where there are few embeddings, and the warning that says so."""
    size, counts = len(first.mean), (first.count, second.count)
    if min(counts) >= ROWS_PER_DIMENSION * size:
        return {}, ()
    bias = frechet.of_equal_sets(second.spectrum(), counts, seed)
    least = "at least " if counts[1] < size else ""  # directions that so few rows do not show would add to it
    return {"bias": bias}, (
        f"{counts[0]} generated and {counts[1]} reference embeddings of {size} dimensions "
        f"(fewer than {ROWS_PER_DIMENSION} × {size}): two sets of these sizes from one Gaussian with the reference's covariance "
        f"are {least}{bias:.3g} apart. Compare only with scores of as many clips.",
    )


def _frechet_without_bias(generated: Side, reference: Side, seed: int) -> Statistic:
    first, second = _gathered(generated, reference)
    line = frechet.without_bias(generated.stream, generated.ids, second, seed)
    warnings = []
    size = len(first.mean)
    if first.count < STRAIGHT * size:
        warnings.append(
            f"FAD∞ of {first.count} generated embeddings of {size} dimensions, fewer than {STRAIGHT} × {size}: "
            "distances of so small subsets do not follow a line in 1/n, and what is left of the bias is large."
        )
    if second.count < ROWS_PER_DIMENSION * size:
        warnings.append(
            f"FAD∞ keeps the bias of its {second.count} reference embeddings, fewer than {ROWS_PER_DIMENSION} × {size}."
        )
    extras = {"r2": line.r2, "error": line.error}
    return Statistic(
        line.value, _influence(first, second, generated, reference), extras, error=line.error, warnings=tuple(warnings)
    )


def _frechet_by_clip(generated: Side, reference: Side, seed: int) -> Statistic:
    (second,) = _gathered(reference)
    of = frechet.by_clip(generated.stream, second)
    if not of:
        raise UserError("no generated clip has two patches and more, which its own Fréchet distance needs; leave out fad_per_clip")
    left_out = len(generated.ids) - len(of)
    warning = f"{left_out} of {len(generated.ids)} generated clips have fewer than two patches, so no distance of their own."
    return _mean(of, {"left_out": left_out}, (warning,) if left_out else ())


def _mean(of: Mapping[str, float], extras: Mapping[str, Any] | None = None, warnings: tuple[str, ...] = ()) -> Statistic:
    values = np.array([of[clip_id] for clip_id in sorted(of)])
    influence = Influence(bootstrap.Side.of(values))
    return Statistic(float(values.mean()), lambda: influence, extras or {}, of, warnings=warnings)


def _kl(generated: Side, reference: Side, seed: int) -> Statistic:
    check_pairs(dict.fromkeys(reference.ids), dict.fromkeys(generated.ids))
    return _mean(paired_kl(reference.clip_logits(), generated.clip_logits()))


def _clap_score(generated: Side, reference: Side, seed: int) -> Statistic:
    check_pairs(dict.fromkeys(reference.ids), dict.fromkeys(generated.ids))
    waiting: tuple[dict[str, np.ndarray], ...] = ({}, {})  # for their partners: none for long where both come in one order
    cosines = {}
    for pair in zip(_directions(generated, "sound"), _directions(reference, "prompt"), strict=True):
        for own, other, (clip_id, direction) in zip(waiting, waiting[::-1], pair, strict=True):
            if clip_id in other:
                cosines[clip_id] = float(direction @ other.pop(clip_id))
            else:
                own[clip_id] = direction
    return _mean(cosines)


def _directions(side: Side, what: str) -> Iterator[tuple[str, np.ndarray]]:
    """Of every clip the mean of its patches, of unit length, in the stream's order."""
    for clip_id, patches in side.stream():
        total = np.asarray(patches, dtype=np.float64).sum(axis=0)
        length = np.linalg.norm(total)
        if not length > 0:
            raise UserError(f"clip {clip_id}: the embedding of its {what} has no direction, so no cosine")
        yield clip_id, total / length


def _inception(generated: Side, reference: Side, seed: int) -> Statistic:
    logits = generated.clip_logits()
    value, std, splits = inception.in_splits(logits, seed)
    return Statistic(value, lambda: inception.influence(logits), {"std": std, "splits": splits})


def _frechet_exchanged(a: Side, b: Side, reference: Side, seed: int, chosen: np.ndarray) -> np.ndarray:
    return frechet.exchanged((a.stream, b.stream, reference.stream), a.ids, chosen)


def _kid(generated: Side, reference: Side, seed: int) -> Statistic:
    first, second = generated.clips(), reference.clips()
    value, std, size = kernels.in_subsets(*(np.concatenate(clips, dtype=np.float64) for clips in (first, second)), seed)
    return Statistic(
        value,
        lambda: kernels.discrepancy_by_clip(first, second, kernels.polynomial)[1],
        {"std": std, "subset": size},
        error=std / np.sqrt(kernels.SUBSETS),
    )


def _mmd(generated: Side, reference: Side, seed: int) -> Statistic:
    first, second = generated.clips(), reference.clips()
    bandwidth = _bandwidth(second, seed)
    value, influence = kernels.discrepancy_by_clip(first, second, kernels.gaussian(bandwidth))
    return Statistic(value, lambda: influence, {"bandwidth": bandwidth})


def _kid_exchanged(a: Side, b: Side, reference: Side, seed: int, chosen: np.ndarray) -> np.ndarray:
    return kernels.exchanged(a.clips(), b.clips(), reference.clips(), kernels.polynomial, chosen)


def _bandwidth(reference: Sequence[np.ndarray], seed: int) -> float:
    return kernels.median_distance(np.concatenate(reference, dtype=np.float64), seed)


def _mmd_exchanged(a: Side, b: Side, reference: Side, seed: int, chosen: np.ndarray) -> np.ndarray:
    clips = reference.clips()
    return kernels.exchanged(a.clips(), b.clips(), clips, kernels.gaussian(_bandwidth(clips, seed)), chosen)


def _neighbours(name: coverage.Name, generated: Side, reference: Side, seed: int) -> Statistic:
    value, influence = coverage.by_neighbours(name, generated.clips(), reference.clips())
    return Statistic(value, lambda: influence)


def _neighbours_exchanged(
    name: Literal["recall", "coverage"], a: Side, b: Side, reference: Side, seed: int, chosen: np.ndarray
) -> np.ndarray:
    return coverage.exchanged(name, a.clips(), b.clips(), reference.clips(), chosen)


METRICS = {
    "fad": Metric("Fréchet distance of all patches' embeddings", "lower", _frechet, least=0, exchanged=_frechet_exchanged),
    "fad_inf": Metric(
        "Fréchet distance extrapolated to infinitely many generated embeddings",
        "lower",
        _frechet_without_bias,
        exchanged=_frechet_exchanged,  # the bias that it takes off is the same for as many embeddings
    ),
    "fad_per_clip": Metric(
        "mean over generated clips of the Fréchet distance of a clip's own patches from the reference",
        "lower",
        _frechet_by_clip,
        least=0,
    ),
    "fd": Metric("Fréchet distance of all clips' embeddings", "lower", _frechet, least=0, exchanged=_frechet_exchanged),
    "kl": Metric(
        "KL(reference ‖ generated) of the softmaxed logits, ε = 1e-6, mean over pairs of equal clip id, in nats",
        "lower",
        _kl,
        paired=True,
        needs_logits=True,
    ),
    "is": Metric("exp of the mean KL(p ‖ mean p) of the softmaxed logits", "higher", _inception, least=1, needs_logits=True),
    "kid": Metric(
        "unbiased squared MMD with the kernel (xᵀy/d + 1)³, mean over subsets",
        "lower",
        _kid,
        pairwise=True,
        exchanged=_kid_exchanged,
    ),
    "mmd": Metric(
        "unbiased squared MMD with a Gaussian kernel as wide as the reference's median distance",
        "lower",
        _mmd,
        pairwise=True,
        exchanged=_mmd_exchanged,
    ),
    "clap_score": Metric("cosine of sound and prompt, mean over clips", "higher", _clap_score, least=-1, most=1, paired=True),
    "precision": Metric(
        "share of generated embeddings near a real one", "higher", partial(_neighbours, "precision"), 0, 1, pairwise=True
    ),
    "recall": Metric(
        "share of real embeddings near a generated one",
        "higher",
        partial(_neighbours, "recall"),
        0,
        1,
        pairwise=True,
        exchanged=partial(_neighbours_exchanged, "recall"),
    ),
    "density": Metric(
        "real neighbourhoods that a generated embedding is in, in k-ths",
        "higher",
        partial(_neighbours, "density"),
        0,
        pairwise=True,
    ),
    "coverage": Metric(
        "share of real neighbourhoods that a generated embedding is in",
        "higher",
        partial(_neighbours, "coverage"),
        0,
        1,
        pairwise=True,
        exchanged=partial(_neighbours_exchanged, "coverage"),
    ),
}


def find(metric: str) -> Metric:
    """The metric of that name; none raises UserError."""
    if metric not in METRICS:
        raise UserError(f"unknown metric {metric!r}{did_you_mean(metric, list(METRICS))}; there are {', '.join(METRICS)}")
    return METRICS[metric]


def bounded(metric: str, sides: Sequence[Side], what: str, seed: int) -> tuple[list[Side], tuple[str, ...]]:
    """Sides of equal ids as a pairwise metric takes them: all of their clips, or a seeded part, and then a warning."""
    if not METRICS[metric].pairwise:
        return list(sides), ()
    lengths = dict.fromkeys(sides[0].ids, 0)
    for side in sides:
        for clip_id, patches in side.stream():
            lengths[clip_id] = max(lengths[clip_id], len(patches))
    if sum(lengths.values()) <= MOST_ROWS:
        return list(sides), ()
    fitting = [clip_id for clip_id in lengths if lengths[clip_id] <= MOST_ROWS]
    if not fitting:
        raise UserError(f"every {what} clip has more than {MOST_ROWS} embeddings, too many to be compared pair by pair; cut them")
    ranked = hashing.hash_order(fitting, "pairs", seed)
    rows = np.cumsum([lengths[clip_id] for clip_id in ranked])
    kept = ranked[: int(np.searchsorted(rows, MOST_ROWS, side="right"))]
    warning = (
        f"{metric} rests on {len(kept)} of {len(lengths)} {what} clips, chosen by the seed: "
        f"no more than {MOST_ROWS} embeddings are compared pair by pair."
    )
    return [side.only(kept) for side in sides], (warning,)


def compute(
    metric: str,
    generated: Side,
    reference: Side,
    *,
    seed: int,
    replicates: int,
    progress: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """`value`, the ends `low` and `high` of its 95 % interval (none without replicates), `warnings`, and the metric's extras.

    Numbers beside these are flat; `of` (clip id → value) is there where the metric is a mean over clips. `progress` counts up to
    1 + replicates. Whatever the order of ids and streams, results agree to rounding.
    """
    kind = find(metric)
    (generated,), warnings = bounded(metric, [generated], "generated", seed)
    (reference,), reference_warnings = bounded(metric, [reference], "reference", seed)
    statistic = kind.statistic(generated, reference, seed)
    progress(1)
    result = {"value": statistic.value, "warnings": [*statistic.warnings, *warnings, *reference_warnings], **statistic.extras}
    if replicates:
        moved = resampled(statistic.influence(), seed, replicates, progress)
        result |= bootstrap.interval(statistic.value, moved, kind.least, kind.most, statistic.error)
    if statistic.of is not None:
        result["of"] = dict(statistic.of)
    return result


def mean_with_interval(of: Mapping[str, float], seed: int, replicates: int) -> dict[str, Any]:
    """As `compute`, of a metric that is the mean of values by clip id."""
    statistic = _mean(of)
    result = {"value": statistic.value, "of": dict(of)}
    if replicates:
        moved = resampled(statistic.influence(), seed, replicates, lambda count: None)
        result |= bootstrap.interval(statistic.value, moved, -np.inf, np.inf)
    return result


def resampled(influence: Influence, seed: int, replicates: int, progress: Callable[[int], None]) -> np.ndarray:
    """By how much the metric moves in each replicate [replicates]."""
    moved = []
    for value in influence.moved(seed, replicates):
        moved.append(value)
        progress(1)
    return np.array(moved)
