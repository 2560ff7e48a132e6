"""Searching clips and files for sounds by fingerprint."""

import math
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from soundmill import manifest, shards
from soundmill.audio import fingerprint
from soundmill.corpora import duplicates, fingerprint_index, inventory
from soundmill.corpora.forgotten import Entry
from soundmill.decoding import decode

Progress = Callable[[int], object]  # called with the number of bytes just fingerprinted


def words_of_file(path: Path, start: float = 0.0, end: float = math.inf) -> np.ndarray:
    """Fingerprint of the seconds from `start` to `end` of a file, uint32 [frames, 2]; DecodeError if it cannot be decoded."""
    rate = fingerprint.SAMPLE_RATE
    wave = decode.read_mono(path, rate, decode.MAX_SECONDS)
    return fingerprint.fingerprint(wave[round(start * rate) : len(wave) if math.isinf(end) else round(end * rate)])


def clips_like(clips: Path, entries: Sequence[Entry], progress: Progress) -> list[tuple[int, str]]:
    """(index of an entry, clip id) of the clips below `clips` that have the fingerprint of an entry."""
    paths = shards.shard_paths(clips)
    jobs = [shards.Job(path.name, (path,), path.stat().st_size) for path in paths]
    return _search(entries, jobs, duplicates.fingerprint_shard, progress)


def _search(
    entries: Sequence[Entry], jobs: list[shards.Job], function: Callable[..., shards.Report], progress: Progress
) -> list[tuple[int, str]]:
    """Fingerprint the sounds of the jobs, and find those that match an entry."""
    words = {number: entry.words for number, entry in enumerate(entries) if entry.fingerprint}
    if not words or not jobs:
        return []
    with tempfile.TemporaryDirectory(prefix="soundmill-forget-") as name:
        scratch = Path(name)
        shards.map_shards(function, jobs, scratch / "prints", workers=min(os.cpu_count() or 1, len(jobs)), progress=progress)
        tables = [shards.read_table(scratch / "prints" / job.name, manifest.FINGERPRINTS) for job in jobs]
        searched = pa.concat_tables(tables)
        sought = list(words), [fingerprint_index.landmark_table(words.values())]
        among = searched["clip_id"].to_pylist(), [searched.select(fingerprint_index.COLUMNS.names)]
        return sorted((number, name) for number, name, _ in fingerprint_index.matches(scratch, sought, among))


def files_like(root: Path, paths: Iterable[Path], entries: Sequence[Entry], progress: Progress) -> list[tuple[int, str]]:
    """(index of an entry, path relative to `root`) of the files that have the fingerprint of an entry."""
    files = [inventory.AudioFile(bytes(path.relative_to(root)), path.stat().st_size, "") for path in paths]
    batches = [files[start : start + duplicates.FILES_PER_JOB] for start in range(0, len(files), duplicates.FILES_PER_JOB)]
    jobs = [
        shards.Job(shards.shard_name(number), (bytes(root), batch), sum(file.size for file in batch))
        for number, batch in enumerate(batches)
    ]
    return _search(entries, jobs, duplicates.fingerprint_files, progress)
