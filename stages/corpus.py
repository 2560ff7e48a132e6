"""Synthesise an embedded corpus: `synthetic`, sound events named and captioned as in AudioCaps, or `loops` of known tempo."""

from collections import Counter
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from soundmill import manifest, shards, stage
from soundmill.corpora import audiofolder, inventory, loop_corpus, synthetic
from soundmill.corpora import forgotten as lists
from soundmill.corpora.csv_rows import AUDIOCAPS
from soundmill.params import Seconds, Seed, StageParams
from soundmill.stage import Context, Input, Output

CSV_FILES = ("train.csv", "val.csv", "test.csv", "labels.csv")
LOOPS_CSV = "metadata.csv"
SYNTHESISED = {"licence": "CC0-1.0", "creator": "Soundmill", "ai_terms": "allowed", "terms_found": "synthesised"}


class CorpusParams(StageParams):
    format: Literal["synthetic", "loops"]
    path: None
    embedded: list[Literal["synthetic", "loops"]] = Field(min_length=1, max_length=1)
    external: list[str] = Field(max_length=0)
    shards: int = Field(ge=1, le=4096)
    recordings: int = Field(ge=synthetic.MIN_RECORDINGS, le=10_000)
    valid_fraction: float = Field(
        ge=0, lt=1, description="share of recordings for validation; for `synthetic` at least 4 recordings"
    )
    test_fraction: float = Field(ge=0, lt=1, description="share of recordings for the test")
    window_seconds: Seconds | None = Field(
        ge=1, description="window of one caption, as clip_seconds of the stage segment; null for loops"
    )
    min_seconds: Seconds | None
    seed: Seed

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        windows = (self.window_seconds, self.min_seconds)
        if self.embedded != [self.format]:
            raise ValueError(f"embedded must be [{self.format}], the format")
        if (windows.count(None), self.format) not in ((0, "synthetic"), (2, "loops")):
            raise ValueError("window_seconds and min_seconds are for `synthetic`, and null for `loops`")
        if self.format == "synthetic" and self.min_seconds > self.window_seconds:
            raise ValueError("min_seconds must not exceed window_seconds")
        return self


def run(params: CorpusParams, ctx: Context, corpus: Output, refused: Output = None, forgotten: Input = None) -> dict[str, Any]:
    """Render and read the planned recordings; those `forgotten` are recognised by digest and removed, and none is `refused`."""
    planned, jobs = _planned(params)
    make = loop_corpus.write if params.format == "loops" else synthetic.write_recording
    report = ctx.map_shards(make, jobs, corpus / "audio", unit="recording")
    files = inventory.list_files(corpus / "audio", ctx.workers)
    left_out = lists.read(forgotten)
    left_out.leave_out_files(files)
    kept = _remove_others(corpus / "audio", planned, {file.path for file in files.audio})
    if params.format == "loops":
        loop_corpus.write_csv(kept, corpus / LOOPS_CSV)
        files.metadata = {LOOPS_CSV.encode(): bytes(corpus / LOOPS_CSV)}
        tables = audiofolder.read(files, params.shards)
    else:
        videos = {recording.video for recording in kept}
        synthetic.write_csv((detail for detail in report.details if detail[1] in videos), corpus)
        files.metadata = {name.encode(): bytes(corpus / name) for name in CSV_FILES}
        tables = AUDIOCAPS.read(files, params.shards)
    tables.settle(params.format)
    for row in tables.recordings:
        row |= SYNTHESISED
    left_out.leave_out_recordings(tables)
    kept = _remove_others(corpus / "audio", kept, {row["path"] for row in tables.recordings})
    ctx.quarantine.extend(files.rejected + tables.rejected)
    shards.write_rows(tables.recordings, corpus / "recordings.parquet", manifest.RECORDINGS)
    shards.write_rows(tables.captions, corpus / "captions.parquet", manifest.CAPTIONS)
    if refused:
        shards.write_rows([], refused, manifest.REFUSED)
    labels = {label for rows in (tables.captions, tables.recordings) for row in rows for label in row["labels"]}
    return {
        "recordings": len(tables.recordings),
        "seconds": round(sum(recording.seconds for recording in kept), 1),
        "captions": len(tables.captions),
        "labels": len(labels),
        "splits": Counter(row["split"] for row in tables.recordings),
        "formats": Counter(recording.extension for recording in kept),
        "collisions": len(tables.collisions),
        "collisions_first": tables.collisions[:20],
        **tables.counts,
    }


Planned = list[synthetic.Recording] | list[loop_corpus.Loop]


def _planned(params: CorpusParams) -> tuple[Planned, list[shards.Job]]:
    fractions = params.valid_fraction, params.test_fraction
    if params.format == "loops":
        loops = loop_corpus.plan(params.recordings, *fractions, params.seed)
        return loops, [shards.Job(loop.name, (loop, params.seed)) for loop in loops]
    planned = synthetic.plan(params.recordings, *fractions, params.window_seconds, params.min_seconds, params.seed)
    options = params.seed, params.window_seconds, params.min_seconds
    return planned, [shards.Job(recording.name, (recording, *options)) for recording in planned]


def _remove_others(audio: Path, planned: Planned, names: set[str]) -> Planned:
    """Remove the files that are not in `names`; returns the remaining recordings."""
    for recording in planned:
        if recording.name not in names:
            (audio / recording.name).unlink()
    return [recording for recording in planned if recording.name in names]


if __name__ == "__main__":
    stage.main(run, section="corpus")
