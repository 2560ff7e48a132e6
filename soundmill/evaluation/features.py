"""Embeddings of many sounds: each made once in a single-threaded process, and kept by its content (see cache.py)."""

from __future__ import annotations

import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from soundmill import manifest, shards
from soundmill.audio import flac
from soundmill.audio import resample as resampling
from soundmill.audio.resample import QUALITY, resample, resample_blocks
from soundmill.decoding import decode
from soundmill.errors import UserError
from soundmill.evaluation import embedders
from soundmill.evaluation.cache import LAYOUT, Embedded, Embedding, Facts, add, drop_damaged, sweep
from soundmill.evaluation.embedders.base import Embedder
from soundmill.evaluation.wave_facts import WaveFacts, wave_facts

BATCH = 16  # sounds given to an embedder at once, at most
BATCH_SAMPLES = 1 << 24  # and as many samples: a bound on memory where sounds are long
TASK_SIZE = 32  # files or made-up waves in one task: a few dozen sounds already keep several processes at work
MAX_SECONDS = 3600.0  # of one sound: a bound on memory against a wrong header
MADE_UP = ("silence", "noise")  # synthetic sounds, as long as the reference's
NOISE_LEVEL = 0.1  # standard deviation of the white noise used as a baseline: as loud as usual recordings


@dataclass(frozen=True)
class Judge:
    """An embedder with its options; `through` is the rate that sounds are resampled to first, None: straight to its own."""

    name: str
    tagger: Path | None = None  # directory of the pipeline's own tagger
    through: int | None = None
    options: tuple[tuple[str, Any], ...] = ()  # of the embedder, as a protocol sets them

    def directory(self, cache: Path) -> Path:
        """Where its embeddings lie: one directory for each embedder, weights, options, front end and resampler."""
        made_by = [self.name, self.weights, list(self.options), self.through, QUALITY, _front_ends(), LAYOUT]
        return cache / f"{self.name}-{shards.digest(made_by)[:16]}"

    @property
    def weights(self) -> str:
        """Digest of the embedder's weights, which are not loaded for it."""
        return embedders.digest(self.name, self.tagger)

    def unavailable(self) -> str | None:
        """Why its weights cannot be used here and what to do about it, or None."""
        return embedders.unavailable(self.name)

    def load(self) -> Embedder:
        return embedders.load(self.name, self.tagger, **dict(self.options))


@cache
def _front_ends() -> str:
    """Digest of the code between files and networks, and the versions of what decodes and resamples for it."""
    rooms = [Path(module.__file__).parent for module in (embedders, decode)]
    sources = [*(path for room in rooms for path in room.rglob("*.py")), Path(resampling.__file__)]
    versions = [[name, version(name)] for name in ("soundfile", "soxr", "imageio-ffmpeg")]
    return shards.digest([[path.name, shards.file_digest(path)] for path in sorted(sources)], versions)


@dataclass(frozen=True, slots=True)
class Sound:
    """One sound to be judged: a file, a clip of a shard, or a wave that is made up; `key` is a digest of its content."""

    clip_id: str
    key: str
    path: bytes | None = None  # of the file or shard
    shown: str = ""  # the path for people
    in_shard: bool = False
    made_up: str | None = None  # of what kind
    num_samples: int = 0  # of a made-up one, at
    sample_rate: int = 0
    seed: int = 0


def file(clip_id: str, path: Path | bytes, digest: str, shown: str = "") -> Sound:
    """A sound in a file of its own, whose bytes have this digest."""
    raw = bytes(path)
    return Sound(clip_id, digest, raw, shown or manifest.escape_path(raw))


def clip(clip_id: str, shard: Path, shard_digest: str) -> Sound:
    """A clip of a shard of such bytes."""
    return Sound(clip_id, shards.digest(shard_digest, clip_id), bytes(shard), str(shard), in_shard=True)


def silence(facts: Facts) -> Sound:
    """As long as a sound; all silence of one length is one sound."""
    key = shards.digest("silence", facts.wave.num_samples, facts.sample_rate)
    return Sound("silence", key, made_up="silence", num_samples=facts.wave.num_samples, sample_rate=facts.sample_rate)


