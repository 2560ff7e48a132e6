"""Embeddings of many sounds: each is computed once, in a single-threaded process, and cached by its content (see cache.py)."""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from soundmill import hashing, manifest, shards
from soundmill.audio import flac
from soundmill.audio.resample import QUALITY, resample, resample_blocks
from soundmill.decoding import decode
from soundmill.errors import UserError
from soundmill.evaluation import degradations, embedders
from soundmill.evaluation.cache import LAYOUT, Embedded, Embedding, Facts, add, drop_damaged, facts_of, remove_unfinished
from soundmill.evaluation.embedders.base import Embedder, Level
from soundmill.metrics.divergence import names_of
from soundmill.shards import code

BATCH = 16  # sounds per call of an embedder, at most
BATCH_SAMPLES = 1 << 24  # samples per call, at most: bounds memory if sounds are long
TASK_SIZE = 32  # files or synthetic waves per task: small, so that a few dozen sounds occupy several processes
MAX_SECONDS = 3600.0  # of one sound: bounds memory if a header is wrong
SYNTHETIC = ("silence", "noise")  # baselines, as long as the reference's sounds
PEAK = 10 ** (-1 / 20)  # −1 dBFS
NOISE_LEVEL = 0.1  # standard deviation of the white noise: about as loud as a recording


@dataclass(frozen=True)
class EmbedderConfig:
    """An embedder with its options, as it is sent to worker processes."""

    name: str
    tagger: Path | None = None  # directory of the pipeline's tagger
    intermediate_rate: int | None = None  # sounds are resampled to it first; None: directly to the embedder's rate
    options: tuple[tuple[str, Any], ...] = ()  # set by the protocol
    level: Level = "unchanged"

    def directory(self, cache: Path) -> Path:
        """Where its embeddings are cached: one directory per embedder, weights, options and code."""
        options = [list(self.options), self.intermediate_rate, self.level]
        key = [self.name, self.weights, options, QUALITY, _code(self.module), LAYOUT]
        return cache / f"{self.name}-{hashing.digest(key)[:16]}"

    @property
    def weights(self) -> str:
        """Digest of the weights, which are not loaded."""
        return embedders.find(self.name).digest(self.tagger)

    def unavailable(self) -> str | None:
        """Why its weights cannot be used on this machine, with a remedy; None if they can."""
        return embedders.unavailable(self.name)

    @property
    def module(self) -> str:
        """What `load` imports."""
        return embedders.find(self.name).module

    @property
    def runs_on_gpu(self) -> bool:
        return embedders.find(self.name).gpu

    def load(self) -> Embedder:
        return embedders.load(self.name, self.tagger, **dict(self.options))


@cache  # a process keeps running the code that it has loaded
def _code(module: str) -> str:
    """Digest of the code between files and embeddings, with that of the embedder's module, and of its packages' versions."""
    files = sorted(code.running((__name__, module)))
    versions = code.package_versions(name for path in files for name in code.imports(path))
    return hashing.digest(hashing.files_digest(code.ROOT, files), versions)


@dataclass(frozen=True, slots=True)
class Sound:
    """One sound to embed: a file or a clip of a shard, perhaps degraded, or a synthetic wave; `key` is a digest of its content."""

    clip_id: str
    key: str
    path: bytes | None = None  # of the file or shard
    shown: str = ""  # in messages
    in_shard: bool = False
    synthetic: str | None = None  # "silence" or "noise", of
    num_samples: int = 0
    sample_rate: int = 0
    seed: int = 0
    degradation: str = ""  # one of degradations.DEGRADATIONS, of the sound whose key is
    original: str = ""


def list_digest(keys: Mapping[str, str]) -> str:
    """Digest of a list of sounds: their ids and keys, in the order of the ids."""
    return hashing.digest(sorted(map(list, keys.items())))


def file(clip_id: str, path: Path | bytes, digest: str) -> Sound:
    """A sound in a file whose bytes have this digest."""
    raw = bytes(path)
    return Sound(clip_id, digest, raw, manifest.escape_path(raw))


def clip(clip_id: str, shard: Path, shard_digest: str) -> Sound:
    """A clip in a shard whose bytes have this digest."""
    return Sound(clip_id, hashing.digest(shard_digest, clip_id), bytes(shard), f"{shard}: {clip_id}", in_shard=True)


def in_files(files: Mapping[str, Path]) -> dict[str, Sound]:
    """Sounds of files (id → path)."""
    return {clip_id: file(clip_id, path, hashing.file_digest(path)) for clip_id, path in sorted(files.items())}


def in_shards(clips: Mapping[Path, Iterable[str]]) -> dict[str, Sound]:
    """Sounds of clips (shard → ids)."""
    digests = {shard: hashing.file_digest(shard) for shard in sorted(clips)}
    return {name: clip(name, shard, digest) for shard, digest in digests.items() for name in sorted(clips[shard])}


