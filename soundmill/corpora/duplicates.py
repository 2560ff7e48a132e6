"""Duplicates: pairs of clips with the same sound (by fingerprint or bytes) or the same seconds of a video."""

import itertools
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from soundmill import disk, hashing, manifest, shards
from soundmill.audio import fingerprint, flac, resample
from soundmill.corpora import inventory, sources
from soundmill.corpora.fingerprint_index import COLUMNS, NEIGHBOURS, THRESHOLD, Index, landmarks
from soundmill.decoding import decode
from soundmill.errors import UserError

FILES_PER_JOB = 32
CLIPS_AT_ONCE = 256  # added to the index at once: 5 MB for clips of ten seconds

Pair = dict[str, Any]  # a row of manifest.DUPLICATES


@dataclass
class Duplicates:
    """Pairs sorted by ids, and the clips that were searched."""

    pairs: list[Pair]
    names: pa.Table  # columns of manifest.FINGERPRINTS that are not indexed; clips in the order of the shards
    featureless: list[str]  # ids of clips too short, soft or steady for a fingerprint; only their exact copies are found


def find(
    clips: Path, recordings: pa.Table, map_shards: Callable[..., shards.Report], scratch: Path, threshold: float = THRESHOLD
) -> Duplicates:
    """Find duplicates among the clips in the shards below `clips`, cut from `recordings` (`recording_id`, `group`, `start_time`).

    `map_shards` and `scratch` are stage.Context's. Clips of one recording, which share a split anyway, are not compared.
    """
    prints = scratch / "fingerprints"
    shutil.rmtree(prints, ignore_errors=True)  # left by a killed run
    paths = shards.shard_paths(clips)
    jobs = [shards.Job(path.name, (path,), path.stat().st_size, hashing.digest(hashing.signature(path))) for path in paths]
    map_shards(fingerprint_shard, jobs, prints, unit="B")
    names, pairs, featureless = _by_sound([prints / job.name for job in jobs], threshold, scratch)
    for a, b, score in _by_video(names, recordings):
        pairs[a, b] = {"a": a, "b": b, "score": max(score, pairs.get((a, b), {"score": 0.0})["score"]), "kind": "video"}
    return Duplicates([pairs[key] for key in sorted(pairs)], names, featureless)


def find_in_folder(
    root: Path,
    workers: int,
    threshold: float = THRESHOLD,
    progress: Callable[[int], object] = lambda n: None,
    follow_links: bool = False,
) -> tuple[Duplicates, list[dict[str, str]]]:
    """Find duplicates among the audio files below `root`, by escaped path; also the unreadable, as rows of manifest.QUARANTINE."""
    if not root.is_dir():
        raise UserError(f"{root}: no such directory; give the folder of the audio files")
    taken = inventory.list_files(root, workers, follow_links=follow_links)
    batches = [taken.audio[start : start + FILES_PER_JOB] for start in range(0, len(taken.audio), FILES_PER_JOB)]
    # One job per row group: each reader starts at its beginning.
    batches += [list(group) for _, group in itertools.groupby(_embedded(taken), key=lambda file: file.shard_key)]
    if not batches:
        raise UserError(f"{root}: no audio file in it ({taken.num_files} files); give the folder of the audio files")
    top = bytes(root.resolve())
    jobs = [shards.Job(shards.shard_name(number), (top, batch), weight=len(batch)) for number, batch in enumerate(batches)]
    with tempfile.TemporaryDirectory(prefix="soundmill-duplicates-") as name:
        prints = Path(name) / "fingerprints"
        report = shards.map_shards(fingerprint_files, jobs, prints, workers=workers, progress=progress)
        names, pairs, featureless = _by_sound([prints / job.name for job in jobs], threshold, Path(name))
    duplicates = Duplicates([pairs[key] for key in sorted(pairs)], names, featureless)
    return duplicates, sorted([*taken.rejected, *report.quarantine], key=lambda row: row["path"])


def _embedded(taken: inventory.Inventory) -> Iterator[sources.EmbeddedFile]:
    """The recordings in Parquet tables, each once per table; unusable ones are rejected."""
    for name in sources.tables_of(taken.metadata, taken.reject):
        try:
            with sources.open_table(taken.metadata[name]) as table:
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
    """Write a list of {a, b, score}; paths that are not UTF-8 stay escaped."""
    plain = [{"a": _unescaped(pair["a"]), "b": _unescaped(pair["b"]), "score": pair["score"]} for pair in pairs]
    disk.write_json(path, plain, indent=1, sort_keys=False)


def _unescaped(path: str) -> str:
    try:
        return manifest.unescape_path(path).decode()
    except UnicodeDecodeError:
        return path


