"""Embeddings of many sounds: computed once per sound in single-threaded processes, kept as one file per job in scratch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from soundmill import manifest, shards
from soundmill.errors import UserError
from soundmill.evaluation import embedders
from soundmill.evaluation.embedders.base import Embedder, Embeddings
from soundmill.evaluation.quality import Quality, quality

BATCH = 16  # sounds given to an embedder at once
TASK_SIZE = 64  # sounds in one task over files or made-up waves
MAX_SECONDS = 3600.0  # of one generated file: a bound on memory against a wrong header
MADE_UP = ("silence", "noise")  # roles whose waves are as long as the generated ones and otherwise made up
NOISE_LEVEL = 0.1  # standard deviation of the ruler's white noise: as loud as usual recordings


@dataclass(frozen=True)
class Features:
    """What an embedder says of sounds by id: patches [P, D] and logits [K] of each."""

    frames: dict[str, np.ndarray]
    logits: dict[str, np.ndarray]

    def pooled(self, ids: Iterable[str]) -> np.ndarray:
        """All patches of these sounds [ΣP, D]."""
        return np.concatenate(self.listed(ids))

    def listed(self, ids: Iterable[str]) -> list[np.ndarray]:
        return [self.frames[clip_id] for clip_id in ids]

    def means(self, ids: Iterable[str]) -> np.ndarray:
        """Mean embedding of each of these sounds [N, D], float64."""
        return np.stack([self.frames[clip_id].mean(axis=0, dtype=np.float64) for clip_id in ids])


def save(ids: Sequence[str], embeddings: Embeddings, path: Path) -> None:
    arrays = {
        "ids": np.array(ids, dtype=np.str_),
        "lengths": np.array([len(part) for part in embeddings.frames], dtype=np.int64),
        "frames": np.concatenate(embeddings.frames),
        "logits": embeddings.logits,
    }

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)

    shards.write_atomically(path, write)


def read(paths: Iterable[Path]) -> Features:
    """Features of all sounds in these files."""
    frames: dict[str, np.ndarray] = {}
    logits: dict[str, np.ndarray] = {}
    for path in paths:
        with np.load(path, allow_pickle=False) as file:
            ids, lengths = file["ids"].tolist(), file["lengths"]
            frames.update(zip(ids, np.split(file["frames"], np.cumsum(lengths)[:-1]), strict=True))
            logits.update(zip(ids, file["logits"], strict=True))
    return Features(frames, logits)


@dataclass(frozen=True)
class Task:
    """One embedding job, in the form a worker process can be told: clips of a shard, or files, or made-up waves as long as them."""

    embedder: str
    tagger: Path  # directory of the pipeline's own tagger
    sample_rate: int  # of the clips, and of what is made up
    role: str  # `real`, `silence` and `noise` say where the waves come from; any other role means the files themselves
    shard: Path | None = None
    clip_ids: frozenset[str] = frozenset()
    files: tuple[Path, ...] = ()
    seed: int = 0


def waves_of(task: Task) -> Iterator[tuple[str, np.ndarray]]:
    """(id, wave [T]) of every sound of a task, one at a time; the id of a file is its name."""
    if task.shard is not None:
        yield from clips_of(task.shard, task.clip_ids)
    for path in task.files:
        wave = read_file(path, task.sample_rate)
        yield path.stem, made_up(task.role, path.stem, len(wave), task.seed) if task.role in MADE_UP else wave


def clips_of(shard: Path, clip_ids: Collection[str]) -> Iterator[tuple[str, np.ndarray]]:
    """(clip id, wave [T]) of the wanted clips of one Parquet shard."""
    from soundmill.audio.decode import decode_flac

    if not shard.is_file():
        raise UserError(f"{shard}: no such shard, but the catalog names it; remake both with `dvc repro`")
    for row in shards.read_rows(shard, manifest.CLIPS, columns=["clip_id", "audio"]):
        if row["clip_id"] in clip_ids:
            yield row["clip_id"], decode_flac(row["audio"]["bytes"])


def read_file(path: Path, sample_rate: int) -> np.ndarray:
    """One sound to be judged, mono [T] at the clips' rate."""
    from soundmill.audio.decode import DecodeError, read_mono

    try:
        return read_mono(path, sample_rate, MAX_SECONDS)
    except DecodeError as error:
        raise UserError(f"{path}: cannot be scored: {error.reason} {error.detail}; no part of a set is ever scored alone") from None


