"""Give clips their captions, labels and splits, and lay them out as TANGO reads them: JSON lines and AudioCaps names."""

from __future__ import annotations

import io
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from soundmill import manifest, shards, stage
from soundmill.corpora import matching, splits
from soundmill.errors import UserError
from soundmill.params import Probability, Seed, StageParams

NAMED = 20  # how many missing or orphan ids the metrics name


class RenameParams(StageParams):
    dataset: str = Field(min_length=1)
    location: str = Field(min_length=1, description="what stands before the file names in the JSON lines")
    caption_template: str
    valid_fraction: Probability
    test_fraction: Probability
    seed: Seed

    @field_validator("caption_template")
    @classmethod
    def _has_label(cls, template: str) -> str:
        if "{label}" not in template:
            raise ValueError("must contain {label}, the place of the clip's label")
        return template

    @model_validator(mode="after")
    def _leaves_training(self) -> RenameParams:
        if self.valid_fraction + self.test_fraction >= 1:
            raise ValueError("valid_fraction + test_fraction must be below 1: nothing would be left to train on")
        return self


def run(
    params: RenameParams,
    ctx: stage.Context,
    corpus: stage.Input,
    segments: stage.Input,
    clips: stage.Input,
    audiocaps: stage.Output,
    catalog: stage.Output,
) -> dict[str, Any]:
    """Write the catalog (one row per clip), train/valid/test JSON lines and the named WAVs; report what did not match."""
    recordings = shards.read_table(corpus / "recordings.parquet", manifest.RECORDINGS).to_pylist()
    captions = shards.read_table(corpus / "captions.parquet", manifest.CAPTIONS).to_pylist()
    planned = shards.read_table(segments, manifest.SEGMENTS, columns=["clip_id", "shard"])
    shard_of = dict(zip(planned["clip_id"].to_pylist(), planned["shard"].to_pylist(), strict=True))
    columns = ["clip_id", "recording_id", "source", "start"]
    sources = shards.shard_paths(clips)
    by_source = {path: list(shards.read_rows(path, manifest.CLIPS, columns)) for path in sources}
    rows = [row for path in sources for row in by_source[path]]
    _check_clips(rows, shard_of, clips)

    matched = matching.match(recordings, captions, rows, params.caption_template)
    usable = {row["recording_id"] for row in rows}
    primary = {
        row["recording_id"]: description.labels[0]
        for row in reversed(rows)
        if (description := matched.clips[row["clip_id"]]).labels
    }
    split_of, decided_by = splits.assign(
        [row for row in recordings if row["recording_id"] in usable],
        primary,
        {row["recording_id"] for row in rows if matched.clips[row["clip_id"]].captions},
        valid_fraction=params.valid_fraction,
        test_fraction=params.test_fraction,
        seed=params.seed,
    )
    origin = {row["recording_id"]: {"corpus": row["corpus"], "weight": row["weight"]} for row in recordings}
    entries = [
        {
            **row,
            **origin[row["recording_id"]],
            "shard": shard_of[row["clip_id"]],
            "split": split_of[row["recording_id"]],
            "captions": matched.clips[row["clip_id"]].captions,
            "labels": matched.clips[row["clip_id"]].labels,
        }
        for row in rows
    ]
    shards.write_rows(entries, catalog, manifest.CATALOG)

    _write_audio(ctx, {path: len(found) for path, found in by_source.items()}, audiocaps / "audio")
    json_rows = {split: _write_json(params, entries, split, audiocaps / f"{split}.json") for split in manifest.SPLITS}
    orphans = [entry["clip_id"] for entry in entries if not entry["captions"]]
    label_counts = Counter(label for entry in entries for label in entry["labels"])
    _say_gaps(ctx.name, matched.missing, orphans, decided_by, recordings)
    return {
        "clips": len(entries),
        "matched": matched.matched,
        "missing": len(matched.missing),
        "missing_first": matched.missing[:NAMED],
        "orphans": len(orphans),
        "orphans_first": orphans[:NAMED],
        "uncaptioned": len(orphans),
        "captioned_by": dict(Counter(description.origin for description in matched.clips.values())),
        "splits_by": decided_by,
        "clips_by_split": {split: sum(entry["split"] == split for entry in entries) for split in manifest.SPLITS},
        "recordings_by_split": {split: list(split_of.values()).count(split) for split in manifest.SPLITS},
        "captions_by_split": json_rows,
        "labels": len(label_counts),
        "clips_by_label": dict(sorted(label_counts.items())),
        "labels_absent_from_train": sorted(
            set(label_counts) - {label for entry in entries if entry["split"] == "train" for label in entry["labels"]}
        ),
    }


def _check_clips(rows: list[dict[str, Any]], shard_of: dict[str, int], clips: Path) -> None:
    if not rows:
        raise UserError(f"{clips}: no clip at all; see data/quarantine/segment.parquet and resample.parquet for the reasons")
    repeated = [clip_id for clip_id, count in Counter(row["clip_id"] for row in rows).items() if count > 1]
    unplanned = [row["clip_id"] for row in rows if row["clip_id"] not in shard_of]
    if repeated or unplanned:
        what = f"{len(repeated)} clip ids occur twice" if repeated else f"{len(unplanned)} clips are in no plan"
        raise UserError(f"{clips}: {what} (first: {(repeated or unplanned)[0]}); remake it: `dvc repro -f segment resample`")


def _write_json(params: RenameParams, entries: list[dict[str, Any]], split: str, path: Path) -> int:
    return manifest.write_tango_json(
        (
            {"dataset": params.dataset, "location": f"{params.location.rstrip('/')}/{entry['clip_id']}.wav", "captions": caption}
            for entry in entries
            if entry["split"] == split
            for caption in entry["captions"]
        ),
        path,
    )


def _write_audio(ctx: stage.Context, sources: dict[Path, int], directory: Path) -> None:
    """Write every clip as `<clip_id>.wav` below `directory`; `sources` are the clips' shards and their numbers of rows."""
    jobs = [shards.Job(path.stem, (path,), weight=count) for path, count in sources.items()]
    work = ctx.scratch / "named"
    with ctx.progress(sum(job.weight for job in jobs), ctx.name) as tick:
        shards.map_shards(name_clips, jobs, work, workers=ctx.workers, progress=tick)
    directory.mkdir(parents=True)
    for job in jobs:
        for wav in sorted((work / job.name).iterdir()):
            # Linked, not moved: if we are killed here, the rerun still finds every finished folder.
            os.link(wav, directory / wav.name)


def name_clips(source: Path, output: Path) -> shards.Report:
    """Write the clips of one shard as WAV files of the same samples, in the new folder `output`."""
    import soundfile

    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for row in shards.read_rows(source, manifest.CLIPS, ["clip_id", "audio"]):
        clip_id = manifest.check_clip_id(row["clip_id"])
        samples, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="int16")
        soundfile.write(partial / f"{clip_id}.wav", samples, rate, subtype="PCM_16")
    shutil.rmtree(output, ignore_errors=True)
    os.replace(partial, output)
    return shards.Report()


def _say_gaps(name: str, missing: list[str], orphans: list[str], decided_by: str, recordings: list[dict[str, Any]]) -> None:
    if missing:
        print(f"{name}: {len(missing)} captions have no clip, first {missing[0]}")
    if orphans:
        print(f"{name}: {len(orphans)} clips have neither caption nor label and are not in the JSON lines, first {orphans[0]}")
    if decided_by != "given" and any(row["split"] for row in recordings):
        print(f"{name}: the given splits would leave nothing to train on; they are put aside, and splits are by {decided_by}")


if __name__ == "__main__":
    stage.main(run, section="rename")
