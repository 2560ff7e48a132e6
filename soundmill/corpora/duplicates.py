"""One sound twice: pairs of clips that are the same by ear (their fingerprints) or by video.

Not all are compared with all. Two successive moments of a fingerprint make a key; clips that have keys in common at one offset
are candidates, and only those are compared. In a bucket (all that have one key) a clip meets a few of the entries around its
own place, so hum and noise cost no more than anything else, and many copies of one sound still hang together as a chain.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from soundmill import manifest, shards
from soundmill.audio import decode, fingerprint, resample
from soundmill.corpora import inventory
from soundmill.corpora.audiocaps import VIDEO_ID
from soundmill.errors import UserError

THRESHOLD = 0.4  # of the score of two duplicates; docs/duplicates.md says how it was measured
KEY_LATER = 4  # frames between the two moments of a key
KEY_BITS = np.uint32(0x00FFFFFF)  # of the first: bands below 3.7 kHz, which sound once sampled at 8 kHz has too
KEY_BITS_LATER = np.uint32(0x0000FF00)
QUIET_FRAMES = 2  # before and after one in which a band is silent, and not just undecided
KEYS, KEYS_PER_SECOND = 64, 16  # of a clip in the index: so many in all and so many more for each second
LEAST_HEARD = 8  # bits of a key that are certain because something moves
MOST_UNCERTAIN = 12  # bits of a key in the index
PROBES, PROBES_PER_SECOND = 256, 64  # keys looked up for a clip
MOST_FLIPPED = 7  # uncertain bits of a key that is looked up both ways
NEIGHBOURS = 8  # that are taken from a bucket before and after a clip's own place, and of exact copies after each
MIN_KEYS = 2  # in common, at offsets that differ by OFFSET_SLACK frames at most
OFFSET_SLACK = 2  # a copy's frames lie between those of the original
BLOCK_FRAMES = 1 << 20  # of the clips that are looked up at once
RANK_BITS, RANKS = np.uint64(32), np.uint64((1 << 32) - 1)  # of a clip, below its key, in an entry of the index
LARGEST_OFFSET = 1 << 20  # frames, some 4.6 hours
MAX_SECONDS = 7200.0  # longer files are no clips
FILES_PER_JOB = 32

Pair = dict[str, Any]  # a row of manifest.DUPLICATES


@dataclass
class Found:
    """Pairs in the order of their ids, and what they were found among."""

    pairs: list[Pair]
    clips: int
    featureless: list[str]  # ids of clips too short, soft or steady for a fingerprint: only exact copies of them are found


def find(
    clips: Path,
    recordings: Iterable[Mapping[str, Any]],
    map_shards: Callable[[Callable[..., shards.Report], list[shards.Job], Path], shards.Report],
    scratch: Path,
    threshold: float = THRESHOLD,
) -> Found:
    """Duplicates among the clips of the shards below `clips`, cut from `recordings` (rows of manifest.RECORDINGS).

    `map_shards` is that of stage.Context, `scratch` a directory below the stage's own. Clips of one recording are not compared:
    they never part.
    """
    prints = scratch / "fingerprints"
    shutil.rmtree(prints, ignore_errors=True)  # links that a killed run left
    sources = shards.shard_paths(clips)
    jobs = [shards.Job(path.name, (path,), weight=pq.read_metadata(path).num_rows) for path in sources]
    map_shards(fingerprint_shard, jobs, prints)
    by_id = {row["recording_id"]: row for row in recordings}
    return _find([prints / job.name for job in jobs], threshold, scratch, by_id)


def find_in_folder(
    root: Path, workers: int, threshold: float = THRESHOLD, progress: Callable[[int], object] = lambda n: None
) -> tuple[Found, list[dict[str, str]]]:
    """Duplicates among the audio files below `root`, by their relative paths (escaped), and the files that could not be read.

    The second are rows of manifest.QUARANTINE.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such directory; give the folder that holds the audio files")
    taken = inventory.take(root, workers)
    taken.check_not_empty()
    batches = [taken.audio[start : start + FILES_PER_JOB] for start in range(0, len(taken.audio), FILES_PER_JOB)]
    jobs = [
        shards.Job(shards.shard_name(number), (bytes(root.resolve()), batch), weight=len(batch))
        for number, batch in enumerate(batches)
    ]
    with tempfile.TemporaryDirectory(prefix="soundmill-duplicates-") as name:
        prints = Path(name) / "fingerprints"
        report = shards.map_shards(fingerprint_files, jobs, prints, workers=workers, progress=progress)
        found = _find([prints / job.name for job in jobs], threshold, Path(name), {})
    return found, sorted([*taken.rejected, *report.quarantine], key=lambda row: row["path"])


