"""Make the embedded corpus: synthesised recordings under AudioCaps names, their csv files, and the tables the pipeline reads."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

from pydantic import Field, model_validator

from soundmill import manifest, shards, stage
from soundmill.corpora import audiocaps, inventory, synthetic
from soundmill.params import Seconds, Seed, StageParams

CSV_FILES = ("train.csv", "val.csv", "test.csv", "labels.csv")


class CorpusParams(StageParams):
    format: Literal["synthetic"]
    path: None
    embedded: list[Literal["synthetic"]] = Field(min_length=1, max_length=1)
    external: list[str] = Field(max_length=0)
    shards: int = Field(ge=1, le=4096)
    recordings: int = Field(ge=synthetic.MIN_RECORDINGS, le=10_000)
    valid_fraction: float = Field(ge=0, lt=1, description="share of the recordings that is held out for validation; at least 4")
    test_fraction: float = Field(ge=0, lt=1, description="and for the test")
    window_seconds: Seconds = Field(ge=1, description="one caption per window: the segment stage's clip_seconds")
    min_seconds: Seconds
    seed: Seed

    @model_validator(mode="after")
    def _windows_are_longer(self) -> CorpusParams:
        if self.min_seconds > self.window_seconds:
            raise ValueError("min_seconds must not exceed window_seconds")
        return self


def run(params: CorpusParams, ctx: stage.Context, corpus: stage.Output) -> dict[str, Any]:
    """Render every planned recording, write the csv files, and read them back by the AudioCaps adapter like anybody's corpus."""
    fractions = params.valid_fraction, params.test_fraction
    planned = synthetic.plan(params.recordings, *fractions, params.window_seconds, params.min_seconds, params.seed)
    jobs = [
        shards.Job(recording.name, (recording, params.seed, params.window_seconds, params.min_seconds)) for recording in planned
    ]
    report = ctx.map_shards(synthetic.write_recording, jobs, corpus / "audio", unit="recording")
    synthetic.write_csv(report.details, corpus)

    files = inventory.take(corpus / "audio", ctx.workers)
    files.metadata = {name.encode(): bytes(corpus / name) for name in CSV_FILES}
    tables = audiocaps.read(files, params.shards)
    tables.settle("synthetic")
    ctx.quarantine.extend(files.rejected + tables.rejected)
    shards.write_rows(tables.recordings, corpus / "recordings.parquet", manifest.RECORDINGS)
    shards.write_rows(tables.captions, corpus / "captions.parquet", manifest.CAPTIONS)
    return {
        "recordings": len(tables.recordings),
        "seconds": round(sum(recording.seconds for recording in planned), 1),
        "captions": len(tables.captions),
        "labels": len({label for row in tables.captions for label in row["labels"]}),
        "splits": Counter(row["split"] for row in tables.recordings),
        "formats": Counter(recording.extension for recording in planned),
        "collisions": len(tables.collisions),
        "collisions_first": tables.collisions[:20],
        **tables.counts,
    }


if __name__ == "__main__":
    stage.main(run, section="corpus")
