"""Decode every recording once, convert channels and rate, cut it as planned, and store the clips as FLAC."""

import math
import tempfile
from collections.abc import Iterator
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from soundmill import hashing, manifest, shards, stage
from soundmill.audio import flac, levels, resample
from soundmill.audio.quality import RecordingMeter, measure_clip
from soundmill.corpora.clip_plan import ClipPlan
from soundmill.corpora.sources import Sources
from soundmill.decoding import decode
from soundmill.errors import UserError
from soundmill.stage import Context, Input, Output

MAX_PEAK = 2.0**32  # the range of unscaled 32-bit integers
SPOOL_BYTES = 64 << 20  # larger decoded recordings are spooled to disk
COUNTED = (
    "upsampled_recordings",  # lower rate than the clips
    "doubled_recordings",  # one channel, clips have two
    "reduced_recordings",  # more channels than the clips
    "attenuated_recordings",  # above full scale
    "length_adjusted_recordings",
    "silent_clips",  # no gain was applied
    "limited_clips",  # the gain was limited to avoid clipping
)


def run(params: ClipPlan, ctx: Context, corpus: Input, segments: Input, clips: Output) -> dict[str, Any]:
    """Write `clips/shard-*.parquet`; a recording that fails anywhere goes to quarantine as a whole."""
    cuts = shards.read_table(segments, manifest.SEGMENTS)
    sources = Sources.of(corpus, ctx.root, ctx.home)
    jobs = [
        shards.Job(shards.shard_name(shard), (rows, sources, params), rows.num_rows, shards.table_digest(rows))
        for shard, rows in shards.by_shard(cuts).items()
    ]
    report = ctx.map_shards(resample_shard, jobs, clips)
    for name in report.details:  # shards without clips
        (clips / name).unlink()
    if not report.counts.get("clips"):
        raise UserError(f"no clip survived decoding: {report.main_reasons}. Check the recordings, or `silence_dbfs` of these clips")
    return {
        "clips": report.counts["clips"],
        "recordings": report.counts["recordings"],
        "seconds": report.counts["samples"] / params.sample_rate,
        **{name: report.counts.get(name, 0) for name in COUNTED},
        "lost_clips": cuts.num_rows - report.counts["clips"],
        "quarantined_for": report.quarantined_for,
    }


def resample_shard(cuts: pa.Table, sources: Sources, params: ClipPlan, output: Path, previous: Path | None = None) -> shards.Report:
    """Write the clips of one shard's recordings, in the order of the plan."""
    with shards.ItemWriter(output, manifest.CLIPS, previous) as writer:
        planned = [list(group) for _, group in groupby(cuts.to_pylist(), key=lambda cut: cut["raw_path"])]
        keyed = [(_key(cuts_of_one), cuts_of_one) for cuts_of_one in planned]
        wanted = [(first["raw_path"], first["digest"]) for key, (first, *_) in keyed if key not in writer]
        places = sources.open_unchanged(wanted, output.parent)
        # `segment` has already probed files with these digests.
        with closing(places), closing(decode.open_all(places, params.max_seconds, sums_checked=True)) as opened:
            for _, cuts_of_one, report in writer.new(keyed):
                _write_recording(cuts_of_one, next(opened), params, output.parent, writer, report)
    if writer.num_rows == 0:
        writer.report.details.append(output.name)
    return writer.report


def _key(cuts: list[dict[str, Any]]) -> str:
    first = cuts[0]
    ranges = [[cut["clip_id"], cut["start"], cut["start_sample"], cut["num_samples"], cut["pad_samples"]] for cut in cuts]
    return hashing.digest(
        first["raw_path"], first["source"], first["digest"], first["recording_id"], first["recording_samples"], ranges
    )