def synthetic(kind: str, clip_id: str, facts: Facts, seed: int) -> Sound:
    """Silence or noise as long as a sound: all silence of one length is one sound; noise differs for each id and seed."""
    which = ("noise", seed, clip_id) if kind == "noise" else ("silence",)
    key = hashing.digest(*which, facts.num_samples, facts.sample_rate)
    shown = f"{kind} for {clip_id}"
    return Sound(clip_id, key, shown=shown, synthetic=kind, num_samples=facts.num_samples, sample_rate=facts.sample_rate, seed=seed)


def degraded(sound: Sound, kind: str, seed: int) -> Sound:
    """A file or clip, degraded (see degradations.py)."""
    key = hashing.digest("degraded", kind, seed, sound.clip_id, sound.key, degradations.code())
    shown = f"{sound.shown} ({degradations.DEGRADATIONS[kind].title})"
    return replace(sound, key=key, shown=shown, seed=seed, degradation=kind, original=sound.key)


def synthetic_wave(kind: str, clip_id: str, num_samples: int, seed: int) -> np.ndarray:
    """Wave [T] of digital silence, or of Gaussian white noise that depends only on the seed and the clip id."""
    if kind == "silence":
        return np.zeros(num_samples, np.float32)
    random = np.random.default_rng(int(hashing.digest("noise", seed, clip_id), 16))
    return np.clip(random.standard_normal(num_samples) * NOISE_LEVEL, -1, 1).astype(np.float32)


@dataclass(frozen=True)
class View:
    """Where one embedder's embeddings of a set of sounds are cached; it can be sent to other processes."""

    directory: Path
    keys: Mapping[str, str]  # id → key of its content, sorted by id

    def of(self, clip_ids: Iterable[str]) -> Self:
        return replace(self, keys={clip_id: self.keys[clip_id] for clip_id in clip_ids})

    def open(self) -> Embedded:
        """The embeddings; a missing one (the cache was emptied meanwhile) raises UserError."""
        embedded = Embedded(self.directory, set(self.keys.values()))
        missing = [clip_id for clip_id, key in self.keys.items() if key not in embedded]
        if missing:
            raise UserError(f"{self.directory}: the embedding of {missing[0]} has disappeared from the cache; run again")
        return embedded

    def frames(self) -> Iterator[tuple[str, np.ndarray]]:
        """(id, patches [P, D]) of every sound, sorted by id; P may be 0."""
        embedded = self.open()
        for clip_id, key in self.keys.items():
            yield clip_id, embedded.frames(key)

    def facts(self) -> dict[str, Facts]:
        embedded = self.open()
        return {clip_id: embedded.facts[key] for clip_id, key in self.keys.items()}

    def means(self) -> Iterator[tuple[str, np.ndarray]]:
        """(id, mean embedding [D] float64) of every sound that has patches, sorted by id."""
        return ((clip_id, patches.mean(axis=0, dtype=np.float64)) for clip_id, patches in self.frames() if len(patches))


def view(config: EmbedderConfig, sounds: Iterable[Sound], cache: Path) -> View:
    return View(config.directory(cache), {sound.clip_id: sound.key for sound in sorted(sounds, key=lambda sound: sound.clip_id)})


def embed_all(
    configs: Sequence[EmbedderConfig],
    sounds: Sequence[Sound],
    cache: Path,
    workers: int,
    progress: Callable[[int], object] = lambda n: None,
    refused: Sequence[Mapping[str, str]] = (),
) -> list[str]:
    """Embed every sound with every embedder, except those already cached; `progress` counts sounds, once per embedder.

    Cache files are verified first: damaged ones are removed, their embeddings computed again, and their names returned.
    Sounds that cannot be scored, including those in `refused`, raise one UserError naming them all, after all others are cached.
    Missing weights raise UserError unless every embedding is cached.
    """
    jobs, unavailable, damaged = [], {}, []
    for config in configs:
        directory = config.directory(cache)
        damaged += drop_damaged(directory, workers)
        cached = Embedded(directory, {sound.key for sound in sounds})
        tasks = [(task, [sound for sound in task if sound.key not in cached]) for task in _tasks(sounds)]
        progress(len(sounds) - sum(len(missing) for _, missing in tasks))
        if any(missing for _, missing in tasks) and (reason := config.unavailable()):
            unavailable[config.name] = reason
        for _, missing in tasks:
            if missing:
                jobs.append(shards.Job(f"{len(jobs):06d}", (config, directory, tuple(missing)), len(missing)))
    if unavailable:
        lines = "".join(f"\n  {name}: {reason}" for name, reason in unavailable.items())
        raise UserError(f"these sounds cannot be embedded, as weights are missing:{lines}")
    if not jobs:
        refuse(refused)
        return damaged
    for config in configs:
        remove_unfinished(config.directory(cache))
    imports = sorted({config.module for config in configs})
    rejections = shards.map_values(embed, jobs, workers=workers, progress=progress, imports=imports)
    # A rejection counts for every sound with the same content.
    keys = {sound.shown: sound.key for sound in sounds}
    rejected = {keys[row["path"]]: row for rows in rejections for row in rows}
    refuse([*refused, *({**rejected[key], "path": path} for path, key in keys.items() if key in rejected)])
    return damaged


