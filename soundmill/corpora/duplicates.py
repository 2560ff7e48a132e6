"""One sound twice: pairs of clips that are the same by ear (their fingerprints) or by video.

Not all are compared with all. Two successive moments of a fingerprint make a key; clips that have keys in common at one offset
are candidates, and only those are compared. In a bucket (all that have one key) a clip meets a few of the entries around its
own place, so hum and noise cost no more than anything else, and many copies of one sound still hang together as a chain.

No process holds the keys of all clips. A bucket is looked at by itself, so keys, and what is looked up among them, are dealt by key
into parts on disk, what they have in common by pair; of each as many parts are in memory at once as have some RECORDS, in each of
LOOKING_UP threads.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from soundmill import disk, manifest, shards
from soundmill.audio import fingerprint, resample
from soundmill.corpora import inventory, sources
from soundmill.decoding import decode
from soundmill.errors import UserError

THRESHOLD = 0.4  # of the score of two duplicates; docs/duplicates.md says how it was measured
KEY_LATER = 4  # frames between the two moments of a key
KEY_BITS = np.uint32(0x00FFFFFF)  # of the first: bands below 3.7 kHz, which sound once sampled at 8 kHz has too
KEY_BITS_LATER = np.uint32(0x0000FF00)
QUIET_FRAMES = 2  # before and after one in which a band is silent, and not just undecided
KEYS_FRAMES = 312  # about five seconds, each of which has its share of the keys: one loud minute must not have those of an hour
KEYS, KEYS_PER_SECOND = 64, 16  # of a clip in the index: so many in all and so many more for each second
LEAST_HEARD = 8  # bits of a key that are certain because something moves
MOST_UNCERTAIN = 12  # bits of a key in the index
PROBES, PROBES_PER_SECOND = 256, 64  # keys looked up for a clip
MOST_FLIPPED = 7  # uncertain bits of a key that is looked up both ways
NEIGHBOURS = 8  # that are taken from a bucket before and after a clip's own place, and of exact copies after each
MIN_KEYS = 2  # in common, at offsets that differ by OFFSET_SLACK frames at most
OFFSET_SLACK = 2  # a copy's frames lie between those of the original
RECORDS = 1 << 18  # of keys, of looked-up keys and of what they have in common, that are in memory at once
LOOKING_UP = 2  # threads, each with RECORDS of its own; sorting and searching release the GIL
PARTS = 1 << 9  # that they are dealt to: each is held whole, so more than so many times RECORDS take more memory
SPREAD = np.uint32(2_654_435_769)  # Fibonacci hashing: keys of sounds crowd, their products' highest bits do not
SPREAD_OTHERWISE = np.uint32(2_246_822_507)  # than into parts: all keys of a part begin alike by the one above
SLOT_BITS = 22  # of a table of the keys that are in memory: a quarter of a million of them leave most of it empty
RANK_BITS, RANKS = np.uint64(32), np.uint64((1 << 32) - 1)  # of a clip, below its key, in an entry of the index
LARGEST_OFFSET = 1 << 20  # frames, some 4.6 hours
MOST_CODES = 1 << 42  # pairs that 63 bits can number beside an offset
FILES_PER_JOB = 32
CLIPS_AT_ONCE = 256  # that the index takes in: 5 MB where they last ten seconds
INDEXED = ["fingerprint", "keys", "probes"]  # columns of manifest.FINGERPRINTS

Pair = dict[str, Any]  # a row of manifest.DUPLICATES


@dataclass
class Found:
    """Pairs in the order of their ids, and what they were found among."""

    pairs: list[Pair]
    names: pa.Table  # manifest.FINGERPRINTS but for what the index takes, clips in the order of their shards
    featureless: list[str]  # ids of clips too short, soft or steady for a fingerprint: only exact copies of them are found


def find(
    clips: Path,
    recordings: pa.Table,
    map_shards: Callable[..., shards.Report],
    scratch: Path,
    threshold: float = THRESHOLD,
) -> Found:
    """Duplicates among the clips of the shards below `clips`, cut from `recordings` (`recording_id`, `group`, `start_time`).

    `map_shards` is that of stage.Context, `scratch` a directory below the stage's own. Clips of one recording are not compared:
    they never part.
    """
    prints = scratch / "fingerprints"
    shutil.rmtree(prints, ignore_errors=True)  # links that a killed run left
    sources = shards.shard_paths(clips)
    jobs = [shards.Job(path.name, (path,), path.stat().st_size, shards.digest(shards.signature(path))) for path in sources]
    map_shards(fingerprint_shard, jobs, prints, unit="B")
    names = _names([prints / job.name for job in jobs])
    pairs, featureless = _by_sound([prints / job.name for job in jobs], names, threshold, scratch)
    for a, b, score in _by_video(names, recordings):
        pairs[a, b] = {"a": a, "b": b, "score": max(score, pairs.get((a, b), {"score": 0.0})["score"]), "kind": "video"}
    return Found([pairs[key] for key in sorted(pairs)], names, featureless)


def find_in_folder(
    root: Path,
    workers: int,
    threshold: float = THRESHOLD,
    progress: Callable[[int], object] = lambda n: None,
    follow_links: bool = False,
) -> tuple[Found, list[dict[str, str]]]:
    """Duplicates among the audio files below `root`, by their relative paths (escaped), and the files that could not be read.

    The second are rows of manifest.QUARANTINE. `follow_links` as in inventory.take.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such directory; give the folder that holds the audio files")
    taken = inventory.take(root, workers, follow_links=follow_links)
    batches = [taken.audio[start : start + FILES_PER_JOB] for start in range(0, len(taken.audio), FILES_PER_JOB)]
    # A row group is read from its beginning by everyone who reads of it.
    batches += [list(group) for _, group in itertools.groupby(_embedded(taken), key=lambda file: file.shard_key)]
    if not batches:
        raise UserError(f"{root}: no audio file in it ({taken.num_files} files); give the folder that holds the audio files")
    jobs = [
        shards.Job(shards.shard_name(number), (bytes(root.resolve()), batch), weight=len(batch))
        for number, batch in enumerate(batches)
    ]
    with tempfile.TemporaryDirectory(prefix="soundmill-duplicates-") as name:
        prints = Path(name) / "fingerprints"
        report = shards.map_shards(fingerprint_files, jobs, prints, workers=workers, progress=progress)
        made = [prints / job.name for job in jobs]
        names = _names(made)
        pairs, featureless = _by_sound(made, names, threshold, Path(name))
    found = Found([pairs[key] for key in sorted(pairs)], names, featureless)
    return found, sorted([*taken.rejected, *report.quarantine], key=lambda row: row["path"])


