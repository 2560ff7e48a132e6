"""The real clips of a family: choosing, measuring and reading those to generate for, to reconstruct and to compare with."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from soundmill import hashing, manifest, params, shards
from soundmill.audio.flac import decode_flac, flac_rate, write_wav
from soundmill.errors import UserError


def choose_balanced(clip_labels: dict[str, list[str]], count: int | None) -> list[str]:
    """`count` clip ids (None: all), taken in turn from every set of labels in stable order; returned sorted."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for clip_id in sorted(clip_labels):
        groups.setdefault(tuple(clip_labels[clip_id]), []).append(clip_id)
    turns = [(place, labels, clip_id) for labels, ids in groups.items() for place, clip_id in enumerate(ids)]
    return sorted(clip_id for _, _, clip_id in sorted(turns)[:count])


def choose_by_hash(clip_ids: Sequence[str], count: int) -> list[str]:
    """Of more than `count` clips those with the smallest hash, so a larger corpus keeps most of a choice; sorted."""
    return sorted(hashing.hash_order(clip_ids)[:count])


def track_sounds(ctx: Any, clips: Path, chosen: list[str], output: Path) -> None:
    """Send some sounds to tracking, each beside the real clip of the same name."""
    pairs = ctx.scratch / "listen"
    pairs.mkdir(parents=True, exist_ok=True)
    for clip_id, (wave, rate) in waves_of(clips, set(chosen)):
        shutil.copyfile(output / f"{clip_id}.wav", pairs / f"{clip_id}-generated.wav")
        write_wav(pairs / f"{clip_id}-reference.wav", wave, rate)
        for kind in ("generated", "reference"):
            ctx.tracking.log_file(pairs / f"{clip_id}-{kind}.wav", "listen")


def read_weights(catalog: Path) -> dict[str, dict[str, float]]:
    """Weight with which a clip is drawn, by clip id (sorted) by split; no clip to train on is a UserError."""
    table = shards.read_table(catalog, manifest.CATALOG, ["clip_id", "split", "weight"])
    splits: dict[str, dict[str, float]] = {split: {} for split in manifest.SPLITS}
    for row in sorted(table.to_pylist(), key=lambda row: row["clip_id"]):
        splits[row["split"]][row["clip_id"]] = row["weight"]
    if not splits["train"]:
        raise no_training_clip(catalog)
    return splits


def read_left_out(catalog: Path) -> list[str]:
    """Clips that `catalog.only` left out for their labels: nothing was trained on them, and nothing is wrong with them."""
    with shards.open_parquet(catalog) as file:
        return params.parse_json((file.schema_arrow.metadata or {}).get(manifest.LEFT_OUT, b"[]"))


def no_training_clip(where: Path) -> UserError:
    return UserError(f"{where}: no clip of the training split; check the fractions of `splits` and the corpus's own splits")


def read_labels(catalog: Path) -> dict[str, dict[str, list[str]]]:
    """Labels by clip id by split."""
    table = shards.read_table(catalog, manifest.CATALOG, ["clip_id", "split", "labels"])
    splits: dict[str, dict[str, list[str]]] = {split: {} for split in manifest.SPLITS}
    for row in sorted(table.to_pylist(), key=lambda row: row["clip_id"]):
        splits[row["split"]][row["clip_id"]] = sorted(set(row["labels"] or []))
    return splits


def durations_of(clips: Path, wanted: Iterable[str]) -> dict[str, float]:
    """Seconds of each clip."""
    lengths: dict[str, int] = {}
    paths = shards.shard_paths(clips)
    for path in paths:
        for row in shards.read_table(path, manifest.CLIPS, ["clip_id", "num_samples"]).to_pylist():
            lengths[row["clip_id"]] = row["num_samples"]
    missing = sorted(set(wanted) - set(lengths))
    if missing:
        raise UserError(f"{clips}: {len(missing)} clips of the catalog are missing, the first {missing[0]!r}; run `dvc repro`")
    rate = next(flac_rate(row["audio"]["bytes"]) for path in paths for row in shards.read_rows(path, manifest.CLIPS, ["audio"]))
    return {clip_id: lengths[clip_id] / rate for clip_id in wanted}


def beginnings(clips: Path, clip_ids: Sequence[str], count: int) -> np.ndarray:
    """Waves float32 [N, C, T] of `count` clips (at least one), a fixed choice, each as long as the shortest of them."""
    waves = [wave for _, (wave, _) in waves_of(clips, set(choose_by_hash(clip_ids, max(1, count))))]
    length = min(wave.shape[1] for wave in waves)
    return np.stack([wave[:, :length] for wave in waves]).astype(np.float32)


def waves_of(clips: Path, wanted: set[str]) -> Iterator[tuple[str, tuple[np.ndarray, int]]]:
    """(clip id, (wave [C, T], its rate)) of those that are wanted, shard by shard."""
    for path in shards.shard_paths(clips):
        for row in shards.read_rows(path, manifest.CLIPS, ["clip_id", "audio"]):
            if row["clip_id"] in wanted:
                data = row["audio"]["bytes"]
                yield row["clip_id"], (decode_flac(data), flac_rate(data))