def embed_texts(config: EmbedderConfig, texts: Mapping[str, str], cache: Path) -> View:
    """Embeddings [1, D] of texts by id, cached beside those of sounds, whose directory `embed_all` has verified."""
    directory = config.directory(cache)
    keys = {clip_id: hashing.digest("text", text) for clip_id, text in sorted(texts.items())}
    cached = Embedded(directory, set(keys.values()))
    missing = sorted({text for clip_id, text in texts.items() if keys[clip_id] not in cached})
    if missing:
        job = shards.Job("texts", (config, directory, missing))
        shards.map_values(_embed_texts, [job], workers=1)  # in a process of one thread, as sounds
    return View(directory, keys)


def _embed_texts(config: EmbedderConfig, directory: Path, texts: Sequence[str]) -> None:
    rows = [
        Embedding(hashing.digest("text", text), Facts(0, 0, False, False, ""), row[None], np.zeros(0, np.float32))
        for text, row in zip(texts, _load(config).embed_texts(texts), strict=True)
    ]
    add(directory, rows)


def refuse(rows: Iterable[Mapping[str, str]]) -> None:
    """Raise UserError naming everything that cannot be scored; an empty list is allowed."""
    reasons = {row["path"]: decode.DecodeError(row["reason"], row["detail"]) for row in rows}
    if reasons:
        lines = "".join(f"\n  {path}: cannot be scored: {why}" for path, why in sorted(reasons.items()))
        count = "1 sound" if len(reasons) == 1 else f"{len(reasons)} sounds"
        raise UserError(f"{count} cannot be scored, and incomplete sets are never scored; repair or remove:{lines}")


def _tasks(sounds: Iterable[Sound]) -> list[list[Sound]]:
    """Sounds split into tasks, each content once; independent of the workers and of the cache."""
    distinct = {sound.key: sound for sound in reversed(list(sounds))}
    ordered = sorted(distinct.values(), key=lambda sound: (*_kind(sound), sound.clip_id, sound.path or b"", sound.degradation))
    tasks = []
    for (_, shard), group in groupby(ordered, key=_kind):
        members = list(group)
        size = len(members) if shard else TASK_SIZE
        tasks += [members[start : start + size] for start in range(0, len(members), size)]
    return tasks


def _kind(sound: Sound) -> tuple[str, bytes]:
    return sound.synthetic or "", sound.path if sound.in_shard else b""


def embed(config: EmbedderConfig, directory: Path, sounds: Sequence[Sound]) -> list[dict[str, str]]:
    """Embed a task's sounds into one cache file; returns those that cannot be decoded or embedded, as rows of the quarantine."""
    report = shards.Report()
    add(directory, _embeddings(config, sounds, report))
    return report.quarantine


def _embeddings(config: EmbedderConfig, sounds: Sequence[Sound], report: shards.Report) -> Iterator[Embedding]:
    embedder = _load(config)
    for batch in _batches(waves(sounds, config.intermediate_rate, report, embedder.channels)):
        embedded = embedder.embed([prepared(*item, config.level, embedder.sample_rate) for item in batch])
        for (sound, wave, rate), frames, logits in zip(batch, embedded.frames, embedded.logits, strict=True):
            if np.isfinite(frames).all() and np.isfinite(logits).all():
                yield Embedding(sound.key, facts_of(wave, rate), frames, logits)
            else:
                report.reject(sound.shown, "not finite", f"output of {config.name}")


def prepared(sound: Sound, wave: np.ndarray, rate: int, level: Level, sample_rate: int) -> np.ndarray:
    """The wave [..., T] at the embedder's sample rate, and degraded there, since what it cannot hear needs no degradation."""
    wave = resample(set_level(wave, level), rate, sample_rate)
    if not sound.degradation:
        return wave
    degraded = [degradations.degrade(sound.degradation, one, sample_rate, sound.clip_id, sound.seed) for one in np.atleast_2d(wave)]
    return np.reshape(degraded, wave.shape)


def set_level(wave: np.ndarray, level: Level) -> np.ndarray:
    """A wave [..., T] with its peak at −1 dBFS or without its mean, as its protocol wants it; silence stays silence."""
    if level == "peak":
        peak = np.abs(wave).max(initial=0.0)
        return wave * np.float32(PEAK / peak) if peak > 0 else wave
    if level == "centred" and wave.shape[-1]:
        return wave - wave.mean(axis=-1, keepdims=True, dtype=np.float64).astype(np.float32)
    return wave


