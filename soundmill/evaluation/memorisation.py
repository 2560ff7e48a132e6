"""Whether generated sounds are copies of training clips, by embedding and by fingerprint.

Held-out real clips, which a model cannot have memorised, are compared with the training clips in the same way; their rate of
near-copies is the baseline.

By embedding, a near-copy is nearer (by the cosine of mean embeddings, centred on the training clips' mean) than all but CLOSEST of
them; by fingerprint, it reaches the threshold for duplicates in a corpus.
"""

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from soundmill import hashing
from soundmill.audio import fingerprint
from soundmill.corpora import fingerprint_index
from soundmill.errors import UserError
from soundmill.evaluation import embedders, features
from soundmill.evaluation.embedders.base import Embedder, Embeddings
from soundmill.evaluation.library import Setup, rounded

CLOSEST = 0.05  # share of held-out clips that counts as near-copies of training clips
FEWEST = 20  # held-out clips; with fewer this share is inaccurate
BLOCK = 1024  # clips compared in one product


class Fingerprinter(Embedder):
    """Fingerprints in the form of embeddings, so that they are computed and cached in the same way; each number holds 16 bits."""

    sample_rate = fingerprint.SAMPLE_RATE

    def embed(self, waves: Sequence[np.ndarray]) -> Embeddings:
        frames = [fingerprint.fingerprint(wave).view("<u2").astype(np.float32) for wave in waves]
        return Embeddings(frames, np.zeros((len(waves), 0), np.float32))


def words(frames: np.ndarray) -> np.ndarray:
    """The fingerprint uint32 [frames, 2] that is cached as [frames, 4]."""
    return np.ascontiguousarray(frames.reshape(-1, 4), "<u2").view("<u4").astype(np.uint32)


@dataclass(frozen=True)
class FingerprintConfig(features.EmbedderConfig):
    """Fingerprints instead of embeddings; there are no weights."""

    runs_on_gpu = False
    module = __name__

    @property
    def weights(self) -> str:
        return hashing.file_digest(fingerprint.__file__)

    def load(self) -> Fingerprinter:
        return Fingerprinter()

    def unavailable(self) -> None:
        return None


@dataclass(frozen=True)
class Nearest:
    """The training clip nearest to a sound by embedding, and the one that shares most of it by fingerprint, if any."""

    clip_id: str
    similarity: float | None  # cosine, at most 1; None: too short to be embedded
    neighbour: str  # empty: none
    shared: float  # share by fingerprint; 0: no training clip reaches the threshold
    copy_of: str | None


@dataclass(frozen=True)
class Memorisation:
    """The nearest training clips of generated and held-out sounds, and the threshold of near-copies by embedding."""

    generated: list[Nearest]
    held_out: list[Nearest]
    trained_on: list[str]  # real sounds that are not held out but training clips
    threshold: float | None  # similarity; None: no sound is held out
    training: int  # number of training clips
    embedder: str
    damaged: Sequence[str] = ()  # cache files that were rebuilt

    def is_near(self, nearest: Nearest) -> bool:
        return None not in (self.threshold, nearest.similarity) and nearest.similarity > self.threshold

    def metrics(self) -> dict[str, float]:
        """`memorised_<measure>`: share of near-copies among generated sounds; with the suffix `_real` among held-out ones."""
        flat = {}
        for suffix, of in (("", self.generated), ("_real", self.held_out)):
            embedded = [nearest for nearest in of if nearest.similarity is not None]
            if embedded and self.threshold is not None:
                flat[f"memorised_{self.embedder}{suffix}"] = float(np.mean([self.is_near(nearest) for nearest in embedded]))
            if of:
                flat[f"memorised_fingerprint{suffix}"] = float(np.mean([nearest.copy_of is not None for nearest in of]))
        return flat

    def warnings(self) -> list[str]:
        warnings = []
        if self.trained_on:
            warnings.append(
                f"{len(self.trained_on)} of the real sounds are training clips (first: {self.trained_on[0]}), so they are not "
                "held out and do not count in the baseline."
            )
        if len(self.held_out) < FEWEST:
            warnings.append(
                f"The rate of near-copies among real sounds is inaccurate: only {len(self.held_out)} of them are held out."
            )
        copies = sum(nearest.copy_of is not None for nearest in self.generated)
        if copies:
            warnings.append(f"{copies} of {len(self.generated)} generated sounds are copies of training clips, by fingerprint.")
        return warnings

    def publish(self, metrics: dict[str, Any]) -> None:
        metrics |= {key: rounded(value) for key, value in self.metrics().items()}
        metrics["counts"] |= {"training": self.training, "held_out": len(self.held_out)}
        metrics["warnings"] += self.warnings()

    def worst(self, count: int) -> list[Nearest]:
        found = (nearest for nearest in self.generated if nearest.neighbour or nearest.copy_of)
        return sorted(found, key=lambda nearest: (-nearest.shared, -(nearest.similarity or 0.0), nearest.clip_id))[:count]