def noise(clip_id: str, facts: Facts, seed: int) -> Sound:
    """As long as a sound, and another for each id and seed."""
    key = shards.digest("noise", seed, clip_id, facts.wave.num_samples, facts.sample_rate)
    return Sound(clip_id, key, made_up="noise", num_samples=facts.wave.num_samples, sample_rate=facts.sample_rate, seed=seed)


def made_up(kind: str, clip_id: str, num_samples: int, seed: int) -> np.ndarray:
    """Digital silence, or Gaussian white noise that depends on the seed and the clip id alone."""
    if kind == "silence":
        return np.zeros(num_samples, np.float32)
    random = np.random.default_rng(int(shards.digest("noise", seed, clip_id), 16))
    return np.clip(random.standard_normal(num_samples) * NOISE_LEVEL, -1, 1).astype(np.float32)


@dataclass(frozen=True)
class View:
    """Where one judge's embeddings of a set of sounds are; can be sent to other processes."""

    directory: Path
    keys: Mapping[str, str]  # id → key of the content, in the order of ids

    def of(self, clip_ids: Iterable[str]) -> View:
        """The part of the set with these ids."""
        return View(self.directory, {clip_id: self.keys[clip_id] for clip_id in clip_ids})

    def open(self) -> Embedded:
        """The embeddings; a missing one raises UserError: the cache was emptied meanwhile."""
        embedded = Embedded(self.directory, set(self.keys.values()))
        missing = [clip_id for clip_id, key in self.keys.items() if key not in embedded]
        if missing:
            raise UserError(f"{self.directory}: the embedding of {missing[0]} is gone that was there; run it again")
        return embedded

    def frames(self) -> Iterator[tuple[str, np.ndarray]]:
        """(id, patches [P, D]) of every sound, one at a time, in the order of ids; P may be 0."""
        embedded = self.open()
        for clip_id, key in self.keys.items():
            yield clip_id, embedded.frames(key)

    def facts(self) -> dict[str, Facts]:
        embedded = self.open()
        return {clip_id: embedded.facts[key] for clip_id, key in self.keys.items()}

    def means(self) -> np.ndarray:
        """Mean embedding of every sound [N, D], float64, in the order of ids; one without a patch raises UserError."""
        rows = []
        for clip_id, patches in self.frames():
            if not len(patches):
                raise UserError(f"clip {clip_id}: too short for one patch of the embedder")
            rows.append(patches.mean(axis=0, dtype=np.float64))
        return np.stack(rows)


@dataclass(frozen=True)
class Logits(Mapping[str, np.ndarray]):
    """Logits [K] by id, read from disk at each access: a large set need not be in memory."""

    embedded: Embedded
    keys: Mapping[str, str]

    def __getitem__(self, clip_id: str) -> np.ndarray:
        return self.embedded.logits(self.keys[clip_id])

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys)

    def __len__(self) -> int:
        return len(self.keys)


def view(judge: Judge, sounds: Iterable[Sound], cache: Path) -> View:
    return View(judge.directory(cache), {sound.clip_id: sound.key for sound in sorted(sounds, key=lambda sound: sound.clip_id)})


def embed_all(
    judges: Sequence[Judge],
    sounds: Sequence[Sound],
    cache: Path,
    workers: int,
    progress: Callable[[int], object] = lambda n: None,
    refused: Sequence[Mapping[str, str]] = (),
) -> list[str]:
    """Embed every sound by every judge, where that has not been done; `progress` counts sounds, once for each judge.

    Files of the cache are checked first: damaged ones are removed, their embeddings made again, and their names returned.
    Sounds that cannot be scored, `refused` ones among them, raise one UserError that names them all, after all others are in the
    cache. Missing weights raise one too, unless every embedding is in the cache.
    """
    jobs, without, damaged = [], {}, []
    for judge in judges:
        directory = judge.directory(cache)
        damaged += drop_damaged(directory, workers)
        have = Embedded(directory, {sound.key for sound in sounds})
        tasks = [(task, [sound for sound in task if sound.key not in have]) for task in _tasks(sounds)]
        progress(len(sounds) - sum(len(missing) for _, missing in tasks))
        if any(missing for _, missing in tasks) and (reason := judge.unavailable()):
            without[judge.name] = reason
        for _, missing in tasks:
            if missing:
                jobs.append(shards.Job(f"{len(jobs):06d}", (judge, directory, tuple(missing)), len(missing)))
    if without:
        lines = "".join(f"\n  {name}: {reason}" for name, reason in without.items())
        raise UserError(f"these sounds cannot be embedded without weights that are not here:{lines}")
    if not jobs:
        refuse(refused)
        return damaged
    for judge in judges:
        sweep(judge.directory(cache))
    with tempfile.TemporaryDirectory(prefix="soundmill-evaluate-") as place:
        report = shards.map_shards(embed, jobs, Path(place) / "done", workers=workers, progress=progress)
    refuse([*refused, *_of_all_alike(report.quarantine, sounds)])
    return damaged