def _embedded(taken: inventory.Inventory) -> Iterator[sources.EmbeddedFile]:
    """The recordings in Parquet tables; what cannot be used is rejected. One that several rows of a table have is one."""
    for name, path in taken.metadata.items():
        if not name.lower().endswith(b".parquet"):
            continue
        try:
            with sources.open_table(path) as table:
                if sources.audio_column(table.schema_arrow) is None:
                    continue
                seen = set()
                for row, (file, _) in enumerate(sources.embedded_files(name, table, sources.digest_cells(table))):
                    if isinstance(file, decode.DecodeError):
                        shown = sources.shown(sources.embedded_path(name, row))
                        taken.rejected.append({"path": shown, "reason": file.reason, "detail": file.detail})
                    elif (same := (file.inner_path, file.digest)) not in seen:
                        seen.add(same)
                        yield file
        except decode.DecodeError as error:
            taken.reject(name, error.reason, error.detail)


def write_json(pairs: list[Pair], path: Path) -> None:
    """Write a list of {a, b, score}; paths as they are, but of one that is no UTF-8, which JSON cannot say, its escaped form."""
    plain = [{"a": _unescaped(pair["a"]), "b": _unescaped(pair["b"]), "score": pair["score"]} for pair in pairs]
    text = json.dumps(plain, indent=1, ensure_ascii=False) + "\n"
    disk.write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _unescaped(path: str) -> str:
    try:
        return manifest.unescape_path(path).decode()
    except UnicodeDecodeError:
        return path


