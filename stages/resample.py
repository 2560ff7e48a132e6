"""Decode every recording once, mix it down, resample, cut it as planned and store the clips as FLAC in Parquet shards."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from soundmill import manifest, shards, stage
from soundmill.audio import flac, resample
from soundmill.audio.quality import RecordingMeter, measure_clip
from soundmill.corpora.sources import Sources
from soundmill.decoding import decode
from soundmill.errors import UserError
from soundmill.params import Decibels, SampleRate, Seconds, StageParams

MAX_PEAK = 2.0**32  # integers of 32 bits that were never scaled are sound; beyond there is none
SPOOL_BYTES = 64 << 20  # a decoded recording beyond this waits on disk, not in memory


class ResampleParams(StageParams):
    sample_rate: SampleRate
    tolerance_seconds: Seconds  # decoded length may differ from the planned one by this much
    silence_dbfs: Decibels = Field(le=0)  # a recording that never rises above this is quarantined as silent
    max_seconds: Seconds = Field(gt=0)  # decoding stops there


def run(
    params: ResampleParams, ctx: stage.Context, corpus: stage.Input, segments: stage.Input, clips: stage.Output
) -> dict[str, Any]:
    """Write `clips/shard-*.parquet`; a recording that fails anywhere goes to quarantine whole, with its reason."""
    cuts = shards.read_table(segments, manifest.SEGMENTS)
    _check_rate(cuts, params, segments)
    sources = Sources.of(corpus, ctx.root, ctx.home)
    jobs = [
        shards.Job(shards.shard_name(shard), (rows, sources, params), rows.num_rows, shards.table_digest(rows))
        for shard, rows in shards.by_shard(cuts).items()
    ]
    report = ctx.map_shards(resample_shard, jobs, clips)
    for name in report.details:  # of shards that no clip survived in
        (clips / name).unlink()
    reasons = Counter(row["reason"] for row in report.quarantine)
    if not report.counts.get("clips"):
        found = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common(3))
        raise UserError(f"no clip survived decoding: {found}. Look at the recordings, or at `resample.silence_dbfs`")
    return {
        "clips": report.counts["clips"],
        "recordings": report.counts["recordings"],
        "seconds": report.counts["samples"] / params.sample_rate,
        "attenuated_recordings": report.counts.get("attenuated_recordings", 0),
        "length_adjusted_recordings": report.counts.get("length_adjusted_recordings", 0),
        "lost_clips": cuts.num_rows - report.counts["clips"],
        "quarantined_for": {reason.replace(" ", "_"): count for reason, count in sorted(reasons.items())},
    }


def _check_rate(cuts: pa.Table, params: ResampleParams, segments: Path) -> None:
    """The cuts are in samples of the rate that `segment` planned for; another rate here would cut elsewhere."""
    starts = cuts["start"].to_numpy() * params.sample_rate
    if not np.allclose(starts, cuts["start_sample"].to_numpy(), rtol=0, atol=0.5):
        raise UserError(
            f"params.yaml: resample.sample_rate is {params.sample_rate}, but {segments} was cut for another rate; "
            "set it to segment.sample_rate"
        )


def resample_shard(
    cuts: pa.Table, sources: Sources, params: ResampleParams, output: Path, previous: Path | None = None
) -> shards.Report:
    """Write the clips of one shard's recordings, in the order of the plan."""
    with shards.ItemWriter(output, manifest.CLIPS, previous) as writer:
        planned = [list(recording) for _, recording in groupby(cuts.to_pylist(), key=lambda cut: cut["raw_path"])]
        keyed = [(recording, _key(recording)) for recording in planned]
        places = (
            sources.open_unchanged(recording[0]["raw_path"], recording[0]["digest"], recording[0]["source"], output.parent)
            for recording, key in keyed
            if key not in writer
        )
        # `segment` probed the files whose digests these places look for.
        with closing(decode.open_all(places, params.max_seconds, sums_checked=True)) as opened:
            for recording, key in keyed:
                if not writer.copy(key):
                    with writer.item(key) as report:
                        _write_recording(recording, next(opened), params, output.parent, writer, report)
    if writer.num_rows == 0:
        writer.report.details.append(output.name)
    return writer.report


