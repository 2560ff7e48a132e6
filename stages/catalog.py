"""Describe the clips of one variant by captions, labels and splits, for all later stages."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator

from soundmill import manifest, shards, stage
from soundmill.corpora import captioning
from soundmill.corpora import catalog as catalogs
from soundmill.errors import UserError
from soundmill.params import StageParams, did_you_mean

NAMED = 20  # missing and orphan ids in the metrics
OVERLAP_SECONDS = 1e-3  # smaller overlaps are rounding errors


class CatalogParams(StageParams):
    caption_templates: list[str] = Field(min_length=1, description="of clips without a caption; the first with known fields")
    only: list[str] = Field(description="labels; only clips with one of them are used; []: all clips")

    @field_validator("caption_templates")
    @classmethod
    def _fields_exist(cls, templates: list[str]) -> list[str]:
        for template in templates:
            captioning.fields_of(template)
        return templates


def run(
    params: CatalogParams,
    ctx: stage.Context,
    corpus: stage.Input,
    clips: stage.Input,
    quality: stage.Input,
    splits: stage.Input,
    catalog: stage.Output,
) -> dict[str, Any]:
    """Write one row per clip, without clips that `quality` rejects and copies according to `splits`."""
    assigned = shards.read_table(splits, manifest.RECORDING_SPLITS)
    split_of = dict(zip(assigned["recording_id"].to_pylist(), assigned["split"].to_pylist(), strict=True))
    described = catalogs.describe(corpus, clips, quality, params.caption_templates, split_of)
    table = catalogs.with_splits(described.clips, split_of)
    copies = _copies(table, assigned, quality, of_loops=any((corpus / "audio").glob("*.parquet")))
    table = table.filter(pc.invert(pc.is_in(table["clip_id"], pa.array(copies, pa.string()))))
    all_clips = set(table["clip_id"].to_pylist())
    table = _with_labels(table, params.only)
    left_out = sorted(all_clips - set(table["clip_id"].to_pylist()))
    schema = manifest.CATALOG.with_metadata({manifest.LEFT_OUT: json.dumps(left_out)}) if left_out else manifest.CATALOG
    with shards.ShardWriter(catalog, schema) as writer:
        writer.write_table(table)

    orphans = table.filter(pc.equal(pc.list_value_length(table["captions"]), 0))["clip_id"].to_pylist()
    label_counts = Counter(pc.list_flatten(table["labels"]).to_pylist())
    training = table.filter(pc.equal(table["split"], "train"))
    recordings = dict(zip(table["recording_id"].to_pylist(), table["split"].to_pylist(), strict=True))
    _print_gaps(ctx.name, described.missing, orphans)
    return {
        "clips": table.num_rows,
        "left_out": len(left_out),
        "rejected": described.rejected,
        "duplicates_dropped": len(copies),
        "matched": described.matched,
        "missing": len(described.missing),
        "missing_first": described.missing[:NAMED],
        "orphans": len(orphans),
        "orphans_first": orphans[:NAMED],
        "captioned_by": dict(described.origins),
        "clips_by_split": _count(table["split"].to_pylist()),
        "recordings_by_split": _count(recordings.values()),
        "labels": len(label_counts),
        "clips_by_label": dict(sorted(label_counts.items())),
        "labels_absent_from_train": sorted(set(label_counts) - set(pc.list_flatten(training["labels"]).to_pylist())),
    }


def _with_labels(table: pa.Table, labels: list[str]) -> pa.Table:
    """The clips with one of the labels; UserError if no clip has one of them."""
    if not labels:
        return table
    existing = sorted(set(pc.list_flatten(table["labels"]).to_pylist()))
    for label in labels:
        if label not in existing:
            suggestion = did_you_mean(label, existing)
            raise UserError(f"catalog.only: no clip has the label {label!r}{suggestion} (labels: {', '.join(existing)})")
    return table.filter(pa.array([not set(labels).isdisjoint(some or []) for some in table["labels"].to_pylist()]))


def _copies(table: pa.Table, assigned: pa.Table, quality: Path, of_loops: bool) -> list[str]:
    """Ids of the clips that overlap a stretch of their recording that is a copy; of loops, whose times differ, all of its clips."""
    some = assigned.filter(pc.greater(pc.list_value_length(assigned["copies"]), 0)).to_pylist()
    copies_of = {row["recording_id"]: row["copies"] for row in some}
    clips = table.filter(pc.is_in(table["recording_id"], pa.array(copies_of, pa.string())))
    if of_loops:
        return clips["clip_id"].to_pylist()
    owner_of = dict(zip(clips["clip_id"].to_pylist(), clips["recording_id"].to_pylist(), strict=True))
    return [
        clip_id
        for clip_id, (start, end) in catalogs.stretches(quality, owner_of).items()
        for copy in copies_of[owner_of[clip_id]]
        if min(end, copy["end"]) - max(start, copy["start"]) > OVERLAP_SECONDS
    ]


def _count(splits: Any) -> dict[str, int]:
    counts = Counter(splits)
    return {split: counts[split] for split in manifest.SPLITS}


def _print_gaps(name: str, missing: list[str], orphans: list[str]) -> None:
    if missing:
        print(f"{name}: {len(missing)} captions have no clip, first {missing[0]}")
    if orphans:
        print(f"{name}: {len(orphans)} clips have neither caption nor label, first {orphans[0]}")


if __name__ == "__main__":
    stage.main(run, section="catalog")