def write_json(pairs: list[Pair], path: Path) -> None:
    """Write a list of {a, b, score}."""
    plain = [{name: pair[name] for name in ("a", "b", "score")} for pair in pairs]
    text = json.dumps(plain, indent=1, ensure_ascii=False) + "\n"
    shards.write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def fingerprint_shard(source: Path, output: Path, previous: Path | None = None) -> shards.Report:
    """Write the fingerprints of one shard's clips; those of unchanged clips are taken from `previous`."""
    import soundfile

    with shards.ItemWriter(output, manifest.FINGERPRINTS, previous) as writer:
        plain = list(shards.read_rows(source, manifest.CLIPS, ["clip_id", "recording_id", "start", "digest"]))
        keys = [shards.digest(row) for row in plain]
        wanted = [number for number, key in enumerate(keys) if key not in writer]
        audio = shards.read_rows(source, manifest.CLIPS, ["audio"], wanted)
        for row, key in zip(plain, keys, strict=True):
            if writer.copy(key):
                continue
            with writer.item(key):
                wave, rate = soundfile.read(io.BytesIO(next(audio)["audio"]["bytes"]), dtype="float32")
                found = fingerprint.fingerprint(resample.resample(wave, rate, fingerprint.SAMPLE_RATE))
                writer.write({**row, "seconds": len(wave) / rate, "fingerprint": found.astype("<u4").tobytes()})
    return writer.report


def fingerprint_files(root: bytes, files: list[inventory.AudioFile], output: Path) -> shards.Report:
    """Write the fingerprints of some files below `root`, each a clip of its own; what cannot be decoded is rejected."""
    report = shards.Report()
    with shards.ShardWriter(output, manifest.FINGERPRINTS) as writer:
        for file in files:
            try:
                rate, blocks = decode.decode_blocks(os.path.join(root, file.raw_path), MAX_SECONDS)
                found = fingerprint.fingerprint_blocks(resample.resample_blocks(blocks, rate, fingerprint.SAMPLE_RATE))
            except decode.DecodeError as error:
                report.reject(file.path, error.reason, error.detail)
                continue
            seconds = len(found) / fingerprint.FRAMES_PER_SECOND
            row = {"clip_id": file.path, "recording_id": file.path, "start": 0.0, "seconds": seconds, "digest": file.digest}
            writer.write({**row, "fingerprint": found.astype("<u4").tobytes()})
    return report


def _find(prints: list[Path], threshold: float, scratch: Path, recordings: Mapping[str, Mapping[str, Any]]) -> Found:
    with Index(scratch) as index:
        for path in prints:
            for row in shards.read_rows(path, manifest.FINGERPRINTS):
                words = np.frombuffer(row.pop("fingerprint"), dtype="<u4").reshape(-1, 2)
                index.add(row["clip_id"], row["recording_id"], words.astype(np.uint32))
        rows = [
            row
            for path in prints
            for row in shards.read_rows(path, manifest.FINGERPRINTS, ["clip_id", "recording_id", "start", "seconds", "digest"])
        ]
        pairs = {(a, b): {"a": a, "b": b, "score": score, "kind": "sound"} for a, b, score in index.pairs(threshold)}
    for a, b in _exact_copies(rows):
        pairs[a, b] = {"a": a, "b": b, "score": 1.0, "kind": "sound"}
    for a, b, score in _by_video(rows, recordings):
        pairs[a, b] = {"a": a, "b": b, "score": max(score, pairs.get((a, b), {"score": 0.0})["score"]), "kind": "video"}
    return Found([pairs[key] for key in sorted(pairs)], len(rows), sorted(index.featureless))


