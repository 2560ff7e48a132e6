"""A small prepared corpus, as the pipeline leaves it: clips in shards and their catalog; and a plan to cut clips by."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from soundmill import clips, manifest, shards
from soundmill.audio import flac

RATE = 16_000
PLAN = {
    "source": "corpus",
    "sample_rate": RATE,
    "channels": 1,
    "upsample": True,
    "clip_seconds": 5.0,
    "tail": "pad",
    "min_seconds": 1.0,
    "loudness": "none",
    "tolerance_seconds": 0.05,
    "silence_dbfs": -90.0,
    "max_seconds": 600.0,
}
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
    sounds, catalog = {0: [], 1: []}, []
    for number, (clip_id, split, captions, labels) in enumerate(rows or ROWS):
        shard, stem = number % 2, clip_id.rpartition("_")[0]
        samples = (wave or wave_of)(number)
        sounds[shard].append(
            {
                "clip_id": clip_id,
                "audio": {"bytes": flac.encode_flac(samples, RATE), "path": f"{clip_id}.flac"},
                "source": f"folder/{stem}.ogg",
                "start": 0.0,
                "digest": str(number),
                "recording_id": stem,
                "num_samples": len(samples),
                "quality": None,
            }
        )
        catalog.append(
            {
                "clip_id": clip_id,
                "recording_id": stem,
                "source": f"folder/{stem}.ogg",
                "start": 0.0,
                "shard": shard,
                "split": split,
                "captions": captions,
                "labels": labels,
                "corpus": "test",
                "weight": 1.0,
                "group": None,
            }
        )
    for shard, of_shard in sounds.items():
        shards.write_rows(of_shard, directory / "clips" / shards.shard_name(shard), manifest.CLIPS)
    shards.write_rows(catalog, directory / "catalog.parquet", manifest.CATALOG)
    return clips.Tables(directory / "clips", directory / "catalog.parquet")


def wave_of(number: int) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * (200 + 100 * number) * np.arange(RATE // 2) / RATE)).astype(np.float32)


def json_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