def made_up(kind: str, clip_id: str, num_samples: int, seed: int) -> np.ndarray:
    """Digital silence, or Gaussian white noise that depends on the seed and the clip id alone."""
    if kind == "silence":
        return np.zeros(num_samples, np.float32)
    random = np.random.default_rng(int(shards.digest("noise", seed, clip_id), 16))
    return np.clip(random.standard_normal(num_samples) * NOISE_LEVEL, -1, 1).astype(np.float32)


def embed(task: Task, output: Path) -> shards.Report:
    """Embed a task's sounds into one file; a sound that is missing, too short or not finite raises UserError naming it."""
    embedder = _load(task.embedder, task.tagger)
    report = shards.Report()
    ids: list[str] = []
    frames: list[np.ndarray] = []
    logits: list[np.ndarray] = []
    for batch in _batches(waves_of(task)):
        for clip_id, wave in batch:
            report.details.append({"role": task.role, "id": clip_id, "quality": asdict(quality(wave))})
        part = embedder.embed([_at_rate(wave, task.sample_rate, embedder.sample_rate) for _, wave in batch])
        for (clip_id, _), patches, scores in zip(batch, part.frames, part.logits, strict=True):
            if not len(patches):
                raise UserError(f"{task.role} clip {clip_id}: too short for one patch of {embedder.name}")
            if not (np.isfinite(patches).all() and np.isfinite(scores).all()):
                raise UserError(f"{task.role} clip {clip_id}: what {embedder.name} says of it is not finite: is the sound?")
        ids += [clip_id for clip_id, _ in batch]
        frames += part.frames
        logits.append(part.logits)
    missing = sorted(task.clip_ids.difference(ids))
    if missing:
        raise UserError(f"{task.shard}: clip {', '.join(missing[:10])} of the catalog is not in it; remake both with `dvc repro`")
    save(ids, Embeddings(frames, np.concatenate(logits)), output)
    return report


@cache
def _load(name: str, tagger: Path) -> Embedder:
    """Once per worker process."""
    if name == "tagger":
        import torch

        torch.set_num_threads(1)
    return embedders.load(name, tagger)


def _at_rate(wave: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    if rate == wanted:
        return wave
    from soundmill.audio.resample import resample

    return resample(wave, rate, wanted)


def _batches(items: Iterable[Any]) -> Iterator[list[Any]]:
    stream = iter(items)
    while batch := list(islice(stream, BATCH)):
        yield batch


@dataclass
class Library:
    """All sounds of one evaluation, embedded by every embedder."""

    paths: dict[tuple[str, str], list[Path]]  # (embedder, role) → files of features
    quality: dict[str, dict[str, Quality]]  # role → id → facts


def embed_all(
    tasks: Sequence[Task], digests: dict[str, str], scratch: Path, workers: int, progress: Callable[[int], None]
) -> Library:
    """Run the tasks; `progress` counts sounds, `digests` are the embedders' weights'. Finished tasks stay in `scratch`."""
    jobs = [
        shards.Job(f"{index:05d}-{task.role}-{task.embedder}-{digests[task.embedder][:12]}.npz", (task,), size(task))
        for index, task in enumerate(tasks)
    ]
    report = shards.map_shards(embed, jobs, scratch, workers=workers, progress=progress)
    library = Library({}, {})
    for task, job in zip(tasks, jobs, strict=True):
        library.paths.setdefault((task.embedder, task.role), []).append(scratch / job.name)
    for row in report.details:
        facts = library.quality.setdefault(row["role"], {})
        facts[row["id"]] = Quality(**row["quality"])
    return library


def plan(
    names: Sequence[str], tagger: Path, sample_rate: int, real: dict[Path, set[str]], files: dict[str, list[Path]], seed: int
) -> list[Task]:
    """Tasks over real clips (shard → ids), files (role → paths), and silence and noise as long as the `generated` files.

    Every sound is embedded once whatever sets it belongs to. The cut into tasks knows nothing of workers.
    """
    tasks = []
    for name in names:
        for shard, ids in sorted(real.items()):
            if ids:
                tasks.append(Task(name, tagger, sample_rate, "real", shard=shard, clip_ids=frozenset(ids)))
        for role, paths in [*sorted(files.items()), *((kind, files["generated"]) for kind in MADE_UP)]:
            for start in range(0, len(paths), TASK_SIZE):
                part = tuple(sorted(paths)[start : start + TASK_SIZE])
                tasks.append(Task(name, tagger, sample_rate, role, files=part, seed=seed))
    return tasks


def size(task: Task) -> int:
    """Number of sounds in a task."""
    return len(task.clip_ids) + len(task.files)
