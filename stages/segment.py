"""Cut every recording into clips of at most `clip_seconds`; the plan is a table of sample-exact cuts, no audio is written here."""

from __future__ import annotations

import os
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

from pydantic import Field

from soundmill import manifest, shards, stage
from soundmill.audio import decode, segment
from soundmill.audio.resample import resampled_length
from soundmill.errors import UserError
from soundmill.params import SampleRate, Seconds, StageParams


class SegmentParams(StageParams):
    clip_seconds: Seconds = Field(ge=0.05)
    tail: segment.Tail
    min_seconds: Seconds  # a shorter remainder is dropped and counted
    sample_rate: SampleRate  # cuts are counted in its samples
    max_seconds: Seconds = Field(gt=0)  # longer recordings are quarantined


def run(params: SegmentParams, ctx: stage.Context, corpus: stage.Input, segments: stage.Output) -> dict[str, Any]:
    """Plan the cuts of every recording; one that cannot be decoded, or gives no clip, goes to quarantine with its reason."""
    table = corpus / "recordings.parquet"
    recordings = shards.read_table(table, manifest.RECORDINGS).to_pylist()
    if not recordings:
        raise UserError(f"{table}: no recordings; put audio files where `corpus.path` in params.yaml points")
    recordings.sort(key=lambda row: (row["shard"], row["raw_path"]))
    root = os.fsencode(ctx.corpus_root(corpus))
    by_shard = [(shard, list(rows)) for shard, rows in groupby(recordings, key=lambda row: row["shard"])]
    jobs = [shards.Job(shards.shard_name(shard), (rows, root, params), weight=len(rows)) for shard, rows in by_shard]
    with ctx.progress(len(recordings), ctx.name, unit="recording") as tick:
        report = shards.map_shards(plan_shard, jobs, ctx.scratch / "plans", workers=ctx.workers, progress=tick)
    ctx.quarantine.extend(report.quarantine)

    rows = [row for job in jobs for row in shards.read_rows(ctx.scratch / "plans" / job.name, manifest.SEGMENTS)]
    reasons = Counter(row["reason"] for row in report.quarantine)
    if not rows:
        found = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common(3))
        raise UserError(
            f"none of the {len(recordings)} recordings gives a clip: {found}. "
            "Look at their files, or at `segment.min_seconds`, `segment.tail` and `segment.max_seconds`"
        )
    renamed = name_clips(rows, {row["recording_id"]: row["start_time"] for row in recordings})
    shards.write_rows(rows, segments, manifest.SEGMENTS)
    return {
        "recordings": len(recordings),
        "recordings_cut": report.counts["recordings"],
        "decoded_by": {name: report.counts.get(name, 0) for name in ("libsndfile", "ffmpeg")},
        "ffmpeg": decode.ffmpeg_version() if report.counts.get("ffmpeg") else None,  # lossy formats decode alike in one version
        "clips": len(rows),
        "seconds": sum(row["num_samples"] for row in rows) / params.sample_rate,
        "padded_clips": sum(row["pad_samples"] > 0 for row in rows),
        "dropped_remainders": report.counts.get("dropped_remainders", 0),
        "dropped_seconds": report.counts.get("dropped_samples", 0) / params.sample_rate,
        "renamed_clips": renamed,
        "quarantined_for": {reason.replace(" ", "_"): count for reason, count in sorted(reasons.items())},
    }


def plan_shard(recordings: list[dict[str, Any]], root: bytes, params: SegmentParams, output: Path) -> shards.Report:
    """Probe the recordings of one shard and write their cuts; clip ids are still those of the recordings."""
    report = shards.Report()
    clip_samples = segment.to_samples(params.clip_seconds, params.sample_rate)
    min_samples = segment.to_samples(params.min_seconds, params.sample_rate)
    with shards.ShardWriter(output, manifest.SEGMENTS) as writer:
        for recording in recordings:
            try:
                probed = decode.probe(os.path.join(root, recording["raw_path"]), params.max_seconds)
                length = resampled_length(probed.num_frames, probed.sample_rate, params.sample_rate)
                cuts = segment.plan_cuts(length, clip_samples, params.tail, min_samples)
                if not cuts:
                    raise decode.DecodeError(
                        "too short", f"{length / params.sample_rate:.3f} s gives no clip ({_why_none(params)})"
                    )
            except decode.DecodeError as error:
                report.reject(recording["path"], error.reason, error.detail)
                continue
            dropped = segment.dropped_samples(length, cuts)
            report.count("recordings")
            report.count(probed.backend)
            report.count("dropped_remainders", int(dropped > 0))
            report.count("dropped_samples", dropped)
            for cut in cuts:
                writer.write(
                    {
                        "clip_id": recording["recording_id"],
                        "recording_id": recording["recording_id"],
                        "source": recording["path"],
                        "raw_path": recording["raw_path"],
                        "digest": recording["digest"],
                        "shard": recording["shard"],
                        "start": cut.start_sample / params.sample_rate,
                        "start_sample": cut.start_sample,
                        "num_samples": cut.num_samples,
                        "pad_samples": cut.pad_samples,
                        "recording_samples": length,
                    }
                )
    return report


def _why_none(params: SegmentParams) -> str:
    return f"clips last {params.clip_seconds:g} s, tail is {params.tail}, min_seconds {params.min_seconds:g}"


def name_clips(rows: list[dict[str, Any]], start_times: dict[str, float]) -> int:
    """Give every row its AudioCaps name; returns how many had to take a longer one.

    Two recordings of one YouTube video can meet in a name (…_30 cut at 5 s, and …_35): the later one in order is then named
    after its recording's own id, which is unique.
    """
    taken: set[str] = set()
    renamed = 0
    for row in rows:
        recording_id = row["recording_id"]
        name = manifest.clip_name(manifest.naming_stem(recording_id), start_times[recording_id] + row["start"])
        if name in taken:
            renamed += 1
            name = manifest.clip_name(recording_id, row["start"])
            if name in taken:
                raise UserError(f"clip id {name!r} comes twice; recording ids in the inventory must be unique: rerun the scan")
        row["clip_id"] = manifest.check_clip_id(name)
        taken.add(name)
    return renamed


if __name__ == "__main__":
    stage.main(run, section="segment")
