"""Looking for sounds by fingerprint, among clips and among files."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from soundmill import manifest, shards
from soundmill.audio import fingerprint
from soundmill.corpora import duplicates, fingerprint_index, inventory, landmarks
from soundmill.corpora.forgotten import Entry
from soundmill.decoding import decode

Progress = Callable[[int], object]  # is told how many more bytes have a fingerprint


def words_of_file(path: Path, start: float = 0.0, end: float = math.inf) -> np.ndarray:
    """Fingerprint of the seconds from `start` to `end` of a file, uint32 [frames, 2]; DecodeError where it cannot be decoded."""
    rate = fingerprint.SAMPLE_RATE
    wave = decode.read_mono(path, rate, decode.MAX_SECONDS)
    return fingerprint.fingerprint(wave[round(start * rate) : len(wave) if math.isinf(end) else round(end * rate)])


def alike(clips: Path, entries: Sequence[Entry], progress: Progress) -> list[tuple[int, str]]:
    """(number of an entry, id of a clip) of clips below `clips` that are the same sound by fingerprint."""
    paths = shards.shard_paths(clips)
    jobs = [shards.Job(path.name, (path,), path.stat().st_size) for path in paths]
    return _search(entries, jobs, duplicates.fingerprint_shard, progress)


def _search(
    entries: Sequence[Entry], jobs: list[shards.Job], function: Callable[..., shards.Report], progress: Progress
) -> list[tuple[int, str]]:
    """Fingerprint what the jobs name and look for the entries' sounds among them."""
    words = {f"forgotten {number}": entry.words for number, entry in enumerate(entries) if entry.fingerprint}
    if not words or not jobs:
        return []
    with tempfile.TemporaryDirectory(prefix="soundmill-forget-") as name:
        scratch = Path(name)
        shards.map_shards(function, jobs, scratch / "prints", workers=min(os.cpu_count() or 1, len(jobs)), progress=progress)
        tables = [shards.read_table(scratch / "prints" / job.name, manifest.FINGERPRINTS) for job in jobs]
        theirs = pa.concat_tables(tables)
        # Looked up are the forgotten alone, among the others alone: no clip has a space in its id.
        marks = [landmarks.landmarks(its) | {"keys": b""} for its in words.values()]
        kind = pa.schema([(column, pa.binary()) for column in duplicates.INDEXED])
        ids = pa.chunked_array([pa.array(words), theirs["clip_id"].combine_chunks()])
        owners = pa.chunked_array([pa.array(["forgotten"] * len(words) + ["other"] * theirs.num_rows)])
        with fingerprint_index.Index(scratch, ids, owners) as index:
            index.add(0, pa.Table.from_pylist(marks, kind))
            empty = pa.array([b""] * theirs.num_rows, pa.binary())
            column = theirs.schema.get_field_index("probes")
            if theirs.num_rows:
                index.add(len(words), theirs.set_column(column, "probes", empty).select(duplicates.INDEXED))
            pairs = [(a, b) if a in words else (b, a) for a, b, _ in index.pairs(fingerprint_index.THRESHOLD)]
    return sorted((int(mine.rpartition(" ")[2]), other) for mine, other in pairs)


def files_alike(root: Path, paths: Iterable[Path], entries: Sequence[Entry], progress: Progress) -> list[tuple[int, str]]:
    """(number of an entry, path from `root`) of files below `root` that are the same sound by fingerprint."""
    files = [inventory.AudioFile(bytes(path.relative_to(root)), path.stat().st_size, "") for path in paths]
    batches = [files[start : start + duplicates.FILES_PER_JOB] for start in range(0, len(files), duplicates.FILES_PER_JOB)]
    jobs = [
        shards.Job(shards.shard_name(number), (bytes(root), batch), sum(file.size for file in batch))
        for number, batch in enumerate(batches)
    ]
    return _search(entries, jobs, duplicates.fingerprint_files, progress)