def fingerprint_shard(source: Path, output: Path, previous: Path | None = None) -> shards.Report:
    """Write the fingerprints of one shard's clips; those of unchanged clips are copied from `previous`."""
    with shards.ItemWriter(output, manifest.FINGERPRINTS, previous) as writer:
        plain = shards.read_rows(source, manifest.CLIPS, ["clip_id", "recording_id", "start", "digest"])
        keyed = [(hashing.digest(row), row) for row in plain]
        new = [number for number, (key, _) in enumerate(keyed) if key not in writer]
        audio = shards.read_rows(source, manifest.CLIPS, ["audio"], new)
        for _, row, _ in writer.new(keyed):
            data = next(audio)["audio"]["bytes"]
            wave, rate = flac.decode_mono(data), flac.flac_rate(data)
            words = fingerprint.fingerprint(resample.resample(wave, rate, fingerprint.SAMPLE_RATE))
            writer.write({**row, "seconds": len(wave) / rate, **landmarks(words)})
    return writer.report


def fingerprint_files(root: bytes, files: list[inventory.AudioFile], output: Path) -> shards.Report:
    """Write the fingerprints of files below `root`, each as one clip; files that cannot be decoded are rejected."""
    report, corpus = shards.Report(), sources.Sources({b"": root})
    with shards.ShardWriter(output, manifest.FINGERPRINTS) as writer:
        for file in files:
            try:
                with corpus.open(file.raw_path, output.parent) as path:
                    rate, blocks = decode.decode_blocks(path, decode.MAX_SECONDS)
                    heard: list[bool] = []
                    blocks = resample.resample_blocks(blocks, rate, fingerprint.SAMPLE_RATE)
                    words = fingerprint.fingerprint_blocks(_noting(blocks, heard))
            except decode.DecodeError as error:
                report.reject(file.path, error.reason, error.detail)
                continue
            seconds = len(words) / fingerprint.FRAMES_PER_SECOND
            digest = file.digest if any(heard) else ""  # silent files are not duplicates
            row = {"clip_id": file.path, "recording_id": file.path, "start": 0.0, "seconds": seconds, "digest": digest}
            writer.write({**row, **landmarks(words)})
    return report


def _noting(blocks: Iterable[np.ndarray], heard: list[bool]) -> Iterator[np.ndarray]:
    """The blocks; `heard` gets whether each has a sample that is not zero."""
    for block in blocks:
        heard.append(bool(block.any()))
        yield block


def _by_sound(prints: list[Path], threshold: float, scratch: Path) -> tuple[pa.Table, dict[tuple[str, str], Pair], list[str]]:
    """`Duplicates.names`, pairs of clips with similar sound or equal bytes, and the sorted ids of featureless clips."""
    columns = [name for name in manifest.FINGERPRINTS.names if name not in COLUMNS.names]
    names = pa.concat_tables(shards.read_table(path, manifest.FINGERPRINTS, columns) for path in prints).combine_chunks()
    with Index(scratch, names["clip_id"], names["recording_id"]) as index:
        first, adding = 0, None
        with ThreadPoolExecutor(1) as pool:
            for tables in shards.read_tables(prints, manifest.FINGERPRINTS, COLUMNS.names, CLIPS_AT_ONCE):
                table = pa.concat_tables(tables)
                if adding:
                    adding.result()
                adding = pool.submit(index.add, first, table)
                first += table.num_rows
            if adding:
                adding.result()
        scored = [*index.pairs(threshold), *((a, b, 1.0) for a, b in _exact_copies(names))]
    pairs = {(a, b): {"a": a, "b": b, "score": score, "kind": "sound"} for a, b, score in scored}
    return names, pairs, sorted(index.featureless)


def _exact_copies(names: pa.Table) -> Iterator[tuple[str, str]]:
    """Pairs of clips of different recordings with equal digests."""
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
    """(id, id, overlap as a share of the shorter) of clips with overlapping windows of one YouTube video."""
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
            for other_start, other_end, other_recording, other in cuts[number + 1 :]:
                if other_start >= end:
                    break
                if other_recording != recording_id:
                    share = (min(end, other_end) - other_start) / min(end - start, other_end - other_start)
                    yield min(clip_id, other), max(clip_id, other), round(share, 4)


def _shared(values: pa.ChunkedArray) -> np.ndarray:
    """Numbers of rows whose value occurs more than once."""
    codes = pc.dictionary_encode(values).combine_chunks().indices.to_numpy()
    return np.flatnonzero(np.bincount(codes, minlength=1)[codes] > 1)
