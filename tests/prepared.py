"""A small prepared corpus, as the pipeline leaves it: clips in shards and their catalog; and a plan to cut clips by."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from soundmill import clips, manifest, params, shards
from soundmill.audio import flac

RATE = 16_000
PLAN = {"source": "corpus", "sample_rate": RATE, "channels": 1, "upsample": True, "clip_seconds": 5.0, "first_seconds": None}
PLAN |= {"tail": "pad", "min_seconds": 1.0, "loudness": "none", "tolerance_seconds": 0.05}
PLAN |= {"silence_dbfs": -90.0, "max_seconds": 600.0}
VIDEO = "-Yb_cdEfG1h"  # a legal id: a leading `-`, a `Y`, a `_`
Row = tuple[str, str, list[str], list[str]]  # clip id, split, captions, labels
ROWS: list[Row] = [
    (f"{VIDEO}_30", "train", ["a dog barks, then “rain” falls"], ["dog"]),
    ("abcdefghijk_5.5", "train", ["an engine idles", "a car waits\tnearby"], ["engine", "car"]),
    ("0f0f0f0f0f0f_0", "train", [], ["dog"]),
    ("Yabcdefghij_10", "valid", ["rain on a roof"], ["rain/shower"]),
    ("zzzzzzzzzzz_0", "test", ["a bell rings"], ["dog"]),
    ("000000000001_2", "test", [], []),
]


def execution(workers: int = 1, dask: str | None = None) -> dict[str, Any]:
    """The section `execution`: one stage at a time."""
    return {"workers": workers, "devices": None, "dask": dask, "lanes": {"number": 1, "gpus": 0}}


def prepare(directory: Path, rows: Sequence[Row] | None = None, wave: Callable[[int], np.ndarray] | None = None) -> clips.Tables:
    """Clips in two shards, and their catalog: by default six tones of half a second."""
    sounds = []
    for number, (clip_id, split, captions, labels) in enumerate(rows or ROWS):
        told = {"split": split, "captions": captions, "labels": labels, "shard": number % 2, "digest": str(number)}
        stem = clip_id.rpartition("_")[0]
        sounds.append(sound(clip_id, (wave or wave_of)(number), recording_id=stem, source=f"folder/{stem}.ogg", **told))
    return write_sounds(sounds, directory / "clips", directory / "catalog.parquet")


def sound(clip_id: str, wave: np.ndarray, rate: int = RATE, **columns: Any) -> dict[str, Any]:
    """A row of the clips' table and of their catalog, each of which takes its columns."""
    audio = {"bytes": flac.encode_flac(wave, rate), "path": f"{clip_id}.flac"}
    whose = {"clip_id": clip_id, "recording_id": clip_id, "source": f"{clip_id}.wav", "start": 0.0, "digest": "", "shard": 0}
    told = {"split": "train", "captions": [], "labels": [], "corpus": "test", "weight": 1.0}
    return {**whose, **told, "audio": audio, "num_samples": wave.shape[-1], **columns}


def write_rows(rows: Sequence[dict[str, Any]], path: Path, schema: pa.Schema) -> None:
    """Of rows that may have more columns."""
    shards.write_rows([{name: row[name] for name in schema.names if name in row} for row in rows], path, schema)


def write_sounds(rows: Sequence[dict[str, Any]], directory: Path, catalog: Path) -> clips.Tables:
    """Clips in their shards, and the catalog."""
    for shard in sorted({row["shard"] for row in rows}):
        write_rows([row for row in rows if row["shard"] == shard], directory / shards.shard_name(shard), manifest.CLIPS)
    write_rows(rows, catalog, manifest.CATALOG)
    return clips.Tables(directory, catalog)


def wave_of(number: int) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * (200 + 100 * number) * np.arange(RATE // 2) / RATE)).astype(np.float32)


def json_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    kept = {key: value for key, value in json.loads(path.read_text()).items() if key not in changes}
    path.write_text(json.dumps(kept | {key: value for key, value in changes.items() if value is not None}))


def edit_params(project: Path, section: str, **values: Any) -> None:
    """Change keys of a section of params.yaml."""
    document = params.read_yaml(project / "params.yaml")
    document[section] |= values
    params.write_yaml(document, project / "params.yaml")