def _of_all_alike(rows: Iterable[Mapping[str, str]], sounds: Iterable[Sound]) -> Iterator[dict[str, str]]:
    """The rejection of a sound repeated for every other sound of the same content."""
    keys: dict[str, str] = {}
    alike: dict[str, dict[str, None]] = defaultdict(dict)
    for sound in sounds:
        keys[sound.shown] = sound.key
        alike[sound.key][sound.shown] = None
    return ({**row, "path": path} for row in rows for path in alike[keys[row["path"]]])


def embed_texts(judge: Judge, texts: Mapping[str, str], cache: Path) -> View:
    """Embeddings [1, D] of texts by id, by a judge that reads (clap), kept as those of sounds are.

    The directory is that of sounds too, which `embed_all` has looked through.
    """
    directory = judge.directory(cache)
    keys = {clip_id: shards.digest("text", text) for clip_id, text in sorted(texts.items())}
    have = Embedded(directory, set(keys.values()))
    missing = sorted({text for clip_id, text in texts.items() if keys[clip_id] not in have})
    if missing:
        rows = [
            Embedding(shards.digest("text", text), WaveFacts(0, False, False, ""), 0, row[None], np.zeros(0, np.float32))
            for text, row in zip(missing, judge.load().embed_texts(missing), strict=True)
        ]
        add(directory, rows)
    return View(directory, keys)


def refuse(rows: Iterable[Mapping[str, str]]) -> None:
    """Raise UserError naming everything that cannot be scored; nothing is no error."""
    reasons = {row["path"]: " ".join(filter(None, (row["reason"], row["detail"]))) for row in rows}
    if reasons:
        lines = "".join(f"\n  {path}: cannot be scored: {why}" for path, why in sorted(reasons.items()))
        count = "1 sound" if len(reasons) == 1 else f"{len(reasons)} sounds"
        raise UserError(f"{count} cannot be scored, and no part of a set is ever scored alone; mend or remove:{lines}")


def _tasks(sounds: Iterable[Sound]) -> list[list[Sound]]:
    """Sounds cut into tasks, each content once, whatever the workers and the state of the cache."""
    distinct = {sound.key: sound for sound in reversed(list(sounds))}
    ordered = sorted(distinct.values(), key=lambda sound: (*_kind(sound), sound.clip_id))
    tasks = []
    for (_, shard), group in groupby(ordered, key=_kind):
        members = list(group)
        size = len(members) if shard else TASK_SIZE
        tasks += [members[start : start + size] for start in range(0, len(members), size)]
    return tasks


def _kind(sound: Sound) -> tuple[str, bytes]:
    return sound.made_up or "", sound.path if sound.in_shard else b""


def embed(judge: Judge, directory: Path, sounds: Sequence[Sound], output: Path) -> shards.Report:
    """Embed a task's sounds into one file of the cache; what cannot be is rejected, and the rest is done all the same."""
    report = shards.Report()
    add(directory, _embeddings(_load(judge), sounds, judge.through, report))
    output.touch()
    return report


def _embeddings(embedder: Embedder, sounds: Sequence[Sound], through: int | None, report: shards.Report) -> Iterator[Embedding]:
    for batch in _batches(waves(sounds, through, report)):
        embedded = embedder.embed([resample(wave, rate, embedder.sample_rate) for _, wave, rate in batch])
        for (sound, wave, rate), frames, logits in zip(batch, embedded.frames, embedded.logits, strict=True):
            if np.isfinite(frames).all() and np.isfinite(logits).all():
                yield Embedding(sound.key, wave_facts(wave), rate, frames, logits)
            else:
                report.reject(sound.shown, "not finite", f"is the output of {embedder.name}")


