"""An index of fingerprints: clips with common keys at one offset are compared by their fingerprints.

A clip has keys, made of two frames of its fingerprint, and probes: the keys that are looked up for it, uncertain bits with both
values. Both are its landmarks.

In a bucket (all entries of one key) a clip is compared only with the NEIGHBOURS entries around its own place, so common keys, as of
hum and noise, do not make the work quadratic, and many copies of one sound still form a chain.

Memory is bounded: keys and probes are partitioned on disk by key, hits by pair. Each of LOOKING_UP threads holds parts with about
RECORDS records.
"""

import math
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from soundmill import hashing
from soundmill.audio import fingerprint
from soundmill.errors import UserError

RECORDS = 1 << 18  # in memory at once
PARTS = 1 << 9  # a part is read whole, so beyond PARTS · RECORDS memory grows
THRESHOLD = 0.4  # lowest score of duplicates; measured in docs/duplicates.md
NEIGHBOURS = 8  # entries on either side of a clip's place in a bucket
OFFSET_SLACK = 2  # frames of a copy are not aligned with the original's
LOOKING_UP = 2  # threads: sorting and searching release the GIL
FIRST_HASH = np.uint32(2_654_435_769)  # Fibonacci hashing, since keys are not uniformly distributed
SECOND_HASH = np.uint32(2_246_822_507)  # a second hash: keys of one part share the first bits of the first
SLOT_BITS = 22  # of the hash table of keys in memory; a quarter of a million keys leave it mostly empty
RANK_BITS, RANKS = np.uint64(32), np.uint64((1 << 32) - 1)  # an entry of the index is key, then rank of the clip
LARGEST_OFFSET = 1 << 20  # frames, some 4.6 hours
MOST_CODES = 1 << 42  # pairs that fit in 63 bits with an offset
WORDS = np.dtype("<u8")  # both of a frame
KEY_RECORD = np.dtype([("key", np.uint32), ("rank", np.uint32), ("frame", np.int32)])
HIT_RECORD = np.dtype([("first", np.uint32), ("second", np.uint32), ("offset", np.int32)])

KEY_LATER = 4  # frames between the two frames of a key
KEY_BITS = np.uint32(0x00FFFFFF)  # of the first frame: bands below 3.7 kHz, which remain after resampling to 8 kHz
KEY_BITS_LATER = np.uint32(0x0000FF00)
QUIET_FRAMES = 2  # before and after a frame in which a silent band is certain
KEYS_FRAMES = 312  # about five seconds; keys are spread evenly over such stretches
KEYS, KEYS_PER_SECOND = 64, 16  # of a clip in the index: a constant, and more for each second
MIN_ACTIVE = 8  # certain bits in active bands of a key
MOST_UNCERTAIN = 12  # uncertain bits of a key in the index
PROBES, PROBES_PER_SECOND = 256, 64  # keys looked up for a clip
MOST_FLIPPED = 7  # uncertain bits of a probe that are looked up with both values
MIN_KEYS = 2  # of a clip in the index, and in common for a comparison
LANDMARK = np.dtype([("key", "<u4"), ("frame", "<u4")])
COLUMNS = pa.schema([(name, pa.binary()) for name in ("fingerprint", "keys", "probes")])  # of manifest.FINGERPRINTS


def landmarks(words: np.ndarray) -> dict[str, bytes]:
    """A fingerprint uint32 [frames, 2] with its landmarks; none if it has too few certain bits or keys."""
    keys, uncertain, frames = certain_keys(words)
    if fingerprint.num_certain(words) < fingerprint.MIN_BITS or len(keys) < MIN_KEYS:
        keys, uncertain, frames = keys[:0], uncertain[:0], frames[:0]
    seconds = len(words) / fingerprint.FRAMES_PER_SECOND
    most = KEYS + int(KEYS_PER_SECOND * seconds)
    probes = probes_of(keys, uncertain, frames, PROBES + int(PROBES_PER_SECOND * seconds))
    return {
        "fingerprint": words.astype("<u4").tobytes(),
        "keys": np.rec.fromarrays([keys[:most], frames[:most]], LANDMARK).tobytes(),
        "probes": np.rec.fromarrays(probes, LANDMARK).tobytes(),
    }