def _key(cuts: list[dict[str, Any]]) -> str:
    first = cuts[0]
    ranges = [[cut["clip_id"], cut["start"], cut["start_sample"], cut["num_samples"], cut["pad_samples"]] for cut in cuts]
    return shards.digest(
        first["raw_path"], first["source"], first["digest"], first["recording_id"], first["recording_samples"], ranges
    )


def _write_recording(
    cuts: list[dict[str, Any]],
    recording: decode.Recording | decode.DecodeError,
    params: ResampleParams,
    scratch: Path,
    writer: shards.ItemWriter,
    report: shards.Report,
) -> None:
    first = cuts[0]
    # Kept whole before anything is written: its level and its end are known only then, and half a recording must not stay.
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
            sound = _read_spool(spool, cut["start_sample"], cut["num_samples"], num_samples)
            wave = np.zeros(cut["num_samples"] + cut["pad_samples"], np.float32)
            np.multiply(sound, gain, out=wave[: len(sound)])
            data = flac.encode_flac(wave, params.sample_rate)
            writer.write(
                {
                    "clip_id": cut["clip_id"],
                    "audio": {"bytes": data, "path": f"{cut['clip_id']}.flac"},
                    "source": cut["source"],
                    "start": cut["start"],
                    # With the samples: what is made of a clip must be made again when another decoder reads the file otherwise.
                    "digest": shards.digest(cut["digest"], cut["start_sample"], cut["num_samples"], flac.flac_checksum(data)),
                    "recording_id": cut["recording_id"],
                    "num_samples": len(wave),
                    "quality": measure_clip(wave[: len(sound)], params.sample_rate, meter, cut["start"], float(gain)),
                }
            )
            report.count("samples", len(wave))
    report.count("clips", len(cuts))
    report.count("recordings")
    report.count("attenuated_recordings", int(peak > 1.0))
    report.count("length_adjusted_recordings", int(num_samples != first["recording_samples"]))


def _decode(recording: decode.Recording, meter: RecordingMeter, params: ResampleParams, spool: IO[bytes]) -> tuple[int, float]:
    """Write the recording to `spool` as mono float32 at the project's rate; returns (number of samples, peak)."""

    def mono() -> Iterator[np.ndarray]:
        for block in recording.blocks:
            meter.add(block)
            yield decode.mix_down(block)

    num_samples, peak = 0, 0.0
    for block in resample.resample_blocks(mono(), recording.sample_rate, params.sample_rate):
        if len(block):
            highest = max(float(block.max()), -float(block.min()))
            if not highest <= MAX_PEAK:
                raise decode.DecodeError("nan", f"samples up to {highest:.3g}, where full scale is 1")
            peak = max(peak, highest)
            num_samples += len(block)
            spool.write(block)
    return num_samples, peak


def _check_sound(num_samples: int, peak: float, meter: RecordingMeter, planned: int, params: ResampleParams) -> None:
    if abs(num_samples - planned) > params.tolerance_seconds * params.sample_rate:
        reason = "truncated" if num_samples < planned else "corrupt"
        found, wanted = num_samples / params.sample_rate, planned / params.sample_rate
        raise decode.DecodeError(reason, f"{found:.3f} s decoded, {wanted:.3f} s planned")
    if peak == 0.0 or 20 * math.log10(peak) <= params.silence_dbfs:
        correlation = meter.channel_correlation()  # None where no channel has a sound either
        why = f"; its channels, mixed to one, cancel each other: channel_correlation {correlation:g}" if correlation else ""
        raise decode.DecodeError("silent", f"never above {params.silence_dbfs:g} dB of full scale{why}")


def _read_spool(spool: IO[bytes], start: int, count: int, num_samples: int) -> np.ndarray:
    """Samples [start, start + count) as far as the recording goes; it may end within the tolerance before its plan."""
    spool.seek(4 * min(start, num_samples))
    return np.frombuffer(spool.read(4 * count), np.float32)


if __name__ == "__main__":
    stage.main(run, section="resample")
