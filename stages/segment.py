"""Plan cuts of every recording into clips of at most `clip_seconds`: a table of sample-exact cuts, without audio."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa

from soundmill import hashing, manifest, shards, stage
from soundmill.audio import pieces
from soundmill.audio.resample import resampled_length
from soundmill.corpora import forgotten as lists
from soundmill.corpora.clip_plan import ClipPlan, check_rate
from soundmill.corpora.forgotten import Stretch
from soundmill.corpora.sources import Sources
from soundmill.decoding import decode, ffmpeg
from soundmill.errors import UserError
from soundmill.stage import Context, Input, Output

SHOWN_REMARKS = 20
Stretches = dict[str, list[Stretch]]  # by recording


def run(params: ClipPlan, ctx: Context, corpus: Input, segments: Output, forgotten: Input = None) -> dict[str, Any]:
    """Plan the cuts of every recording; those without a clip, and cuts that overlap a `forgotten` stretch, go to quarantine."""
    table = corpus / "recordings.parquet"
    recordings = shards.read_table(table, manifest.RECORDINGS)
    if not recordings.num_rows:
        raise UserError(f"{table}: no recordings; put audio files into the directory that `corpus.path` in params.yaml names")
    sources = Sources.of(corpus, ctx.root, ctx.home)
    left_out = lists.read(forgotten)
    jobs = []
    for shard, rows in shards.by_shard(recordings.sort_by("raw_path")).items():
        stretches = left_out.stretches(rows.select(["recording_id", "digest"]).to_pylist()) if left_out.entries else {}
        key = hashing.digest(shards.table_digest(rows.select(KEY)), stretches)
        jobs.append(shards.Job(shards.shard_name(shard), (rows, sources, params, stretches), rows.num_rows, key))
    report, plans = ctx.make_shards(plan_shard, jobs, "plans", unit="recording")
    if not report.counts.get("clips"):
        raise UserError(
            f"none of the {recordings.num_rows} recordings gives a clip: {report.main_reasons}. "
            "Check the files, or `tail`, `first_seconds` and `max_seconds` of these clips in params.yaml"
        )
    names = ClipNames()
    with shards.ShardWriter(segments, manifest.SEGMENTS) as writer:
        for tables in shards.read_tables((plans / job.name for job in jobs), manifest.SEGMENTS, None, shards.TABLE_ROWS_PER_GROUP):
            writer.write_table(names.settle(pa.concat_tables(tables)))
    return {
        "recordings": recordings.num_rows,
        "recordings_cut": report.counts["recordings"],
        "decoded_by": {name: report.counts.get(name, 0) for name in ("libsndfile", "ffmpeg")},
        "ffmpeg": ffmpeg.ffmpeg_version() if report.counts.get("ffmpeg") else None,  # lossy formats depend on its version
        "clips": report.counts["clips"],
        "seconds": report.counts["samples"] / params.sample_rate,
        "padded_clips": report.counts.get("padded_clips", 0),
        "dropped_remainders": report.counts.get("dropped_remainders", 0),
        "forgotten_clips": report.counts.get("forgotten_clips", 0),
        "dropped_seconds": report.counts.get("dropped_samples", 0) / params.sample_rate,
        "renamed_clips": names.renamed,
        "quarantined_for": report.quarantined_for,
        "remarks": len(report.details),
        "first_remarks": sorted(report.details)[:SHOWN_REMARKS],
    }


def plan_shard(
    recordings: pa.Table, sources: Sources, params: ClipPlan, stretches: Stretches, output: Path, previous: Path | None = None
) -> shards.Report:
    """Write the cuts of a shard's recordings, under preliminary names, without those that overlap the recordings' `stretches`."""
    with shards.ItemWriter(output, manifest.SEGMENTS, previous) as writer:
        rows = [(_key(row, stretches.get(row["recording_id"], [])), row) for row in recordings.to_pylist()]
        wanted = [(row["raw_path"], row["digest"]) for key, row in rows if key not in writer]
        places = sources.open_unchanged(wanted, output.parent)
        with closing(places), closing(decode.open_all(places, params.max_seconds)) as opened:
            for _, row, report in writer.new(rows):
                _plan(row, next(opened), params, stretches.get(row["recording_id"], []), writer, report)
    return writer.report


KEY = ["raw_path", "recording_id", "path", "digest", "shard", "start_time"]  # columns that cuts depend on


def _key(recording: dict[str, Any], stretches: list[Stretch]) -> str:
    return hashing.digest(*(recording[name] for name in KEY), stretches)


def _plan(
    row: dict[str, Any],
    recording: decode.Recording | decode.DecodeError,
    params: ClipPlan,
    stretches: list[Stretch],
    writer: shards.ItemWriter,
    report: shards.Report,
) -> None:
    clip_samples = pieces.to_samples(params.clip_seconds, params.sample_rate)
    min_samples = pieces.to_samples(max(params.min_seconds, pieces.SHORTEST_SECONDS), params.sample_rate)
    try:
        if isinstance(recording, decode.DecodeError):
            raise recording
        probed = recording.probe()
        _check_form(probed, params)
        length = resampled_length(probed.num_frames, probed.sample_rate, params.sample_rate)
        seconds = length / params.sample_rate
        if probed.num_frames < pieces.SHORTEST_SECONDS * probed.sample_rate:
            raise decode.DecodeError("too short", f"{seconds:.3f} s, under {pieces.SHORTEST_SECONDS:g} s")
        first = length if params.first_seconds is None else pieces.to_samples(params.first_seconds, params.sample_rate)
        cuts = pieces.plan_cuts(min(length, first), clip_samples, params.tail, min_samples)
        if not cuts:
            why = f"clips last {params.clip_seconds:g} s, and tail is {params.tail}"
            raise decode.DecodeError("too short", f"{seconds:.3f} s gives no clip: {why}")
    except decode.DecodeError as error:
        report.reject(row["path"], error.reason, error.detail)
        return
    dropped = pieces.dropped_samples(length, cuts)
    if stretches:
        cuts = _without(stretches, cuts, row["path"], params.sample_rate, report)
    report.count("recordings")
    report.details.extend(f"{row['path']}: {remark}" for remark in recording.remarks)
    report.count(probed.backend)
    report.count("clips", len(cuts))
    report.count("samples", sum(cut.num_samples for cut in cuts))
    report.count("padded_clips", sum(cut.pad_samples > 0 for cut in cuts))
    report.count("dropped_remainders", int(dropped > 0))
    report.count("dropped_samples", dropped)
    stem = manifest.naming_stem(row["recording_id"])
    same = {name: row[name] for name in ("recording_id", "raw_path", "digest", "shard")}
    for cut in cuts:
        start = cut.start_sample / params.sample_rate
        name = manifest.clip_name(stem, row["start_time"] + start)
        place = {"source": row["path"], "start": start, "recording_samples": length}
        writer.write({"clip_id": name, **same, **place, **vars(cut)})


def _without(
    stretches: list[Stretch], cuts: list[pieces.Cut], path: str, sample_rate: int, report: shards.Report
) -> list[pieces.Cut]:
    """The cuts that do not overlap the stretches; the others are rejected."""
    kept = []
    for cut in cuts:
        start, end = cut.start_sample / sample_rate, (cut.start_sample + cut.num_samples) / sample_rate
        why = lists.reason_of(start, end, stretches)
        if why is None:
            kept.append(cut)
        else:
            report.reject(path, lists.REASON, f"{start:g} to {end:g} s: {why}")
            report.count("forgotten_clips")
    return kept


def _check_form(probed: decode.Recording, params: ClipPlan) -> None:
    check_rate(probed.sample_rate)
    if params.upsample:
        return
    if probed.sample_rate < params.sample_rate:
        raise decode.DecodeError("low rate", f"{probed.sample_rate} Hz, the clips have {params.sample_rate}, and upsample is false")
    if probed.channels < params.channels:
        raise decode.DecodeError("few channels", f"{probed.channels}, the clips have {params.channels}, and upsample is false")


class ClipNames:
    """Makes names of clips unique: of two recordings of a video with one name, the later is named after its recording's id."""

    def __init__(self) -> None:
        self.renamed = 0
        self._taken: set[str] = set()

    def settle(self, cuts: pa.Table) -> pa.Table:
        """Rows of manifest.SEGMENTS; names in use are replaced by longer ones."""
        settled = []
        for number, name in enumerate(cuts["clip_id"].to_pylist()):
            if name in self._taken:
                self.renamed += 1
                name = manifest.clip_name(cuts["recording_id"][number].as_py(), cuts["start"][number].as_py())
                if name in self._taken:
                    raise UserError(f"clip id {name!r} occurs twice; recording ids must be unique: run the scan again")
            self._taken.add(name)
            settled.append(manifest.check_clip_id(name))
        return cuts.set_column(0, manifest.SEGMENTS.field("clip_id"), pa.array(settled, pa.string()))


if __name__ == "__main__":
    stage.main(run, section="clips")
