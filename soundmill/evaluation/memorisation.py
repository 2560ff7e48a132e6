"""Whether generated sounds are copies of training clips: nearest ones by embedding, near-copies by fingerprint.

Held-out real clips, which a model cannot have memorised, are searched for among the training clips in the same way; their rate is
the baseline.

by embedding    how near the nearest training clip is (cosine of mean embeddings, centred on the training clips' mean). Near-copies
                are nearer than all but CLOSEST of the held-out clips are: so many of these are by definition
by fingerprint  the share of the shorter sound that is in the other, whatever gain, cut, resampling or lossy coder came
                between; near-copies reach the score that tells duplicates in a corpus
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from soundmill import hashing
from soundmill.audio import fingerprint
from soundmill.corpora import fingerprint_index, landmarks
from soundmill.errors import UserError
from soundmill.evaluation import features
from soundmill.evaluation.embedders.base import Embeddings
from soundmill.evaluation.library import Setup, rounded

CLOSEST = 0.05  # of held-out clips that count as near-copies of training clips
FEWEST = 20  # held-out clips that such a share needs
BLOCK = 1024  # clips compared at once


class Fingerprinter:
    """Fingerprints in the form of embeddings, so that they are made and kept as those are: 16 bits in each number."""

    name = "fingerprint"
    sample_rate = fingerprint.SAMPLE_RATE

    def embed(self, waves: Sequence[np.ndarray]) -> Embeddings:
        frames = [fingerprint.fingerprint(wave).view("<u2").astype(np.float32) for wave in waves]
        return Embeddings(frames, np.zeros((len(waves), 0), np.float32))


def words(frames: np.ndarray) -> np.ndarray:
    """The fingerprint uint32 [frames, 2] that was kept as [frames, 4]."""
    return np.ascontiguousarray(frames.reshape(-1, 4), "<u2").view("<u4").astype(np.uint32)


@dataclass(frozen=True)
class FingerprintJudge(features.Judge):
    """A judge whose embeddings are fingerprints; it has no weights."""

    @property
    def weights(self) -> str:
        return hashing.file_digest(fingerprint.__file__)

    def load(self) -> Fingerprinter:
        return Fingerprinter()

    def unavailable(self) -> None:
        return None


@dataclass(frozen=True)
class Nearest:
    """The training clip that is nearest to a sound by embedding, and the one that shares most of it by fingerprint, if one does."""

    clip_id: str
    similarity: float  # cosine, at most 1
    neighbour: str
    shared: float  # 0: no training clip reaches the threshold
    copy_of: str | None

    @property
    def rank(self) -> tuple[float, float, str]:
        """Order of suspicion, the worst first."""
        return -self.shared, -self.similarity, self.clip_id


@dataclass(frozen=True)
class Memorisation:
    """Of generated and of held-out sounds the nearest training clips, and how near is too near by embedding."""

    generated: list[Nearest]
    held_out: list[Nearest]
    trained_on: list[str]  # real sounds that should be held out and are training clips
    threshold: float | None  # similarity; None: no sound is held out
    training: int
    embedder: str
    damaged: Sequence[str] = ()  # files of kept embeddings, made anew

    def is_near(self, nearest: Nearest) -> bool:
        return self.threshold is not None and nearest.similarity > self.threshold

    def metrics(self) -> dict[str, float]:
        """Flat: `memorised_<measure>`, the share of generated sounds that are near-copies, and with `_real` of held-out ones."""
        flat = {}
        for end, of in (("", self.generated), ("_real", self.held_out)):
            if of and self.threshold is not None:
                flat[f"memorised_{self.embedder}{end}"] = float(np.mean([self.is_near(nearest) for nearest in of]))
            if of:
                flat[f"memorised_fingerprint{end}"] = float(np.mean([nearest.copy_of is not None for nearest in of]))
        return flat

    def warnings(self) -> list[str]:
        warnings = []
        if self.trained_on:
            warnings.append(
                f"{len(self.trained_on)} of the real sounds are training clips themselves (first: {self.trained_on[0]}) and say "
                "nothing about copies of what was not trained on."
            )
        if len(self.held_out) < FEWEST:
            warnings.append(f"The rate of near-copies among real sounds rests on {len(self.held_out)} of them: it is rough.")
        copies = sum(nearest.copy_of is not None for nearest in self.generated)
        if copies:
            warnings.append(f"{copies} of {len(self.generated)} generated sounds are training clips again, by fingerprint.")
        return warnings

    def publish(self, metrics: dict[str, Any]) -> None:
        """Add the rates, counts and warnings to a result."""
        metrics |= {key: rounded(value) for key, value in self.metrics().items()}
        metrics["counts"] |= {"training": self.training, "held_out": len(self.held_out)}
        metrics["warnings"] += self.warnings()

    def worst(self, count: int) -> list[Nearest]:
        return sorted(self.generated, key=lambda nearest: nearest.rank)[:count]


def search_for_copies(
    setup: Setup, generated: Sequence[features.Sound], real: Sequence[features.Sound], training: Sequence[features.Sound]
) -> Memorisation:
    """`search` among sounds, embedding and fingerprinting them where that has not been done."""
    judge = setup.judges[0]
    judges = (judge, FingerprintJudge("fingerprint", None, judge.through))
    sounds = [*generated, *real, *training]
    with setup.progress(len(judges) * len(sounds), "look for copies", "clip") as tick:
        damaged = features.embed_all(judges, sounds, setup.cache, setup.workers, tick)
        views = [[features.view(who, role, setup.cache) for who in judges] for role in (generated, real, training)]
        return replace(search(*views, judge.name), damaged=damaged)


def search(
    generated: Sequence[features.View], real: Sequence[features.View], training: Sequence[features.View], name: str
) -> Memorisation:
    """Look for generated and real sounds among the training clips; views are (by the embedder `name`, by fingerprint).

    Real sounds that are training clips by their content are not held out; a warning counts them.
    """
    known = set(training[0].keys.values())
    held_out = [clip_id for clip_id, key in real[0].keys.items() if key not in known]
    sides = []
    for by_embedder, by_sound in (generated, [view.of(held_out) for view in real]):
        copies = _copies(by_sound, training[1])
        near = _nearest(by_embedder, training[0])
        sides.append(
            [
                Nearest(clip_id, similarity, neighbour, *copies.get(clip_id, (0.0, None)))
                for clip_id, (similarity, neighbour) in near.items()
            ]
        )
    similar = [nearest.similarity for nearest in sides[1]]
    threshold = float(np.quantile(similar, 1 - CLOSEST)) if similar else None
    trained_on = [clip_id for clip_id in real[0].keys if clip_id not in set(held_out)]
    return Memorisation(*sides, trained_on, threshold, len(training[0].keys), name)


def _nearest(sounds: features.View, training: features.View) -> dict[str, tuple[float, str]]:
    """(similarity, id) of the training clip that is nearest to each sound; training clips pass a block at a time."""
    centre = _mean(training)
    ids, queries = _stacked(list(_units(sounds, centre)))
    if not ids:
        return {}
    best = np.full(len(ids), -np.inf)
    who = np.full(len(ids), "", dtype=object)
    for block in _blocks(_units(training, centre)):
        names, rows = _stacked(block)
        similarity = queries @ rows.T
        place = similarity.argmax(axis=1)
        better = similarity[np.arange(len(ids)), place] > best
        best[better] = similarity[np.arange(len(ids)), place][better]
        who[better] = np.array(names, dtype=object)[place][better]
    return {clip_id: (float(value), name) for clip_id, value, name in zip(ids, best, who, strict=True)}


def _mean(view: features.View) -> np.ndarray:
    total, count = 0.0, 0
    for _, frames in view.frames():
        if len(frames):
            total, count = total + frames.mean(axis=0, dtype=np.float64), count + 1
    if not count:
        raise UserError("every training clip is too short for a patch of the embedder")
    return total / count


def _units(view: features.View, centre: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """(id, mean embedding [D] from the centre, of length one) of every sound that has patches."""
    for clip_id, frames in view.frames():
        if len(frames):
            mean = frames.mean(axis=0, dtype=np.float64) - centre
            yield clip_id, mean / max(np.linalg.norm(mean), 1e-12)


def _blocks(rows: Iterator[tuple[str, np.ndarray]]) -> Iterator[list[tuple[str, np.ndarray]]]:
    block = []
    for row in rows:
        block.append(row)
        if len(block) == BLOCK:
            yield block
            block = []
    if block:
        yield block


def _stacked(rows: Sequence[tuple[str, np.ndarray]]) -> tuple[list[str], np.ndarray]:
    return [clip_id for clip_id, _ in rows], np.stack([row for _, row in rows]) if rows else np.zeros((0, 0))


def _copies(sounds: features.View, training: features.View) -> dict[str, tuple[float, str]]:
    """(score, training clip) of the most that a sound shares with one, where that reaches the threshold of duplicates."""
    roles = {"sound": sounds, "training": training}
    named = {hashing.digest(role, clip_id): (role, clip_id) for role, view in roles.items() for clip_id in view.keys}
    names = pa.chunked_array([pa.array(list(named), pa.string())])
    owners = pa.chunked_array([pa.array([role for role, _ in named.values()], pa.string())])
    copies: dict[str, tuple[float, str]] = {}
    with tempfile.TemporaryDirectory(prefix="soundmill-copies-") as scratch:
        with fingerprint_index.Index(Path(scratch), names, owners) as index:
            first = 0
            for role, view in roles.items():
                for block in _blocks(view.frames()):
                    index.add(first, _landmarks(block, role))
                    first += len(block)
            for a, b, score in index.pairs(fingerprint_index.THRESHOLD):
                (_, clip_id), (_, other) = sorted((named[a], named[b]))
                copies[clip_id] = max(copies.get(clip_id, (0.0, "")), (score, other))
    return copies


def _landmarks(block: Sequence[tuple[str, np.ndarray]], role: str) -> pa.Table:
    """Rows for the index: training clips have keys only, other sounds probes only, so that pairs are of one of each."""
    rows = [landmarks.landmarks(words(frames)) for _, frames in block]
    empty = "keys" if role == "sound" else "probes"
    kind = pa.schema([(name, pa.binary()) for name in ("fingerprint", "keys", "probes")])
    return pa.Table.from_pylist([row | {empty: b""} for row in rows], kind)