def fingerprint_shard(source: Path, output: Path, previous: Path | None = None) -> shards.Report:
    """Write the fingerprints of one shard's clips; those of unchanged clips are taken from `previous`."""
    from soundmill.audio.flac import decode_mono, flac_rate

    with shards.ItemWriter(output, manifest.FINGERPRINTS, previous) as writer:
        plain = list(shards.read_rows(source, manifest.CLIPS, ["clip_id", "recording_id", "start", "digest"]))
        keys = [shards.digest(row) for row in plain]
        wanted = [number for number, key in enumerate(keys) if key not in writer]
        audio = shards.read_rows(source, manifest.CLIPS, ["audio"], wanted)
        for row, key in zip(plain, keys, strict=True):
            if writer.copy(key):
                continue
            with writer.item(key):
                data = next(audio)["audio"]["bytes"]
                wave, rate = decode_mono(data), flac_rate(data)
                words = fingerprint.fingerprint(resample.resample(wave, rate, fingerprint.SAMPLE_RATE))
                writer.write({**row, "seconds": len(wave) / rate, **landmarks(words)})
    return writer.report


def fingerprint_files(root: bytes, files: list[inventory.AudioFile], output: Path) -> shards.Report:
    """Write the fingerprints of some files below `root`, each a clip of its own; what cannot be decoded is rejected."""
    report, corpus = shards.Report(), sources.Sources({b"": root})
    with shards.ShardWriter(output, manifest.FINGERPRINTS) as writer:
        for file in files:
            try:
                with corpus.open(file.raw_path, output.parent) as path:
                    rate, blocks = decode.decode_blocks(path, decode.MAX_SECONDS)
                    sound = _Heard(resample.resample_blocks(blocks, rate, fingerprint.SAMPLE_RATE))
                    words = fingerprint.fingerprint_blocks(sound)
            except decode.DecodeError as error:
                report.reject(file.path, error.reason, error.detail)
                continue
            seconds = len(words) / fingerprint.FRAMES_PER_SECOND
            digest = file.digest if sound.any else ""  # silence is no sound that two files could have in common
            row = {"clip_id": file.path, "recording_id": file.path, "start": 0.0, "seconds": seconds, "digest": digest}
            writer.write({**row, **landmarks(words)})
    return report


class _Heard:
    """Blocks of a sound, and whether any sample of those that were taken is not zero."""

    def __init__(self, blocks: Iterable[np.ndarray]):
        self._blocks, self.any = blocks, False

    def __iter__(self) -> Iterator[np.ndarray]:
        for block in self._blocks:
            self.any = self.any or bool(block.any())
            yield block


def landmarks(words: np.ndarray) -> dict[str, bytes]:
    """A fingerprint uint32 [frames, 2] with its LANDMARKs for the index; none where it has too little to go by."""
    keys, uncertain, frames = certain_keys(words)
    if fingerprint.num_certain(words) < fingerprint.MIN_BITS or len(keys) < MIN_KEYS:
        keys, uncertain, frames = keys[:0], uncertain[:0], frames[:0]
    seconds = len(words) / fingerprint.FRAMES_PER_SECOND
    most = KEYS + int(KEYS_PER_SECOND * seconds)
    probes = turned(keys, uncertain, frames, PROBES + int(PROBES_PER_SECOND * seconds))
    return {
        "fingerprint": words.astype("<u4").tobytes(),
        "keys": _records(LANDMARK, keys[:most], frames[:most]).tobytes(),
        "probes": _records(LANDMARK, *probes).tobytes(),
    }


def _names(prints: list[Path]) -> pa.Table:
    """All that is known of the clips but what the index takes, in the order of the shards."""
    columns = [name for name in manifest.FINGERPRINTS.names if name not in INDEXED]
    return pa.concat_tables(shards.read_table(path, manifest.FINGERPRINTS, columns) for path in prints).combine_chunks()


def _by_sound(
    prints: list[Path], names: pa.Table, threshold: float, scratch: Path
) -> tuple[dict[tuple[str, str], Pair], list[str]]:
    """Pairs of clips that sound alike or have the same bytes, and the ids of those without features, sorted."""
    with Index(scratch, names["clip_id"], names["recording_id"]) as index:
        first, adding = 0, None
        with ThreadPoolExecutor(1) as pool:
            for tables in shards.read_tables(prints, manifest.FINGERPRINTS, INDEXED, CLIPS_AT_ONCE):
                table = pa.concat_tables(tables)
                if adding:
                    adding.result()
                adding = pool.submit(index.add, first, table)
                first += table.num_rows
            if adding:
                adding.result()
        scored = [*index.pairs(threshold), *((a, b, 1.0) for a, b in _exact_copies(names))]
    return {(a, b): {"a": a, "b": b, "score": score, "kind": "sound"} for a, b, score in scored}, sorted(index.featureless)