def first_embedder(setup: Setup) -> features.EmbedderConfig:
    """The first embedder that has embeddings, not ratings; UserError if there is none."""
    for config in setup.configs:
        if not embedders.find(config.name).ratings:
            return config
    raise UserError(f"copies are looked for by embeddings, which {setup.configs[0].name} does not have; add another embedder")


def search_for_copies(
    setup: Setup, generated: Sequence[features.Sound], real: Sequence[features.Sound], training: Sequence[features.Sound]
) -> Memorisation:
    """`search` after embedding and fingerprinting the sounds, except those already cached."""
    first = first_embedder(setup)
    configs = (first, FingerprintConfig("fingerprint", None, first.intermediate_rate))
    sounds = [*generated, *real, *training]
    with setup.progress(len(configs) * len(sounds), "look for copies", "clip") as tick:
        damaged = setup.embed(configs, sounds, tick)
        views = [[features.view(config, role, setup.cache) for config in configs] for role in (generated, real, training)]
        return replace(search(*views, first.name), damaged=damaged)


def search(
    generated: Sequence[features.View], real: Sequence[features.View], training: Sequence[features.View], name: str
) -> Memorisation:
    """Search for generated and real sounds among the training clips; each view is (by the embedder `name`, by fingerprint).

    Real sounds whose content is that of a training clip are not held out; a warning counts them.
    """
    training_keys = set(training[0].keys.values())
    held_out = [clip_id for clip_id, key in real[0].keys.items() if key not in training_keys]
    sides = []
    for by_embedder, by_fingerprint in (generated, [view.of(held_out) for view in real]):
        copies = _copies(by_fingerprint, training[1])
        nearest = _nearest(by_embedder, training[0])
        sides.append(
            [
                Nearest(clip_id, *nearest.get(clip_id, (None, "")), *copies.get(clip_id, (0.0, None)))
                for clip_id in by_fingerprint.keys
            ]
        )
    similar = [near.similarity for near in sides[1] if near.similarity is not None]
    threshold = float(np.quantile(similar, 1 - CLOSEST)) if similar else None
    trained_on = [clip_id for clip_id in real[0].keys if clip_id not in set(held_out)]
    return Memorisation(*sides, trained_on, threshold, len(training[0].keys), name)


def _nearest(sounds: features.View, training: features.View) -> dict[str, tuple[float, str]]:
    """Similarity and id of the nearest training clip by id of a sound that has patches; training clips are read block by block."""
    total, count = 0.0, 0
    for _, mean in training.means():
        total, count = total + mean, count + 1
    if not count:
        return {}
    centre = total / count
    ids, queries = _stacked(list(_units(sounds, centre)))
    if not ids:
        return {}
    best = np.full(len(ids), -np.inf)
    neighbours = np.full(len(ids), "", dtype=object)
    for block in _blocks(_units(training, centre)):
        names, rows = _stacked(block)
        similarity = queries @ rows.T
        place = similarity.argmax(axis=1)
        better = similarity[np.arange(len(ids)), place] > best
        best[better] = similarity[np.arange(len(ids)), place][better]
        neighbours[better] = np.array(names, dtype=object)[place][better]
    return {name: (float(cosine), other) for name, cosine, other in zip(ids, best, neighbours, strict=True)}


def _units(view: features.View, centre: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """(id, mean embedding [D], centred and of unit length) of every sound that has patches."""
    for clip_id, mean in view.means():
        centred = mean - centre
        yield clip_id, centred / max(np.linalg.norm(centred), 1e-12)


def _blocks(rows: Iterator[tuple[str, np.ndarray]]) -> Iterator[list[tuple[str, np.ndarray]]]:
    return iter(lambda: list(itertools.islice(rows, BLOCK)), [])


def _stacked(rows: Sequence[tuple[str, np.ndarray]]) -> tuple[list[str], np.ndarray]:
    return [clip_id for clip_id, _ in rows], np.stack([row for _, row in rows]) if rows else np.zeros((0, 0))


def _copies(sounds: features.View, training: features.View) -> dict[str, tuple[float, str]]:
    """(score, id) of the training clip that shares most of a sound, if it reaches the threshold of duplicates."""
    copies: dict[str, tuple[float, str]] = {}
    with tempfile.TemporaryDirectory(prefix="soundmill-copies-") as scratch:
        for clip_id, other, score in fingerprint_index.matches(Path(scratch), _fingerprints(sounds), _fingerprints(training)):
            copies[clip_id] = max(copies.get(clip_id, (0.0, "")), (score, other))
    return copies


def _fingerprints(view: features.View) -> fingerprint_index.Sounds:
    blocks = _blocks(view.frames())
    return list(view.keys), (fingerprint_index.landmark_table(words(frames) for _, frames in block) for block in blocks)