def certain_keys(words: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys uint32 [n] of a fingerprint, their uncertain bits uint32 [n] and frames int32 [n], fewest uncertain bits first."""
    count = max(0, len(words) - KEY_LATER)
    signs, certain = words.T
    near = np.zeros(len(words) + 2 * QUIET_FRAMES, dtype=np.uint32)
    near[QUIET_FRAMES : QUIET_FRAMES + len(words)] = signs | certain
    active = np.bitwise_or.reduce([near[shift : shift + len(words)] for shift in range(2 * QUIET_FRAMES + 1)])
    # A band that is silent this long is silent in a copy, too.
    keys, loud, certain = (
        word[:count] & KEY_BITS | (word[KEY_LATER : KEY_LATER + count] & KEY_BITS_LATER) << np.uint32(16)
        for word in (signs, certain, certain | ~active)
    )
    number = np.bitwise_count(~certain)
    usable = (number <= MOST_UNCERTAIN) & (np.bitwise_count(loud) >= MIN_ACTIVE)
    usable[1:] &= keys[1:] != keys[:-1]  # equal consecutive keys count once
    frames = np.flatnonzero(usable).astype(np.int32)
    frames = frames[np.argsort(number[frames], kind="stable")]
    stretches = max(1, round(len(words) / KEYS_FRAMES))  # stretches of equal length
    frames = frames[_round_robin(frames * stretches // max(1, len(words)))]
    return keys[frames], ~certain[frames], frames


def _round_robin(groups: np.ndarray) -> np.ndarray:
    """Row numbers: the first row of every group, then the second of every group …"""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    turns = np.empty(len(groups), np.int64)
    turns[order] = np.arange(len(groups)) - np.searchsorted(ordered, ordered)
    return np.argsort(turns, kind="stable")


def probes_of(keys: np.ndarray, uncertain: np.ndarray, frames: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` probes uint32 [n] and their frames int32 [n]: the first keys (see certain_keys), with both values of uncertain
    bits. Codecs change few other bits, so most keys of a copy are found.
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


def landmark_table(fingerprints: Iterable[np.ndarray]) -> pa.Table:
    """The landmarks of several fingerprints, as rows of COLUMNS."""
    return pa.Table.from_pylist([landmarks(words) for words in fingerprints], COLUMNS)


class Partitions:
    """Records in PARTS parts of an unnamed file. Threads may add concurrently; read only after all have been added."""

    def __init__(self, scratch: Path, dtype: np.dtype):
        self._file = tempfile.TemporaryFile(dir=scratch)
        self._dtype = dtype
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._num_waiting = 0
        self._lock = threading.Lock()
        self._runs: list[np.ndarray] = []  # of each write: start and end of its parts in the file, in records

    def add(self, records: np.ndarray, parts: np.ndarray) -> None:
        """Add records [n] to these parts [n]."""
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
            self._file.write(records.take(order).data)  # 18 times as fast as indexing, which copies field by field
            self._waiting, self._num_waiting = [], 0

    def _finish(self) -> None:
        with self._lock:
            self._write()
            self._file.flush()

    def groups(self, most_parts: int = PARTS) -> Iterator[range]:
        """Ranges of parts with about RECORDS records in all, or of one part."""
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
        """The records of these parts, about RECORDS at once."""
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


class Index(AbstractContextManager):
    """Fingerprints of many clips (`ids`) by key; clips with the same owner (in `owners`) are not compared.

    Words and keys are in files in `scratch`; in memory are ids and a bounded number of keys. Clips may come in any order.
    """

    def __init__(self, scratch: Path, ids: pa.ChunkedArray, owners: pa.ChunkedArray):
        most = math.isqrt(PARTS * MOST_CODES)
        if len(ids) > most:
            raise UserError(f"{len(ids)} clips: at most {most} can be compared; split the corpus")
        self.featureless: list[str] = []
        self._ids = ids
        self._order = pc.sort_indices(ids).to_numpy()  # clip number by rank
        self._ranks = np.empty(len(ids), dtype=np.uint32)  # rank by clip number
        self._ranks[self._order] = np.arange(len(ids), dtype=np.uint32)
        self._owners = pc.dictionary_encode(owners).combine_chunks().indices.to_numpy()[self._order]  # by rank
        self._places = np.zeros((len(ids), 2), dtype=np.int64)  # start of each clip's words in the file, and their number
        self._scratch = scratch
        self._file = tempfile.TemporaryFile(dir=scratch)
        self._keys, self._probes = Partitions(scratch, KEY_RECORD), Partitions(scratch, KEY_RECORD)

    def __exit__(self, *_: object) -> None:
        for file in (self._file, self._keys, self._probes):
            file.close()

    def add(self, first: int, clips: pa.Table) -> None:
        """Add consecutive clips, from id number `first` on; columns as in manifest.FINGERPRINTS."""
        numbers = slice(first, first + clips.num_rows)
        words, frames = _joined(clips["fingerprint"], WORDS)
        self._places[numbers, 0] = self._file.tell() + (np.cumsum(frames) - frames) * WORDS.itemsize
        self._places[numbers, 1] = frames
        self._file.write(words.tobytes())
        for entries, column in ((self._keys, "keys"), (self._probes, "probes")):
            joined, counts = _joined(clips[column], LANDMARK)
            ranks = np.repeat(self._ranks[numbers], counts)
            part = (joined["key"] * FIRST_HASH) >> np.uint32(32 - PARTS.bit_length() + 1)
            entries.add(np.rec.fromarrays([joined["key"], ranks, joined["frame"]], KEY_RECORD), part)
            if column == "keys":
                self.featureless += self._ids.take(first + np.flatnonzero(counts == 0)).to_pylist()

    def words(self, number: int) -> np.ndarray:
        """Fingerprint uint32 [frames, 2] of the clip `number`."""
        start, frames = self._places[number].tolist()
        return np.frombuffer(os.pread(self._file.fileno(), frames * 8, start), dtype=np.uint32).reshape(-1, 2)

    def pairs(self, threshold: float) -> Iterator[tuple[str, str, float]]:
        """(id, id, score) of clips with at least this score; the smaller id first."""
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
        """(rank looked up, rank, offset) of clips with MIN_KEYS keys in common, at their most frequent offset; once or twice."""
        count = len(self._ids)
        with closing(Partitions(self._scratch, HIT_RECORD)) as hits:
            with ThreadPoolExecutor(LOOKING_UP) as pool:
                list(pool.map(lambda parts: self._look_up(parts, hits), self._keys.groups()))
            for parts in hits.groups(most_parts=max(1, MOST_CODES * PARTS // max(1, count**2))):
                base = parts.start * count // PARTS  # the lowest rank of a first clip in these parts
                hit = np.concatenate([np.zeros(0, HIT_RECORD), *hits.read(parts)])
                pair = (hit["first"].astype(np.int64) - base) * count + hit["second"]
                for code in _best_offsets(pair * (2 * LARGEST_OFFSET) + hit["offset"] + LARGEST_OFFSET).tolist():
                    pair, offset = divmod(code, 2 * LARGEST_OFFSET)
                    first, second = divmod(pair, count)
                    yield base + first, second, offset - LARGEST_OFFSET

    def _look_up(self, parts: range, hits: Partitions) -> None:
        """Look up the keys of these parts and add the hits to `hits`, in any order."""
        count = len(self._ids)
        keys = np.concatenate([np.zeros(0, KEY_RECORD), *self._keys.read(parts)])
        places = _places(keys)
        by_place = np.argsort(places, kind="stable")
        places, frames = places[by_place], keys["frame"][by_place]
        runs = _runs(places, self._owners)
        present = np.zeros(1 << SLOT_BITS, dtype=bool)
        present[_slot(keys["key"])] = True
        for probes in self._probes.read(parts):
            probes = probes.take(np.flatnonzero(present[_slot(probes["key"])]))  # most probes match no key
            for first, second, offset in _neighbours(places, frames, runs, self._owners, _places(probes), probes["frame"]):
                apart = self._owners[first] != self._owners[second]
                first, second, offset = first[apart], second[apart], offset[apart]
                hits.add(np.rec.fromarrays([first, second, offset], HIT_RECORD), first * PARTS // count)


Sounds = tuple[Sequence[str], Iterable[pa.Table]]  # ids, each once, and their COLUMNS in this order


def matches(scratch: Path, sought: Sounds, among: Sounds) -> Iterator[tuple[str, str, float]]:
    """(id of a sound that is sought, id of one that has its fingerprint, score of at least THRESHOLD)."""
    # Each pair is looked up once: what is sought has no keys in the index, the others have no probes.
    roles = {"sound": (*sought, "keys"), "training": (*among, "probes")}
    by_digest = {hashing.digest(role, name): (role, name) for role, (names, *_) in roles.items() for name in names}
    ids = pa.chunked_array([pa.array(by_digest, pa.string())])
    owners = pa.chunked_array([pa.array([role for role, _ in by_digest.values()], pa.string())])
    with Index(scratch, ids, owners) as index:
        first = 0
        for _, tables, unused in roles.values():
            for table in filter(len, tables):
                nothing = pa.array([b""] * len(table), pa.binary())
                index.add(first, table.set_column(table.schema.get_field_index(unused), unused, nothing))
                first += len(table)
        for a, b, score in index.pairs(THRESHOLD):
            (_, own), (_, other) = sorted((by_digest[a], by_digest[b]))
            yield own, other, score


def _joined(column: pa.ChunkedArray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """All values of a binary column in one array, and the number of values in each row."""
    values = column.combine_chunks()
    ends = np.frombuffer(values.buffers()[1], np.int32)[values.offset : values.offset + len(values) + 1] // dtype.itemsize
    return np.frombuffer(values.buffers()[2] or b"", dtype)[ends[0] : ends[-1]], np.diff(ends)


def _slot(keys: np.ndarray) -> np.ndarray:
    return keys * SECOND_HASH >> np.uint32(32 - SLOT_BITS)


def _places(keys: np.ndarray) -> np.ndarray:
    """Positions of records in the index: uint64 [n], sorted by key, then rank."""
    return keys["key"].astype(np.uint64) << RANK_BITS | keys["rank"]


def _runs(places: np.ndarray, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For every entry, start and end of the run of entries with the same key and owner."""
    entries = (places >> RANK_BITS) << RANK_BITS | owners[(places & RANKS).astype(np.int64)].astype(np.uint64)
    edges = np.flatnonzero(np.diff(entries)) + 1
    starts, ends = np.concatenate([[0], edges]), np.concatenate([edges, [len(places)]])
    lengths = (ends - starts) * bool(len(places))
    return np.repeat(starts, lengths), np.repeat(ends, lengths)


def _neighbours(
    places: np.ndarray, frames: np.ndarray, runs: tuple[np.ndarray, ...], owners: np.ndarray, probes: np.ndarray, at: np.ndarray
) -> Iterator[tuple[np.ndarray, ...]]:
    """(rank of the probe, rank of the entry, offset) of the NEIGHBOURS entries on either side of each probe's place in its bucket.

    A clip has a place even in buckets without its keys. Entries of the same recording, perhaps a thousand, are skipped.
    """
    by_place = np.argsort(probes)  # for locality of the search
    probes, at = probes[by_place], at[by_place]
    for side, step in (("right", 1), ("left", -1)):
        entries = np.searchsorted(places, probes, side=side) - (side == "left")
        looked, when = probes, at
        near = np.clip(entries, 0, max(0, len(places) - 1))
        own = np.zeros(len(probes), bool)
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


def _best_offsets(hits: np.ndarray) -> np.ndarray:
    """Of hits (pair · 2 LARGEST_OFFSET + offset), each pair's first in the OFFSET_SLACK frames with most hits."""
    hits = np.sort(hits)
    crowd = np.searchsorted(hits, hits + OFFSET_SLACK, side="right") - np.arange(len(hits))
    hits, crowd = hits[crowd >= MIN_KEYS], crowd[crowd >= MIN_KEYS]
    pair = hits // (2 * LARGEST_OFFSET)
    best = np.lexsort((hits, -crowd, pair))
    return hits[best][np.diff(pair[best], prepend=-1) > 0]
