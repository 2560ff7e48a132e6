"""Choose and read real clips, to generate for, to reconstruct or to compare with."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from soundmill import hashing, manifest, params, shards
from soundmill.audio.flac import decode_flac, flac_rate, write_wav
from soundmill.errors import UserError


def choose_balanced(clip_labels: dict[str, list[str]], count: int | None) -> list[str]:
    """`count` clip ids (None: all), taken round-robin from the sets of labels in a stable order; returned sorted."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for clip_id in sorted(clip_labels):
        groups.setdefault(tuple(clip_labels[clip_id]), []).append(clip_id)
    turns = [(turn, labels, clip_id) for labels, ids in groups.items() for turn, clip_id in enumerate(ids)]
    return sorted(clip_id for _, _, clip_id in sorted(turns)[:count])


def choose_by_hash(clip_ids: Sequence[str], count: int) -> list[str]:
    """At most `count` clip ids, those with the smallest hash, so that a growing corpus keeps most of the choice; sorted."""
    return sorted(hashing.hash_order(clip_ids)[:count])


def track_sounds(ctx: Any, clips: Path, chosen: list[str], output: Path) -> None:
    """Log sounds to tracking, each with the real clip of the same id."""
    pairs = ctx.scratch / "listen"
    pairs.mkdir(parents=True, exist_ok=True)
    for clip_id, (wave, rate) in waves_of(clips, set(chosen)):
        shutil.copyfile(output / f"{clip_id}.wav", pairs / f"{clip_id}-generated.wav")
        write_wav(pairs / f"{clip_id}-reference.wav", wave, rate)
        for kind in ("generated", "reference"):
            ctx.tracking.log_file(pairs / f"{clip_id}-{kind}.wav", "listen")


def read_weights(catalog: Path) -> dict[str, dict[str, float]]:
    """Sampling weights: split → clip id (sorted) → weight. UserError if the training split is empty."""
    splits = _by_split(catalog, "weight")
    if not splits["train"]:
        raise UserError(f"{catalog}: the training split is empty; check the fractions in `splits` and the splits of the corpus")
    return splits


def read_mixes(catalog: Path) -> set[str]:
    """The clips of the variant `mixed` that are mixes."""
    table = shards.read_table(catalog, manifest.MIXED_CATALOG, ["clip_id", manifest.MIXED]).to_pylist()
    return {row["clip_id"] for row in table if row[manifest.MIXED]}


def read_left_out(catalog: Path) -> list[str]:
    """Valid clips that `catalog.only` excluded for their labels, so nothing was trained on them."""
    with shards.open_parquet(catalog) as file:
        return params.parse_json((file.schema_arrow.metadata or {}).get(manifest.LEFT_OUT, b"[]"))


def read_labels(catalog: Path) -> dict[str, dict[str, list[str]]]:
    """Labels, sorted: split → clip id (sorted) → labels."""
    splits = _by_split(catalog, "labels").items()
    return {split: {clip_id: sorted(set(labels or [])) for clip_id, labels in found.items()} for split, found in splits}


def _by_split(catalog: Path, column: str) -> dict[str, dict[str, Any]]:
    """A column of the catalog: split → clip id (sorted) → value."""
    rows = shards.read_table(catalog, manifest.CATALOG, ["clip_id", "split", column]).sort_by("clip_id").to_pylist()
    return {split: {row["clip_id"]: row[column] for row in rows if row["split"] == split} for split in manifest.SPLITS}


def durations_of(clips: Path, clip_ids: Iterable[str]) -> dict[str, float]:
    """Duration of each clip in seconds."""
    lengths: dict[str, int] = {}
    paths = shards.shard_paths(clips)
    for path in paths:
        for row in shards.read_table(path, manifest.CLIPS, ["clip_id", "num_samples"]).to_pylist():
            lengths[row["clip_id"]] = row["num_samples"]
    missing = sorted(set(clip_ids) - set(lengths))
    if missing:
        raise UserError(f"{clips}: {len(missing)} clips of the catalog are missing, first {missing[0]!r}; run `dvc repro`")
    rate = next(flac_rate(row["audio"]["bytes"]) for path in paths for row in shards.read_rows(path, manifest.CLIPS, ["audio"]))
    return {clip_id: lengths[clip_id] / rate for clip_id in clip_ids}


def beginnings(clips: Path, clip_ids: Sequence[str], count: int) -> np.ndarray:
    """Waves float32 [N, C, T] of `count` clips (at least one), chosen by hash and cut to the shortest of them."""
    waves = [wave for _, (wave, _) in waves_of(clips, set(choose_by_hash(clip_ids, max(1, count))))]
    length = min(wave.shape[1] for wave in waves)
    return np.stack([wave[:, :length] for wave in waves]).astype(np.float32)


def waves_of(clips: Path, clip_ids: set[str]) -> Iterator[tuple[str, tuple[np.ndarray, int]]]:
    """(clip id, (wave [C, T], its rate)) of the clips in `clip_ids`, in the order of the shards."""
    for row in shards.rows_below(clips, manifest.CLIPS, ["clip_id", "audio"]):
        if row["clip_id"] in clip_ids:
            data = row["audio"]["bytes"]
            yield row["clip_id"], (decode_flac(data), flac_rate(data))