class Index:
    """Fingerprints of many clips: the words in a file without a name below `scratch`, keys in memory (16 bytes each).

    What is found does not depend on the order in which clips are added.
    """

    def __init__(self, scratch: Path):
        self.featureless: list[str] = []
        self._file = tempfile.TemporaryFile(dir=scratch)
        self._ids: list[str] = []
        self._owners: list[str] = []
        self._starts = [0]  # of each clip's words in the file, in frames
        self._keys: list[np.ndarray] = []
        self._frames: list[np.ndarray] = []

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, clip_id: str, owner: str, words: np.ndarray) -> None:
        """Take in one clip (uint32 [frames, 2]); clips of one owner are not compared with each other."""
        keys, frames = keys_of(words)
        if fingerprint.num_certain(words) < fingerprint.MIN_BITS or len(keys) < MIN_KEYS:
            self.featureless.append(clip_id)
            return
        self._file.write(words.tobytes())
        self._ids.append(clip_id)
        self._owners.append(owner)
        self._starts.append(self._starts[-1] + len(words))
        self._keys.append(keys)
        self._frames.append(frames)

    def words(self, number: int) -> np.ndarray:
        """Fingerprint uint32 [frames, 2] of the clip that came as `number`."""
        start, end = self._starts[number], self._starts[number + 1]
        data = os.pread(self._file.fileno(), (end - start) * 8, start * 8)
        return np.frombuffer(data, dtype=np.uint32).reshape(-1, 2)

    def pairs(self, threshold: float) -> Iterator[tuple[str, str, float]]:
        """(id, id, score) of clips whose score reaches the threshold; the lesser id first."""
        self._file.flush()
        scores: dict[tuple[int, int], float] = {}
        for first, second, offset in self.candidates():
            a, b = self.words(first), self.words(second)
            score = max(fingerprint.similarity(a, b, offset + shift) for shift in range(-1, OFFSET_SLACK + 2))
            if score >= threshold:
                pair = (first, second) if self._ids[first] < self._ids[second] else (second, first)
                scores[pair] = max(score, scores.get(pair, 0.0))
        for (first, second), score in scores.items():
            yield self._ids[first], self._ids[second], round(score, 4)

    def candidates(self) -> Iterator[tuple[int, int, int]]:
        """(number, number, offset) of clips with MIN_KEYS keys in common, at the offset that most of them have.

        The first clip of each was looked up; a pair comes once or twice.
        """
        order = sorted(range(len(self._ids)), key=self._ids.__getitem__)
        if not order:
            return
        _, owner = np.unique([self._owners[number] for number in order], return_inverse=True)
        places = np.concatenate([_places(self._keys[number], rank) for rank, number in enumerate(order)])
        frames = np.concatenate([self._frames[number] for number in order])
        by_place = np.argsort(places, kind="stable")
        places, frames = places[by_place], frames[by_place]
        for ranks in self._blocks(order):
            found = [probes_of(self.words(order[rank])) for rank in ranks]
            wanted = np.concatenate([_places(keys, rank) for rank, (keys, _) in zip(ranks, found, strict=True)])
            at = np.concatenate([probed for _, probed in found])
            hits = [np.zeros(0, dtype=np.int64)]
            for first, second, offset in _neighbours(places, frames, wanted, at):
                pair = (first - ranks.start) * len(order) + second
                hits.append((pair * (2 * LARGEST_OFFSET) + offset + LARGEST_OFFSET)[owner[first] != owner[second]])
            for code in _best_offsets(np.concatenate(hits)):
                pair, offset = divmod(int(code), 2 * LARGEST_OFFSET)
                first, second = divmod(pair, len(order))
                yield order[ranks.start + first], order[second], offset - LARGEST_OFFSET

    def _blocks(self, order: list[int]) -> Iterator[range]:
        """Ranges of ranks whose clips have some BLOCK_FRAMES frames together."""
        start, frames = 0, 0
        for rank, number in enumerate(order, start=1):
            frames += self._starts[number + 1] - self._starts[number]
            if frames >= BLOCK_FRAMES or rank == len(order):
                yield range(start, rank)
                start, frames = rank, 0


def _places(keys: np.ndarray, rank: int) -> np.ndarray:
    """Where entries of one clip stand in the index: uint64 [n], by key, then by the clip's rank."""
    return keys.astype(np.uint64) << RANK_BITS | np.uint64(rank)