def _write_recording(
    cuts: list[dict[str, Any]],
    recording: decode.Recording | decode.DecodeError,
    params: ClipPlan,
    scratch: Path,
    writer: shards.ItemWriter,
    report: shards.Report,
) -> None:
    first = cuts[0]
    # Spooled first: its peak and length are known only at the end, and no part of a faulty recording must be written.
    with tempfile.SpooledTemporaryFile(SPOOL_BYTES, dir=scratch) as spool:
        try:
            if isinstance(recording, decode.DecodeError):
                raise recording
            meter = RecordingMeter(recording.sample_rate)
            num_samples, peak = _decode(recording, meter, params, spool)
            _check_sound(num_samples, peak, meter, first["recording_samples"], params)
        except decode.DecodeError as error:
            report.reject(first["source"], error.reason, error.detail)
            return
        gain = np.float32(1.0 / peak) if peak > 1.0 else np.float32(1.0)
        for cut in cuts:
            spool.seek(4 * params.channels * min(cut["start_sample"], num_samples))
            # Fewer than planned at the end of a recording that is shorter, within tolerance.
            read = spool.read(4 * params.channels * cut["num_samples"])
            sound = np.frombuffer(read, np.float32).reshape(-1, params.channels).T * gain
            quality = measure_clip(sound, params.sample_rate, meter, cut["start"], float(gain))
            if params.loudness != "none":
                sound, outcome = levels.level(sound, params.sample_rate, params.loudness)
                report.count("silent_clips", int(outcome == "silent"))
                report.count("limited_clips", int(outcome == "limited"))
            wave = np.zeros((params.channels, cut["num_samples"] + cut["pad_samples"]), np.float32)
            wave[:, : sound.shape[1]] = sound
            data = flac.encode_flac(wave, params.sample_rate)
            # Includes the samples: another decoder may decode the same file differently.
            digest = hashing.digest(cut["digest"], cut["start_sample"], cut["num_samples"], flac.flac_checksum(data))
            same = {name: cut[name] for name in ("clip_id", "source", "start", "recording_id")}
            audio = {"bytes": data, "path": f"{cut['clip_id']}.flac"}
            writer.write({**same, "audio": audio, "digest": digest, "num_samples": wave.shape[1], "quality": quality})
            report.count("samples", wave.shape[1])
    report.count("clips", len(cuts))
    report.count("recordings")
    report.count("attenuated_recordings", int(peak > 1.0))
    report.count("length_adjusted_recordings", int(num_samples != first["recording_samples"]))
    report.count("upsampled_recordings", int(recording.sample_rate < params.sample_rate))
    report.count("doubled_recordings", int(meter.channels < params.channels))
    report.count("reduced_recordings", int(meter.channels > params.channels))


def _decode(recording: decode.Recording, meter: RecordingMeter, params: ClipPlan, spool: IO[bytes]) -> tuple[int, float]:
    """Write the recording to `spool` as float32 [T, C] with the channels and rate of its clips; returns (T, peak)."""

    def fitted() -> Iterator[np.ndarray]:
        for block in recording.blocks:
            meter.add(block)
            yield decode.mix_down(block) if params.channels == 1 else decode.to_stereo(block)

    num_samples, peak = 0, 0.0
    for block in resample.resample_blocks(fitted(), recording.sample_rate, params.sample_rate, params.channels):
        if len(block):
            highest = max(float(block.max()), -float(block.min()))
            if not highest <= MAX_PEAK:
                raise decode.DecodeError("nan", f"samples up to {highest:.3g}, where full scale is 1")
            peak = max(peak, highest)
            num_samples += len(block)
            spool.write(np.ascontiguousarray(block))
    return num_samples, peak


def _check_sound(num_samples: int, peak: float, meter: RecordingMeter, planned: int, params: ClipPlan) -> None:
    if abs(num_samples - planned) > params.tolerance_seconds * params.sample_rate:
        reason = "truncated" if num_samples < planned else "corrupt"
        decoded, expected = num_samples / params.sample_rate, planned / params.sample_rate
        raise decode.DecodeError(reason, f"{decoded:.3f} s decoded, {expected:.3f} s planned")
    if peak == 0.0 or 20 * math.log10(peak) <= params.silence_dbfs:
        # None if all channels are silent.
        correlation = meter.channel_correlation() if params.channels == 1 else None
        why = f"; its channels cancel when mixed to one: channel_correlation {correlation:g}" if correlation else ""
        if 1 < params.channels < meter.channels:
            why = f"; only the first {params.channels} of its {meter.channels} channels are used"
        raise decode.DecodeError("silent", f"never above {params.silence_dbfs:g} dBFS{why}")


if __name__ == "__main__":
    stage.main(run, section="clips")
