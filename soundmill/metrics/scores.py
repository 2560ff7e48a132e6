"""All metrics behind one call: the embeddings of two sets of sounds in, a value with its interval and warnings out.

A metric gives a `Statistic`: its value, and each clip's influence on it (bootstrap.Influence), from which intervals and comparisons
are computed. Memory is O(d²) plus one number per clip. Pairwise metrics, whose time grows with the square of the embeddings, use a
seeded subset of a large set, with a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np

from soundmill import hashing
from soundmill.errors import UserError
from soundmill.metrics import bootstrap, divergence, frechet, pairwise
from soundmill.metrics.bootstrap import Influence
from soundmill.metrics.divergence import check_pairs, exact, names_of, paired_kl, reverse, smoothed

ROWS_PER_DIMENSION = 10  # with fewer embeddings a Fréchet distance is mostly bias
LINEAR_ROWS = 4  # embeddings per dimension; with fewer, distances are not linear in 1/n
KAD_SCALE = 100  # as in kadtk
KAD_EPSILON = 1e-8  # added to 2σ² in kadtk, so equal sounds have a kernel too
MAX_ROWS = 10_000  # embeddings of a set in a pairwise metric


Divergence = Callable[[np.ndarray, np.ndarray], float]  # of the logits [K] of a reference and of a generated sound


@dataclass(frozen=True)
class EmbeddingSet:
    """One embedder's embeddings of a set of sounds; each call of `frames` streams (clip id, patches [P, D]) of every clip once.

    `ids` are sorted here; the stream may have any order. `logits` [K] are by id and may include other clips; they are empty if the
    embedder is not a classifier. A clip with P = 0 does not count in metrics of patches.
    """

    ids: tuple[str, ...]
    frames: Callable[[], Iterable[tuple[str, np.ndarray]]]
    logits: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(set(self.ids)) < len(self.ids):
            repeated = sorted({clip_id for clip_id in self.ids if self.ids.count(clip_id) > 1})
            raise UserError(f"{names_of(repeated)} listed twice; each clip counts once")
        object.__setattr__(self, "ids", tuple(sorted(self.ids)))

    @classmethod
    def of(cls, frames: Mapping[str, np.ndarray], logits: Mapping[str, np.ndarray] | None = None) -> EmbeddingSet:
        """A set in memory."""
        return cls(tuple(frames), frames.items, logits or {})

    def only(self, ids: Iterable[str]) -> EmbeddingSet:
        kept = frozenset(ids)
        return EmbeddingSet(tuple(kept), lambda: (item for item in self.frames() if item[0] in kept), self.logits)

    def stream(self) -> Iterator[tuple[str, np.ndarray]]:
        """(clip id, patches) in the stream's order; a foreign, repeated, missing or non-finite clip raises UserError."""
        remaining = set(self.ids)
        for clip_id, patches in self.frames():
            if clip_id not in remaining:
                raise UserError(f"clip {clip_id} is streamed twice or not part of the set; each clip counts once")
            remaining.remove(clip_id)
            if not np.isfinite(patches).all():
                raise UserError(f"embeddings of clip {clip_id} are not finite; check the sound and the weights")
            yield clip_id, patches
        if remaining:
            raise UserError(f"no embeddings of {names_of(sorted(remaining))}; incomplete sets are never scored")

    @cached_property
    def gathered(self) -> frechet.Gathered:
        return frechet.Gathered.over(self.stream, self.ids)

    def clips(self) -> list[np.ndarray]:
        """Patches of every clip, in the order of `ids`."""
        by_id = dict(self.stream())
        if not by_id:
            raise UserError("no embeddings to compare: there is no sound, or none is long enough for a patch")
        return [by_id[clip_id] for clip_id in self.ids]

    def clip_logits(self) -> ClipLogits:
        """Logits of every clip, in the order of `ids`."""
        return ClipLogits(self.ids, lambda clip_id: self.logits.get(clip_id, ()))


@dataclass(frozen=True)
class ClipLogits(Mapping[str, np.ndarray]):
    """Logits by clip id, read at each access, so a large set is never in memory; empty or non-finite ones raise UserError."""

    ids: tuple[str, ...]
    read: Callable[[str], np.ndarray]

    def __getitem__(self, clip_id: str) -> np.ndarray:
        logits = self.read(clip_id)
        if not len(logits):
            raise UserError(f"no logits of clip {clip_id}: this metric needs a classifier")
        if not np.isfinite(logits).all():
            raise UserError(f"classifier logits of clip {clip_id} are not finite; check the sound and the weights")
        return logits

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Statistic:
    """A metric's value for two sets; `influence` is computed only for an interval or a comparison."""

    value: float
    influence: Callable[[], Influence]
    extras: Mapping[str, Any] = field(default_factory=dict)
    of: Mapping[str, float] | None = None  # values of single clips by id, if the metric is their mean
    error: float = 0.0  # standard error in addition to that of the choice of clips
    warnings: tuple[str, ...] = ()


