"""Every metric under one call: two sets of sounds as an embedder heard them in, a value with its interval and warnings out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from soundmill.errors import UserError
from soundmill.evaluation import frechet, resampling
from soundmill.evaluation.divergence import paired_kl


@dataclass(frozen=True)
class Side:
    """One set of sounds as one embedder heard it; every call of `frames` streams (clip id, patches [P, D]) of every clip once."""

    ids: tuple[str, ...]
    frames: Callable[[], Iterable[tuple[str, np.ndarray]]]
    logits: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, frames: Mapping[str, np.ndarray], logits: Mapping[str, np.ndarray] | None = None) -> Side:
        """A set that is in memory."""
        return cls(tuple(sorted(frames)), frames.items, logits or {})

    def stream(self) -> Iterator[tuple[str, np.ndarray]]:
        """(clip id, patches) in the stream's order; a clip twice, an unknown or a missing one, or what is not finite raises UserError."""
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
        """Patches of every clip in the order of their ids, in memory."""
        held = dict(self.stream())
        return [held[clip_id] for clip_id in sorted(held)]


@dataclass(frozen=True)
class Metric:
    """What a metric is told and says; `description` stands beside its numbers."""

    description: str
    better: Literal["lower", "higher"]
    function: Callable[..., dict[str, Any]]
    paired: bool = False  # ids of both sides have to agree
    needs_logits: bool = False


def _frechet(generated: Side, reference: Side, seed: int, replicates: int, progress: Callable[[int], None]) -> dict[str, Any]:
    first, second = generated.clips(), reference.clips()
    value = frechet.frechet_of_rows(np.concatenate(first), np.concatenate(second))
    progress(1)
    drawn = frechet.bootstrap_frechet(first, second, range(replicates), seed)
    progress(replicates)
    return {"value": value, **resampling.interval(value, drawn, 0, np.inf)}


def _kl(generated: Side, reference: Side, seed: int, replicates: int, progress: Callable[[int], None]) -> dict[str, Any]:
    of = paired_kl(reference.logits, generated.logits)
    return _mean(of, seed, replicates, progress)


def _mean(of: dict[str, float], seed: int, replicates: int, progress: Callable[[int], None]) -> dict[str, Any]:
    values = np.array([of[clip_id] for clip_id in sorted(of)])
    progress(1)
    lengths = [np.full(len(values), 2)]
    means = [weights @ values / len(values) for (weights,) in resampling.blocks(seed, replicates, lengths)]
    progress(replicates)
    value = float(values.mean())
    return {"value": value, **resampling.interval(value, np.concatenate(means or [[]]), -np.inf, np.inf), "of": of}


METRICS = {
    "fad": Metric("Fréchet distance of pooled patch embeddings", "lower", _frechet),
    "fd": Metric("Fréchet distance of clip embeddings", "lower", _frechet),
    "kl": Metric("KL(reference ‖ generated) of softmaxed logits, mean over pairs", "lower", _kl, paired=True, needs_logits=True),
}


def compute(
    metric: str,
    generated: Side,
    reference: Side,
    *,
    seed: int,
    replicates: int,
    progress: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """`value`, the ends `low` and `high` of its 95 % interval (none without replicates), `warnings`, and what else the metric says.

    `progress` counts up to 1 + replicates.
    """
    found = METRICS[metric].function(generated, reference, seed, replicates, progress)
    return {"warnings": [], **found}