class Index:
    """Fingerprints of many clips (`ids`, and `owners` whose clips are not compared with each other), found again by their keys.

    Words and keys are in files without names below `scratch`; in memory are the names, 40 bytes a clip, and a bounded number of
    keys. What is found does not depend on the order of the clips.
    """

    def __init__(self, scratch: Path, ids: pa.ChunkedArray, owners: pa.ChunkedArray):
        if len(ids) ** 2 > PARTS * MOST_CODES:
            raise UserError(f"{len(ids)} clips: more than {math.isqrt(PARTS * MOST_CODES)} are not compared; split the corpus")
        self.featureless: list[str] = []
        self._ids = ids
        self._order = pc.sort_indices(ids).to_numpy()  # clips by rank
        self._ranks = np.empty(len(ids), dtype=np.uint32)  # and the reverse
        self._ranks[self._order] = np.arange(len(ids), dtype=np.uint32)
        self._owners = pc.dictionary_encode(owners).combine_chunks().indices.to_numpy()[self._order]  # by rank
        self._places = np.zeros((len(ids), 2), dtype=np.int64)  # where each clip's words begin in the file, and their number
        self._scratch = scratch
        self._file = tempfile.TemporaryFile(dir=scratch)
        self._keys, self._probes = _Dealt(scratch, KEY_RECORD), _Dealt(scratch, KEY_RECORD)

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._file, self._keys, self._probes):
            file.close()

    def add(self, first: int, clips: pa.Table) -> None:
        """Take in clips that come one after the other among the ids, from the `first` on; columns as in manifest.FINGERPRINTS."""
        numbers = slice(first, first + clips.num_rows)
        words, frames = _joined(clips["fingerprint"], WORDS)
        self._places[numbers, 0] = self._file.tell() + (np.cumsum(frames) - frames) * WORDS.itemsize
        self._places[numbers, 1] = frames
        self._file.write(words.tobytes())
        for dealt, column in ((self._keys, "keys"), (self._probes, "probes")):
            joined, counts = _joined(clips[column], LANDMARK)
            ranks = np.repeat(self._ranks[numbers], counts)
            dealt.add(_records(KEY_RECORD, joined["key"], ranks, joined["frame"]), _part_of_key(joined["key"]))
            if column == "keys":
                self.featureless += self._ids.take(first + np.flatnonzero(counts == 0)).to_pylist()

    def words(self, number: int) -> np.ndarray:
        """Fingerprint uint32 [frames, 2] of the clip `number`."""
        start, frames = self._places[number].tolist()
        return np.frombuffer(os.pread(self._file.fileno(), frames * 8, start), dtype=np.uint32).reshape(-1, 2)

    def pairs(self, threshold: float) -> Iterator[tuple[str, str, float]]:
        """(id, id, score) of clips whose score reaches the threshold; the lesser id first."""
        self._file.flush()
        scores: dict[tuple[int, int], float] = {}
        for first, second, offset in self.candidates():
            a, b = (self.words(int(self._order[rank])) for rank in (first, second))
            score = fingerprint.similarity(a, b, *(offset + shift for shift in range(-1, OFFSET_SLACK + 2)))
            if score >= threshold:
                pair = min(first, second), max(first, second)
                scores[pair] = max(score, scores.get(pair, 0.0))
        for pair, score in scores.items():
            a, b = (self._ids[int(self._order[rank])].as_py() for rank in pair)
            yield a, b, round(score, 4)

    def candidates(self) -> Iterator[tuple[int, int, int]]:
        """(rank, rank, offset) of clips with MIN_KEYS keys in common, at the offset that most of them have.

        The first clip of each was looked up; a pair comes once or twice.
        """
        count = len(self._ids)
        with closing(_Dealt(self._scratch, HIT_RECORD)) as hits:
            with ThreadPoolExecutor(LOOKING_UP) as pool:
                list(pool.map(lambda parts: self._look_up(parts, hits), self._keys.groups()))
            for parts in hits.groups(most_parts=max(1, MOST_CODES * PARTS // max(1, count**2))):
                base = parts.start * count // PARTS  # no first clip's rank in these parts is less
                hit = np.concatenate([np.zeros(0, HIT_RECORD), *hits.read(parts)])
                pair = (hit["first"].astype(np.int64) - base) * count + hit["second"]
                for code in _best_offsets(pair * (2 * LARGEST_OFFSET) + hit["offset"] + LARGEST_OFFSET).tolist():
                    pair, offset = divmod(code, 2 * LARGEST_OFFSET)
                    first, second = divmod(pair, count)
                    yield base + first, second, offset - LARGEST_OFFSET

    def _look_up(self, parts: range, hits: _Dealt) -> None:
        """Add what the keys of some parts have in common to `hits`; in which order does not matter."""
        count = len(self._ids)
        keys = np.concatenate([np.zeros(0, KEY_RECORD), *self._keys.read(parts)])
        places = _places(keys)
        by_place = np.argsort(places, kind="stable")
        places, frames = places[by_place], keys["frame"][by_place]
        runs = _runs(places, self._owners)
        known = np.zeros(1 << SLOT_BITS, dtype=bool)
        known[_slot(keys["key"])] = True
        for probes in self._probes.read(parts):
            probes = probes.take(np.flatnonzero(known[_slot(probes["key"])]))  # most keys are nobody's: they need no place
            for first, second, offset in _neighbours(places, frames, runs, self._owners, _places(probes), probes["frame"]):
                apart = self._owners[first] != self._owners[second]
                first, second, offset = first[apart], second[apart], offset[apart]
                hits.add(_records(HIT_RECORD, first, second, offset), first * PARTS // count)


WORDS = np.dtype("<u8")  # both of a frame
LANDMARK = np.dtype([("key", "<u4"), ("frame", "<u4")])
KEY_RECORD = np.dtype([("key", np.uint32), ("rank", np.uint32), ("frame", np.int32)])
HIT_RECORD = np.dtype([("first", np.uint32), ("second", np.uint32), ("offset", np.int32)])


class _Dealt:
    """Records dealt to PARTS parts in a file without a name, and read back by part. Threads may add at once, and read at once
    what all have added."""

    def __init__(self, scratch: Path, dtype: np.dtype):
        self._file = tempfile.TemporaryFile(dir=scratch)
        self._dtype = dtype
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._num_waiting = 0
        self._lock = threading.Lock()
        self._runs: list[np.ndarray] = []  # where in the file, in records, the parts of what was written at once begin and end

    def add(self, records: np.ndarray, parts: np.ndarray) -> None:
        with self._lock:
            self._waiting.append((records, parts.astype(np.uint16)))
            self._num_waiting += len(records)
            if self._num_waiting >= RECORDS:
                self._write()

    def _write(self) -> None:
        if self._waiting:
            records, parts = (np.concatenate(arrays) for arrays in zip(*self._waiting, strict=True))
            order = np.argsort(parts, kind="stable")
            start = int(self._runs[-1][-1]) if self._runs else 0
            self._runs.append(start + np.searchsorted(parts[order], np.arange(PARTS + 1)))
            self._file.write(records.take(order).data)  # an index in brackets takes records field by field, eighteen times as long
            self._waiting, self._num_waiting = [], 0

    def _finish(self) -> None:
        with self._lock:
            self._write()
            self._file.flush()

    def groups(self, most_parts: int = PARTS) -> Iterator[range]:
        """Parts that are held at once: some RECORDS together, or one part."""
        self._finish()
        sizes = sum((np.diff(run) for run in self._runs), np.zeros(PARTS, np.int64)).tolist()
        start, total = 0, 0
        for part, size in enumerate(sizes):
            if part > start and (total + size > RECORDS or part - start == most_parts):
                yield range(start, part)
                start, total = part, 0
            total += size
        yield range(start, PARTS)

    def read(self, parts: range) -> Iterator[np.ndarray]:
        """The records of some parts, some RECORDS at once."""
        self._finish()
        read, total = [], 0
        for run in self._runs:
            start, end = int(run[parts.start]), int(run[parts.stop])
            raw = os.pread(self._file.fileno(), (end - start) * self._dtype.itemsize, start * self._dtype.itemsize)
            read.append(np.frombuffer(raw, dtype=self._dtype))
            total += end - start
            if total >= RECORDS:
                yield np.concatenate(read)
                read, total = [], 0
        if total:
            yield np.concatenate(read)

    def close(self) -> None:
        self._file.close()


def _records(dtype: np.dtype, *columns: np.ndarray) -> np.ndarray:
    records = np.empty(len(columns[0]), dtype=dtype)
    for name, column in zip(dtype.names, columns, strict=True):
        records[name] = column
    return records


def _joined(column: pa.ChunkedArray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """All values of a binary column in one array, and how many are of each row."""
    values = column.combine_chunks()
    ends = np.frombuffer(values.buffers()[1], np.int32)[values.offset : values.offset + len(values) + 1] // dtype.itemsize
    return np.frombuffer(values.buffers()[2] or b"", dtype)[ends[0] : ends[-1]], np.diff(ends)


def _part_of_key(keys: np.ndarray) -> np.ndarray:
    return (keys * SPREAD) >> np.uint32(32 - PARTS.bit_length() + 1)


def _slot(keys: np.ndarray) -> np.ndarray:
    return keys * SPREAD_OTHERWISE >> np.uint32(32 - SLOT_BITS)


def _places(keys: np.ndarray) -> np.ndarray:
    """Where records of keys stand in the index: uint64 [n], by key, then by the clip's rank."""
    return keys["key"].astype(np.uint64) << RANK_BITS | keys["rank"]


def _runs(places: np.ndarray, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For every entry, where those around it of its own bucket and owner begin, and where they have ended."""
    entries = (places >> RANK_BITS) << RANK_BITS | owners[(places & RANKS).astype(np.int64)].astype(np.uint64)
    edges = np.flatnonzero(np.diff(entries)) + 1
    starts, ends = np.concatenate([[0], edges]), np.concatenate([edges, [len(places)]])
    lengths = (ends - starts) * bool(len(places))
    return np.repeat(starts, lengths), np.repeat(ends, lengths)


def _neighbours(
    places: np.ndarray,
    frames: np.ndarray,
    runs: tuple[np.ndarray, np.ndarray],
    owners: np.ndarray,
    wanted: np.ndarray,
    at: np.ndarray,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(rank looked up, rank found, offset) of the NEIGHBOURS entries on either side of every wanted place in its bucket.

    A clip has its own place even in buckets that none of its keys is in, so that not all clips are given the same few entries.
    Entries around it of its own recording, which may have a sound a thousand times, do not count.
    """
    by_place = np.argsort(wanted)  # close places are looked up one after the other
    wanted, at = wanted[by_place], at[by_place]
    for side, step in (("right", 1), ("left", -1)):
        entries = np.searchsorted(places, wanted, side=side) - (side == "left")
        looked, when = wanted, at
        near = np.clip(entries, 0, max(0, len(places) - 1))
        own = np.zeros(len(wanted), bool)
        if len(places):
            own = owners[(places[near] & RANKS).astype(np.int64)] == owners[(looked & RANKS).astype(np.int64)]
            own &= (places[near] >> RANK_BITS == looked >> RANK_BITS) & (near == entries)
        entries[own] = runs[1][near[own]] if step == 1 else runs[0][near[own]] - 1
        for _ in range(NEIGHBOURS):
            inside = (entries >= 0) & (entries < len(places))
            inside[inside] = places[entries[inside]] >> RANK_BITS == looked[inside] >> RANK_BITS
            entries, looked, when = entries[inside], looked[inside], when[inside]
            yield (looked & RANKS).astype(np.int64), (places[entries] & RANKS).astype(np.int64), frames[entries] - when
            entries = entries + step


def certain_keys(words: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys uint32 [n] of a fingerprint, their uncertain bits uint32 [n] and frames int32 [n], those with the fewest first."""
    count = max(0, len(words) - KEY_LATER)
    signs, certain = words.T
    near = np.zeros(len(words) + 2 * QUIET_FRAMES, dtype=np.uint32)
    near[QUIET_FRAMES : QUIET_FRAMES + len(words)] = signs | certain
    active = np.bitwise_or.reduce([near[shift : shift + len(words)] for shift in range(2 * QUIET_FRAMES + 1)])
    # A band that is not heard for so long will not be heard in a copy either.
    keys, loud, certain = (
        word[:count] & KEY_BITS | (word[KEY_LATER : KEY_LATER + count] & KEY_BITS_LATER) << np.uint32(16)
        for word in (signs, certain, certain | ~active)
    )
    number = np.bitwise_count(~certain)
    usable = (number <= MOST_UNCERTAIN) & (np.bitwise_count(loud) >= LEAST_HEARD)
    usable[1:] &= keys[1:] != keys[:-1]  # what stands still is in the index once
    frames = np.flatnonzero(usable).astype(np.int32)
    frames = frames[np.argsort(number[frames], kind="stable")]
    stretches = max(1, round(len(words) / KEYS_FRAMES))  # of one length, or a rest of a few frames had as much as the others
    frames = frames[_by_turns(frames * stretches // max(1, len(words)))]
    return keys[frames], ~certain[frames], frames


def _by_turns(groups: np.ndarray) -> np.ndarray:
    """Numbers of the rows, the first of every group, then the second of every one …"""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    turns = np.empty(len(groups), np.int64)
    turns[order] = np.arange(len(groups)) - np.searchsorted(ordered, ordered)
    return np.argsort(turns, kind="stable")


def turned(keys: np.ndarray, uncertain: np.ndarray, frames: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys uint32 [n] to look up and their frames int32 [n]: of these (see certain_keys) the first, uncertain bits both ways.

    A coder turns few bits but uncertain ones, so most keys of a copy are in the index as they stand. `most` in all.
    """
    bits = np.bitwise_count(uncertain)
    count = int(np.searchsorted(np.cumsum(1 << bits[bits <= MOST_FLIPPED].astype(np.int64)), most, side="right"))
    keys, uncertain, frames = keys[:count], uncertain[:count], frames[:count]
    for _ in range(MOST_FLIPPED):
        rest = uncertain & (uncertain - np.uint32(1))
        either = uncertain != 0
        keys = np.concatenate([keys, (keys ^ uncertain ^ rest)[either]])
        frames = np.concatenate([frames, frames[either]])
        uncertain = np.concatenate([rest, rest[either]])
    return keys, frames


def _best_offsets(hits: np.ndarray) -> np.ndarray:
    """Of hits (pair · 2 LARGEST_OFFSET + offset), the one of each pair that begins the most crowded OFFSET_SLACK frames."""
    hits = np.sort(hits)
    crowd = np.searchsorted(hits, hits + OFFSET_SLACK, side="right") - np.arange(len(hits))
    hits, crowd = hits[crowd >= MIN_KEYS], crowd[crowd >= MIN_KEYS]
    pair = hits // (2 * LARGEST_OFFSET)
    best = np.lexsort((hits, -crowd, pair))
    return hits[best][np.diff(pair[best], prepend=-1) > 0]


def _exact_copies(names: pa.Table) -> Iterator[tuple[str, str]]:
    """Ids of clips of different recordings that were made from the same bytes."""
    by_digest: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in names.take(_shared(names["digest"])).select(["digest", "clip_id", "recording_id"]).to_pylist():
        if row["digest"]:
            by_digest[row["digest"]].append(row)
    for copies in by_digest.values():
        copies.sort(key=lambda row: row["clip_id"])
        for number, first in enumerate(copies):
            for second in copies[number + 1 : number + 1 + NEIGHBOURS]:
                if first["recording_id"] != second["recording_id"]:
                    yield first["clip_id"], second["clip_id"]


def _by_video(names: pa.Table, recordings: pa.Table) -> Iterator[tuple[str, str, float]]:
    """(id, id, share of the shorter) of clips whose windows of one YouTube video overlap."""
    grouped = recordings.filter(pc.is_valid(recordings["group"]))
    rows = grouped.take(_shared(grouped["group"])).to_pylist()
    videos = manifest.youtube_videos(rows)
    of_video = {row["recording_id"]: row for row in rows if row["group"] in videos}
    windows: dict[str, list[tuple[float, float, str, str]]] = defaultdict(list)
    for row in names.filter(pc.is_in(names["recording_id"], pa.array(of_video, pa.string()))).to_pylist():
        recording = of_video[row["recording_id"]]
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


def _shared(values: pa.ChunkedArray) -> np.ndarray:
    """Numbers of the rows whose value another row has too."""
    codes = pc.dictionary_encode(values).combine_chunks().indices.to_numpy()
    return np.flatnonzero(np.bincount(codes, minlength=1)[codes] > 1)