# (a, b, reference, seed, chosen) → the metric of both sets after each of B exchanges [2, B]. `a` and `b` have the same N ids;
# `chosen` [B, N] is 1 where a clip stays in its set and 0 where it changes places with its partner.
Exchanged = Callable[[EmbeddingSet, EmbeddingSet, EmbeddingSet, int, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Metric:
    better: Literal["lower", "higher"]
    statistic: Callable[[EmbeddingSet, EmbeddingSet, int], Statistic]
    least: float = -np.inf
    most: float = np.inf
    paired: bool = False  # both sets must have the same ids
    needs_logits: bool = False
    pairwise: bool = False  # compares all pairs of embeddings, so it uses a subset of a large set
    exchanged: Exchanged | None = None  # if a difference is not the sum of the clips' influences


def _frechet(generated: EmbeddingSet, reference: EmbeddingSet, seed: int) -> Statistic:
    """If embeddings are few, with the distance of two sets of these sizes from one Gaussian as `bias`, and a warning of it."""
    first, second = generated.gathered, reference.gathered
    value, influence = first.distance(second), _influence(generated, reference)
    size, counts = len(first.mean), (first.count, second.count)
    if min(counts) >= ROWS_PER_DIMENSION * size:
        return Statistic(value, influence)
    bias = frechet.of_equal_sets(second.spectrum(), counts, seed)
    least = "at least " if counts[1] < size else ""  # the reference has no variance in the other directions
    warning = (
        f"{counts[0]} generated and {counts[1]} reference embeddings of {size} dimensions "
        f"(fewer than {ROWS_PER_DIMENSION} × {size}): two sets of these sizes from one Gaussian with the reference's covariance "
        f"are {least}{bias:.3g} apart. Compare only with scores of equally many clips."
    )
    return Statistic(value, influence, {"bias": bias}, warnings=(warning,))


def _influence(generated: EmbeddingSet, reference: EmbeddingSet) -> Callable[[], Influence]:
    streams, ids = (generated.stream, reference.stream), (generated.ids, reference.ids)
    return partial(frechet.influence, generated.gathered, reference.gathered, streams, ids)


def _frechet_without_bias(generated: EmbeddingSet, reference: EmbeddingSet, seed: int) -> Statistic:
    first, second = generated.gathered, reference.gathered
    value, error, r2 = frechet.without_bias(generated.stream, generated.ids, second, seed)
    warnings = []
    size = len(first.mean)
    if first.count < LINEAR_ROWS * size:
        warnings.append(
            f"FAD∞ of {first.count} generated embeddings of {size} dimensions, fewer than {LINEAR_ROWS} × {size}: "
            "distances of such small subsets are not linear in 1/n, so much of the bias remains."
        )
    if second.count < ROWS_PER_DIMENSION * size:
        warnings.append(
            f"FAD∞ keeps the bias of its {second.count} reference embeddings, fewer than {ROWS_PER_DIMENSION} × {size}."
        )
    extras = {"r2": r2, "error": error}
    return Statistic(value, _influence(generated, reference), extras, error=error, warnings=tuple(warnings))


def _frechet_by_clip(generated: EmbeddingSet, reference: EmbeddingSet, seed: int) -> Statistic:
    of = frechet.by_clip(generated.stream, reference.gathered)
    if not of:
        raise UserError("no generated clip has two or more patches, as fad_per_clip needs; leave out fad_per_clip")
    left_out = len(generated.ids) - len(of)
    warning = f"{left_out} of {len(generated.ids)} generated clips have fewer than two patches and are left out."
    return _mean(of, {"left_out": left_out}, (warning,) if left_out else ())


def _mean(of: Mapping[str, float], extras: Mapping[str, Any] | None = None, warnings: tuple[str, ...] = ()) -> Statistic:
    values = np.array([of[clip_id] for clip_id in sorted(of)])
    influence = Influence(bootstrap.SetInfluence.of(values))
    return Statistic(float(values.mean()), lambda: influence, extras or {}, of, warnings=warnings)


def _kl(divergence: Divergence, generated: EmbeddingSet, reference: EmbeddingSet, seed: int) -> Statistic:
    return _mean(paired_kl(reference.clip_logits(), generated.clip_logits(), divergence))


def _clap_score(generated: EmbeddingSet, reference: EmbeddingSet, seed: int) -> Statistic:
    check_pairs(reference.ids, generated.ids)
    unpaired: tuple[dict[str, np.ndarray], ...] = ({}, {})  # whose partners have not been streamed yet
    cosines = {}
    for pair in zip(_directions(generated, "sound"), _directions(reference, "prompt"), strict=True):
        for own, other, (clip_id, direction) in zip(unpaired, unpaired[::-1], pair, strict=True):
            if clip_id in other:
                cosines[clip_id] = float(direction @ other.pop(clip_id))
            else:
                own[clip_id] = direction
    return _mean(cosines)


def _directions(side: EmbeddingSet, what: str) -> Iterator[tuple[str, np.ndarray]]:
    """(clip id, mean of its patches scaled to unit length), in the stream's order."""
    for clip_id, patches in side.stream():
        total = np.asarray(patches, dtype=np.float64).sum(axis=0)
        length = np.linalg.norm(total)
        if not length > 0:
            raise UserError(f"clip {clip_id}: the embedding of its {what} is zero, so it has no cosine")
        yield clip_id, total / length


def _rating(column: int, generated: EmbeddingSet, reference: EmbeddingSet, seed: int) -> Statistic:
    of = {clip_id: float(ratings[0, column]) for clip_id, ratings in generated.stream()}
    if not of:
        raise UserError("no generated sound is long enough to be rated")
    return _mean(of)


def _inception(generated: EmbeddingSet, reference: EmbeddingSet, seed: int) -> Statistic:
    logits = generated.clip_logits()
    value, std, splits = divergence.inception_score(logits, seed)
    return Statistic(value, lambda: divergence.inception_influence(logits), {"std": std, "splits": splits})


def _frechet_exchanged(a: EmbeddingSet, b: EmbeddingSet, reference: EmbeddingSet, seed: int, chosen: np.ndarray) -> np.ndarray:
    return frechet.exchanged((a.stream, b.stream, reference.stream), a.ids, chosen)


def _kid(generated: EmbeddingSet, reference: EmbeddingSet, seed: int) -> Statistic:
    first, second = generated.clips(), reference.clips()
    value, std, size = pairwise.in_subsets(*(np.concatenate(clips, dtype=np.float64) for clips in (first, second)), seed)
    return Statistic(
        value,
        lambda: pairwise.discrepancy_by_clip(first, second, pairwise.polynomial)[1],
        {"std": std, "subset": size},
        error=std / np.sqrt(pairwise.SUBSETS),
    )


def _kernel(
    metric: str, generated: Sequence[np.ndarray], reference: Sequence[np.ndarray], seed: int
) -> tuple[pairwise.Kernel, float, int]:
    """Kernel, bandwidth and scale of one of the three discrepancies, from the patches of each clip."""
    if metric == "kid":
        return pairwise.polynomial, 0.0, 1
    if metric == "mmd":
        bandwidth = pairwise.bandwidth(np.concatenate(reference, dtype=np.float64), seed)
        return pairwise.gaussian(bandwidth), bandwidth, 1
    bandwidth = pairwise.median_distance(np.concatenate(generated, dtype=np.float64), seed)
    return pairwise.gaussian(bandwidth, KAD_EPSILON), bandwidth, KAD_SCALE


def _discrepancy(metric: Literal["mmd", "kad"], generated: EmbeddingSet, reference: EmbeddingSet, seed: int) -> Statistic:
    first, second = generated.clips(), reference.clips()
    kernel, bandwidth, scale = _kernel(metric, first, second, seed)
    value, influence = pairwise.discrepancy_by_clip(first, second, kernel)
    return Statistic(scale * value, lambda: influence * scale, {"bandwidth": bandwidth})


def _discrepancies_exchanged(
    metric: str, a: EmbeddingSet, b: EmbeddingSet, reference: EmbeddingSet, seed: int, chosen: np.ndarray
) -> np.ndarray:
    """With one kernel for all exchanges: KAD's bandwidth is that of both sets together."""
    first, second, real = a.clips(), b.clips(), reference.clips()
    kernel, _, scale = _kernel(metric, [*first, *second], real, seed)
    return scale * pairwise.discrepancies_exchanged(first, second, real, kernel, chosen)


def _of_kernel(name: str, statistic: Any = None) -> Metric:
    statistic, exchanged = statistic or partial(_discrepancy, name), partial(_discrepancies_exchanged, name)
    return Metric("lower", statistic, pairwise=True, exchanged=exchanged)


def _of_neighbours(name: pairwise.ByNeighbours, most: float = 1) -> Metric:
    def statistic(generated: EmbeddingSet, reference: EmbeddingSet, seed: int) -> Statistic:
        value, influence = pairwise.by_neighbours(name, generated.clips(), reference.clips())
        return Statistic(value, lambda: influence)

    def exchanged(a: EmbeddingSet, b: EmbeddingSet, reference: EmbeddingSet, seed: int, chosen: np.ndarray) -> np.ndarray:
        return pairwise.neighbours_exchanged(name, a.clips(), b.clips(), reference.clips(), chosen)

    adds_up = name in ("precision", "density")
    return Metric("higher", statistic, 0, most, pairwise=True, exchanged=None if adds_up else exchanged)


# Of single sounds, by the columns of Audiobox Aesthetics.
RATINGS = ("content_enjoyment", "content_usefulness", "production_complexity", "production_quality")
_OF_PAIRS = partial(Metric, "lower", paired=True, needs_logits=True)
METRICS = {
    "fad": Metric("lower", _frechet, least=0, exchanged=_frechet_exchanged),
    "fad_inf": Metric("lower", _frechet_without_bias, exchanged=_frechet_exchanged),  # equally many embeddings: the same bias
    "fad_per_clip": Metric("lower", _frechet_by_clip, least=0),
    "fd": Metric("lower", _frechet, least=0, exchanged=_frechet_exchanged),
    "kl": _OF_PAIRS(partial(_kl, smoothed)),
    "reverse_kl": _OF_PAIRS(partial(_kl, reverse)),
    "exact_kl": _OF_PAIRS(partial(_kl, exact), least=0),
    "is": Metric("higher", _inception, least=1, needs_logits=True),
    "kid": _of_kernel("kid", _kid),
    "mmd": _of_kernel("mmd"),
    "kad": _of_kernel("kad"),
    "clap_score": Metric("higher", _clap_score, least=-1, most=1, paired=True),
    "precision": _of_neighbours("precision"),
    "recall": _of_neighbours("recall"),
    "density": _of_neighbours("density", np.inf),
    "coverage": _of_neighbours("coverage"),
    **{name: Metric("higher", partial(_rating, column)) for column, name in enumerate(RATINGS)},
}


def bounded(metric: str, sides: Sequence[EmbeddingSet], what: str, seed: int) -> tuple[list[EmbeddingSet], tuple[str, ...]]:
    """Sets with equal ids as a metric takes them: all clips, or for a pairwise metric a seeded subset, with a warning."""
    if not METRICS[metric].pairwise:
        return list(sides), ()
    lengths = dict.fromkeys(sides[0].ids, 0)
    for side in sides:
        for clip_id, patches in side.stream():
            lengths[clip_id] = max(lengths[clip_id], len(patches))
    if sum(lengths.values()) <= MAX_ROWS:
        return list(sides), ()
    fitting = [clip_id for clip_id in lengths if lengths[clip_id] <= MAX_ROWS]
    if not fitting:
        raise UserError(f"every {what} clip has more than {MAX_ROWS} embeddings, too many for a pairwise metric; cut the sounds")
    ranked = hashing.hash_order(fitting, "pairs", seed)
    rows = np.cumsum([lengths[clip_id] for clip_id in ranked])
    kept = ranked[: int(np.searchsorted(rows, MAX_ROWS, side="right"))]
    warning = (
        f"{metric} uses {len(kept)} of {len(lengths)} {what} clips, chosen by the seed: "
        f"at most {MAX_ROWS} embeddings are compared pairwise."
    )
    return [side.only(kept) for side in sides], (warning,)


def compute(metric: str, generated: EmbeddingSet, reference: EmbeddingSet, *, seed: int, replicates: int) -> dict[str, Any]:
    """`value`, the ends `low` and `high` of its 95 % interval (if there are replicates), `warnings`, and the metric's extras.

    `of` (clip id → value) is included if the metric is a mean over clips. Results do not depend on the order of ids and
    streams, up to rounding.
    """
    kind = METRICS[metric]
    (generated,), warnings = bounded(metric, [generated], "generated", seed)
    (reference,), reference_warnings = bounded(metric, [reference], "reference", seed)
    statistic = kind.statistic(generated, reference, seed)
    result = _with_interval(statistic, kind.least, kind.most, seed, replicates)
    return result | {"warnings": [*statistic.warnings, *warnings, *reference_warnings]}


def mean_with_interval(of: Mapping[str, float], seed: int, replicates: int) -> dict[str, Any]:
    """As `compute`, for the mean of values by clip id."""
    return _with_interval(_mean(of), -np.inf, np.inf, seed, replicates)


def _with_interval(statistic: Statistic, least: float, most: float, seed: int, replicates: int) -> dict[str, Any]:
    result = {"value": statistic.value, **statistic.extras}
    if replicates:
        shifts = statistic.influence().shifts(seed, replicates)
        result |= bootstrap.interval(statistic.value, shifts, least, most, statistic.error)
    if statistic.of is not None:
        result["of"] = dict(statistic.of)
    return result