@cache
def _load(judge: Judge) -> Embedder:
    """Once per worker process. One thread each: the processes share the cores, and more threads change last bits."""
    embedder = judge.load()
    if torch := sys.modules.get("torch"):  # only if the embedder uses it: importing it takes seconds
        torch.set_num_threads(1)
    return embedder


def _batches(items: Iterable[tuple[Sound, np.ndarray, int]]) -> Iterator[list[tuple[Sound, np.ndarray, int]]]:
    batch, samples = [], 0
    for item in items:
        if batch and (len(batch) == BATCH or samples + len(item[1]) > BATCH_SAMPLES):
            yield batch
            batch, samples = [], 0
        batch.append(item)
        samples += len(item[1])
    if batch:
        yield batch


def waves(sounds: Sequence[Sound], through: int | None, report: shards.Report) -> Iterator[tuple[Sound, np.ndarray, int]]:
    """(sound, mono wave [T], its rate) of sounds of one kind, one at a time; what cannot be decoded is rejected."""
    if sounds[0].made_up:
        for sound in sounds:
            yield sound, made_up(sound.made_up, sound.clip_id, sound.num_samples, sound.seed), sound.sample_rate
    elif sounds[0].in_shard:
        by_id = {sound.clip_id: sound for sound in sounds}
        for clip_id, wave, rate in clips_of(Path(os.fsdecode(sounds[0].path)), by_id):
            yield by_id[clip_id], resample(wave.mean(axis=0), rate, through or rate), through or rate
    else:
        yield from _file_waves(sounds, through, report)


def _file_waves(sounds: Sequence[Sound], through: int | None, report: shards.Report) -> Iterator[tuple[Sound, np.ndarray, int]]:
    with closing(decode.open_all((_unchanged(sound) for sound in sounds), MAX_SECONDS)) as opened:
        for sound, recording in zip(sounds, opened, strict=True):
            try:
                if isinstance(recording, decode.DecodeError):
                    raise recording
                blocks = (decode.mix_down(block) for block in recording.blocks)
                rate = through or recording.sample_rate
                blocks = resample_blocks(blocks, recording.sample_rate, rate)
                wave = np.concatenate([np.zeros(0, np.float32), *blocks])
            except decode.DecodeError as error:
                report.reject(sound.shown, error.reason, error.detail)
            else:
                yield sound, wave, rate


@contextmanager
def _unchanged(sound: Sound) -> Iterator[BinaryIO]:
    """The file of a sound, which must have the bytes that it is known by."""
    with decode.open_regular(sound.path) as opened:
        digest = shards.opened_digest(opened)
        if digest != sound.key:
            raise decode.DecodeError("changed", "while it was being scored; run it again")
        opened.seek(0)
        yield opened


def clips_of(shard: Path, clip_ids: Collection[str]) -> Iterator[tuple[str, np.ndarray, int]]:
    """(clip id, wave [C, T], its rate) of the wanted clips of one Parquet shard; one that is not there raises UserError."""
    if not shard.is_file():
        raise UserError(f"{shard}: no such shard, but the catalog names it; remake both with `dvc repro`")
    missing = set(clip_ids)
    for row in shards.read_rows(shard, manifest.CLIPS, columns=["clip_id", "audio"]):
        if row["clip_id"] in missing:
            missing.remove(row["clip_id"])
            data = row["audio"]["bytes"]
            yield row["clip_id"], flac.decode_flac(data), flac.flac_rate(data)
    if missing:
        names = ", ".join(sorted(missing)[:10])
        raise UserError(f"{shard}: clip {names} of the catalog is not in it; remake both with `dvc repro`")


def read_channels(sound: Sound) -> tuple[np.ndarray, int]:
    """A whole sound as wave [C, T], and its rate."""
    if sound.made_up:
        return made_up(sound.made_up, sound.clip_id, sound.num_samples, sound.seed)[None], sound.sample_rate
    if sound.in_shard:
        ((_, wave, rate),) = clips_of(Path(os.fsdecode(sound.path)), {sound.clip_id})
        return wave, rate
    try:
        return decode.read_channels(sound.path, MAX_SECONDS)
    except decode.DecodeError as error:
        raise UserError(f"{sound.shown}: cannot be scored: {error.reason} {error.detail}") from None
