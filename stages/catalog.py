"""Describe the clips of one variant by captions, labels and splits, for all later stages."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator

from soundmill import manifest, shards, stage, terminal
from soundmill.corpora import catalog as catalogs
from soundmill.corpora import clip_pages
from soundmill.corpora.catalog import Fit, LeastScores
from soundmill.errors import UserError
from soundmill.params import Cosine, StageParams, did_you_mean

NAMED = 20  # missing and orphan ids in the metrics
REMEDY = "set zero_shot.embedder and zero_shot.words with `soundmill params`"


class CatalogParams(StageParams):
    caption_templates: list[str] = Field(
        min_length=1, description="of clips without a caption: the first with known fields, and others with the same fields"
    )
    min_tag_score: Cosine = Field(description="a word with a lower score (stage `zero_shot`) is no tag")
    min_caption_score: Cosine | None = Field(description="captions with lower scores are left out and quarantined; null: none")
    only: list[str] = Field(description="labels; only clips with one of them are used; []: all clips")
    report: clip_pages.ReportParams

    @field_validator("caption_templates")
    @classmethod
    def _fields_exist(cls, templates: list[str]) -> list[str]:
        for template in templates:
            catalogs.fields_of(template)
        return templates


def run(
    params: CatalogParams,
    ctx: stage.Context,
    corpus: stage.Input,
    clips: stage.Input,
    quality: stage.Input,
    scores: stage.Input,
    splits: stage.Input,
    catalog: stage.Output,
    report: stage.Shown,
) -> dict[str, Any]:
    """Write one row per clip, without clips that `quality` rejects and copies according to `splits`; captions that do not fit their
    clips by `scores` go to quarantine. If no clip was compared, `scores` is the path of `quality`."""
    assigned = shards.read_table(splits, manifest.RECORDING_SPLITS)
    split_of = dict(zip(assigned["recording_id"].to_pylist(), assigned["split"].to_pylist(), strict=True))
    heard = manifest.ZERO_SHOT.empty_table() if scores == quality else shards.read_table(scores, manifest.ZERO_SHOT)
    least = LeastScores(params.min_tag_score, params.min_caption_score)
    described = catalogs.describe(corpus, clips, quality, heard, least, params.caption_templates, split_of)
    table = catalogs.with_splits(described.clips, split_of)
    copies = _copies(table, assigned, quality, of_loops=any((corpus / "audio").glob("*.parquet")))
    table = table.filter(pc.invert(pc.is_in(table["clip_id"], pa.array(copies, pa.string()))))
    all_clips = set(table["clip_id"].to_pylist())
    table = _with_labels(table, params.only)
    left_out = sorted(all_clips - set(table["clip_id"].to_pylist()))
    schema = manifest.CATALOG.with_metadata({manifest.LEFT_OUT: json.dumps(left_out)}) if left_out else manifest.CATALOG
    with shards.ShardWriter(catalog, schema) as writer:
        writer.write_table(table)

    if heard.num_rows == 0 and (unheard := _wants_scores(params)):
        terminal.say(f"{ctx.name}: {unheard} has no effect, as no clip was compared: {REMEDY}")
    origins = Counter(table["origin"].to_pylist())
    heard = heard.filter(pc.is_in(heard["clip_id"], table["clip_id"].combine_chunks()))
    fit = Fit.of(heard, least)
    _quarantine(ctx, fit, table)
    ctx.show(f"the page ({report.name})", lambda: clip_pages.write_captions(report, clips, origins, fit, params.report), report)
    orphans = table.filter(pc.equal(pc.list_value_length(table["captions"]), 0))["clip_id"].to_pylist()
    label_counts = Counter(pc.list_flatten(table["labels"]).to_pylist())
    training = table.filter(pc.equal(table["split"], "train"))
    recordings = dict(zip(table["recording_id"].to_pylist(), table["split"].to_pylist(), strict=True))
    if described.missing:
        terminal.say(f"{ctx.name}: {len(described.missing)} captions have no clip, first {described.missing[0]}")
    if orphans:
        terminal.say(f"{ctx.name}: {len(orphans)} clips have no caption, first {orphans[0]}")
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
        "captioned_by": dict(origins),
        "captions_compared": len(fit.captions),
        "captions_left_out": len(fit.unfit),
        "clips_tagged": len(set(fit.tags["clip_id"].to_pylist())),
        "clips_by_split": _count(table["split"].to_pylist()),
        "recordings_by_split": _count(recordings.values()),
        "labels": len(label_counts),
        "clips_by_label": dict(sorted(label_counts.items())),
        "labels_absent_from_train": sorted(set(label_counts) - set(pc.list_flatten(training["labels"]).to_pylist())),
    }


def _wants_scores(params: CatalogParams) -> str:
    """What in the parameters needs the scores of `zero_shot`; empty if nothing does."""
    if params.min_caption_score is not None:
        return "catalog.min_caption_score"
    of_tags = [template for template in params.caption_templates if "tags" in catalogs.fields_of(template)]
    return f"{of_tags[0]!r} of catalog.caption_templates" if of_tags else ""


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
        if min(end, copy["end"]) - max(start, copy["start"]) > manifest.OVERLAP_SECONDS
    ]


def _quarantine(ctx: stage.Context, fit: Fit, table: pa.Table) -> None:
    """The captions that do not fit; `table` has the clips."""
    unfit = fit.unfit.to_pylist()
    some = table.filter(pc.is_in(table["clip_id"], pa.array([row["clip_id"] for row in unfit], pa.string())))
    source_of = dict(zip(some["clip_id"].to_pylist(), some["source"].to_pylist(), strict=True))
    for row in unfit:
        value = f"score {row['score']:g} < min_caption_score {fit.least.caption:g}"
        ctx.reject(source_of[row["clip_id"]], "min_caption_score", f"{value}, clip {row['clip_id']}: {row['caption']}")


def _count(splits: Any) -> dict[str, int]:
    counts = Counter(splits)
    return {split: counts[split] for split in manifest.SPLITS}


if __name__ == "__main__":
    stage.main(run, section="catalog")