def _neighbours(
    places: np.ndarray, frames: np.ndarray, wanted: np.ndarray, at: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(rank looked up, rank found, offset) of the NEIGHBOURS entries on either side of every wanted place in its bucket.

    A clip has its own place even in buckets that none of its keys is in, so that not all clips are given the same few entries.
    """
    by_place = np.argsort(wanted, kind="stable")  # close places are looked up one after the other
    wanted, at = wanted[by_place], at[by_place]
    for side, step in (("right", 1), ("left", -1)):
        entries = np.searchsorted(places, wanted, side=side) - (side == "left")
        looked, when = wanted, at
        for _ in range(NEIGHBOURS):
            inside = (entries >= 0) & (entries < len(places))
            inside[inside] = places[entries[inside]] >> RANK_BITS == looked[inside] >> RANK_BITS
            entries, looked, when = entries[inside], looked[inside], when[inside]
            yield (looked & RANKS).astype(np.int64), (places[entries] & RANKS).astype(np.int64), frames[entries] - when
            entries = entries + step


def keys_of(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keys uint32 [n] of a fingerprint for the index, the most certain ones, and their frames int32 [n]."""
    keys, _, frames = _certain_first(words, MOST_UNCERTAIN)
    most = KEYS + int(KEYS_PER_SECOND * len(words) / fingerprint.FRAMES_PER_SECOND)
    return keys[:most], frames[:most]


def probes_of(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keys uint32 [n] to look up for a fingerprint, and their frames int32 [n]: the most certain ones, uncertain bits both ways.

    A coder turns few bits but uncertain ones, so most of these keys are in the index as they stand.
    """
    keys, uncertain, frames = _certain_first(words, MOST_FLIPPED)
    most = PROBES + int(PROBES_PER_SECOND * len(words) / fingerprint.FRAMES_PER_SECOND)
    count = int(np.searchsorted(np.cumsum(1 << np.bitwise_count(uncertain).astype(np.int64)), most, side="right"))
    keys, uncertain, frames = keys[:count], uncertain[:count], frames[:count]
    for _ in range(MOST_FLIPPED):
        rest = uncertain & (uncertain - np.uint32(1))
        turned = uncertain != 0
        keys = np.concatenate([keys, (keys ^ uncertain ^ rest)[turned]])
        frames = np.concatenate([frames, frames[turned]])
        uncertain = np.concatenate([rest, rest[turned]])
    return keys, frames


def _certain_first(words: np.ndarray, most_uncertain: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys uint32 [n] of a fingerprint, their uncertain bits uint32 [n] and frames int32 [n], those with the fewest first."""
    count = max(0, len(words) - KEY_LATER)
    signs, certain = words.T
    near = np.pad(signs | certain, QUIET_FRAMES)
    active = np.bitwise_or.reduce([near[shift : shift + len(words)] for shift in range(2 * QUIET_FRAMES + 1)])
    # A band that is not heard for so long will not be heard in a copy either.
    keys, heard, certain = (
        word[:count] & KEY_BITS | (word[KEY_LATER : KEY_LATER + count] & KEY_BITS_LATER) << np.uint32(16)
        for word in (signs, certain, certain | ~active)
    )
    number = np.bitwise_count(~certain)
    usable = (number <= most_uncertain) & (np.bitwise_count(heard) >= LEAST_HEARD)
    usable[1:] &= keys[1:] != keys[:-1]  # what stands still is in the index once
    frames = np.flatnonzero(usable).astype(np.int32)
    frames = frames[np.argsort(number[frames], kind="stable")]
    return keys[frames], ~certain[frames], frames


def _best_offsets(hits: np.ndarray) -> np.ndarray:
    """Of hits (pair · 2 LARGEST_OFFSET + offset), the one of each pair that begins the most crowded OFFSET_SLACK frames."""
    hits = np.sort(hits)
    crowd = np.searchsorted(hits, hits + OFFSET_SLACK, side="right") - np.arange(len(hits))
    hits, crowd = hits[crowd >= MIN_KEYS], crowd[crowd >= MIN_KEYS]
    pair = hits // (2 * LARGEST_OFFSET)
    best = np.lexsort((hits, -crowd, pair))
    return hits[best][np.diff(pair[best], prepend=-1) > 0]


def _exact_copies(rows: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Ids of clips of different recordings that were made from the same bytes."""
    by_digest: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_digest[row["digest"]].append(row)
    for copies in by_digest.values():
        copies.sort(key=lambda row: row["clip_id"])
        for number, first in enumerate(copies):
            for second in copies[number + 1 : number + 1 + NEIGHBOURS]:
                if first["recording_id"] != second["recording_id"]:
                    yield first["clip_id"], second["clip_id"]


def _by_video(rows: list[dict[str, Any]], recordings: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, float]]:
    """(id, id, share of the shorter) of clips whose windows of one YouTube video overlap."""
    # A group may be anything that must not part. It is a video where it looks like one and a recording is called after it.
    groups = {row["group"] for row in recordings.values() if manifest.naming_stem(row["recording_id"]) == row["group"]}
    videos = {group for group in groups if VIDEO_ID.fullmatch(group)}
    windows: dict[str, list[tuple[float, float, str, str]]] = defaultdict(list)
    for row in rows:
        recording = recordings.get(row["recording_id"])
        if recording and recording["group"] in videos:
            start = recording["start_time"] + row["start"]
            windows[recording["group"]].append((start, start + row["seconds"], row["recording_id"], row["clip_id"]))
    for cuts in windows.values():
        cuts.sort()
        for number, (start, end, recording_id, clip_id) in enumerate(cuts):
            for begin, stop, other_recording, other in cuts[number + 1 :]:
                if begin >= end:
                    break
                if other_recording != recording_id:
                    share = (min(end, stop) - begin) / min(end - start, stop - begin)
                    yield min(clip_id, other), max(clip_id, other), round(share, 4)