@cache
def _load(config: EmbedderConfig) -> Embedder:
    """Once per worker process."""
    return config.load()


def _batches(items: Iterable[tuple[Sound, np.ndarray, int]]) -> Iterator[list[tuple[Sound, np.ndarray, int]]]:
    batch, samples = [], 0
    for item in items:
        if batch and (len(batch) == BATCH or samples + item[1].size > BATCH_SAMPLES):
            yield batch
            batch, samples = [], 0
        batch.append(item)
        samples += item[1].size
    if batch:
        yield batch


def waves(
    sounds: Sequence[Sound], intermediate_rate: int | None, report: shards.Report, channels: int = 1
) -> Iterator[tuple[Sound, np.ndarray, int]]:
    """(sound, wave, its sample rate) of sounds of one kind, one at a time; those that cannot be decoded are rejected.

    Waves are mixed down to [T] or, with two `channels`, [2, T]: mono is doubled, and of more channels the first two stay.
    Degraded sounds are not degraded yet (see `prepared`); versions of one sound that follow each other are decoded once.
    """
    if sounds[0].synthetic:
        for sound in sounds:
            wave = synthetic_wave(sound.synthetic, sound.clip_id, sound.num_samples, sound.seed)
            yield sound, wave if channels == 1 else np.stack([wave, wave]), sound.sample_rate
        return
    versions = [list(group) for _, group in groupby(sounds, key=lambda sound: (sound.path, sound.clip_id))]
    if sounds[0].in_shard:
        by_id = {group[0].clip_id: group for group in versions}
        for clip_id, wave, rate in clips_of(Path(os.fsdecode(sounds[0].path)), by_id):
            wave = wave.mean(axis=0) if channels == 1 else decode.to_stereo(wave.T).T
            wave = resample(wave, rate, intermediate_rate or rate)
            yield from ((sound, wave, intermediate_rate or rate) for sound in by_id[clip_id])
        return
    convert = decode.mix_down if channels == 1 else decode.to_stereo
    empty = np.zeros(0 if channels == 1 else (0, channels), np.float32)
    with closing(decode.open_all((_unchanged(group[0]) for group in versions), MAX_SECONDS)) as opened:
        for group, recording in zip(versions, opened, strict=True):
            try:
                if isinstance(recording, decode.DecodeError):
                    raise recording
                blocks = (convert(block) for block in recording.blocks)
                rate = intermediate_rate or recording.sample_rate
                blocks = resample_blocks(blocks, recording.sample_rate, rate, channels)
                wave = np.concatenate([empty, *blocks]).T
            except decode.DecodeError as error:
                report.reject(group[0].shown, error.reason, error.detail)
            else:
                yield from ((sound, wave, rate) for sound in group)


@contextmanager
def _unchanged(sound: Sound) -> Iterator[BinaryIO]:
    """The opened file of a sound, whose bytes must still have the digest of its key."""
    with decode.open_regular(sound.path) as opened:
        digest = hashing.opened_digest(opened)
        if digest != (sound.original or sound.key):
            raise decode.DecodeError("changed", "while it was being scored; run again")
        opened.seek(0)
        yield opened


def clips_of(shard: Path, clip_ids: Collection[str]) -> Iterator[tuple[str, np.ndarray, int]]:
    """(clip id, wave [C, T], its sample rate) of these clips of one Parquet shard; a missing clip raises UserError."""
    if not shard.is_file():
        raise UserError(f"{shard}: no such shard, but the catalog lists it; rebuild both with `dvc repro`")
    missing = set(clip_ids)
    for row in shards.read_rows(shard, manifest.CLIPS, columns=["clip_id", "audio"]):
        if row["clip_id"] in missing:
            missing.remove(row["clip_id"])
            data = row["audio"]["bytes"]
            yield row["clip_id"], flac.decode_flac(data), flac.flac_rate(data)
    if missing:
        raise UserError(f"{shard}: {names_of(sorted(missing))} missing, but listed in the catalog; rebuild both with `dvc repro`")


def read_channels(sound: Sound) -> tuple[np.ndarray, int]:
    """A whole sound as wave [C, T], and its sample rate."""
    if sound.synthetic:
        return synthetic_wave(sound.synthetic, sound.clip_id, sound.num_samples, sound.seed)[None], sound.sample_rate
    if sound.in_shard:
        ((_, wave, rate),) = clips_of(Path(os.fsdecode(sound.path)), {sound.clip_id})
        return wave, rate
    try:
        return decode.read_channels(sound.path, MAX_SECONDS)
    except decode.DecodeError as error:
        raise UserError(f"{sound.shown}: cannot be scored: {error}") from None
