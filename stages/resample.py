"""Decode every recording once, mix it down, resample, cut it as planned and store the clips as FLAC in Parquet shards."""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import IO, Any

import numpy as np
from pydantic import Field

from soundmill import manifest, shards, stage
from soundmill.audio import decode, resample
from soundmill.errors import UserError
from soundmill.params import Decibels, SampleRate, Seconds, StageParams

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
    rows = shards.read_table(segments, manifest.SEGMENTS).to_pylist()
    _check_rate(rows, params, segments)
    root = os.fsencode(ctx.corpus_root(corpus))
    by_shard = [(shard, list(cuts)) for shard, cuts in groupby(rows, key=lambda row: row["shard"])]
    jobs = [shards.Job(shards.shard_name(shard), (cuts, root, params), weight=len(cuts)) for shard, cuts in by_shard]
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
        "lost_clips": len(rows) - report.counts["clips"],
        "quarantined_for": {reason.replace(" ", "_"): count for reason, count in sorted(reasons.items())},
    }


def _check_rate(rows: list[dict[str, Any]], params: ResampleParams, segments: Path) -> None:
    """The cuts are in samples of the rate that `segment` planned for; another rate here would cut elsewhere."""
    for row in rows:
        if not math.isclose(row["start"] * params.sample_rate, row["start_sample"], abs_tol=0.5):
            raise UserError(
                f"params.yaml: resample.sample_rate is {params.sample_rate}, but {segments} was cut for another rate; "
                "set it to segment.sample_rate"
            )


def resample_shard(cuts: list[dict[str, Any]], root: bytes, params: ResampleParams, output: Path) -> shards.Report:
    """Write the clips of one shard's recordings, in the order of the plan."""
    report = shards.Report()
    with shards.ShardWriter(output, manifest.CLIPS) as writer:
        for _, recording in groupby(cuts, key=lambda cut: cut["raw_path"]):
            _write_recording(list(recording), root, params, writer, report)
        report.count("clips", writer.num_rows)
    if writer.num_rows == 0:
        report.details.append(output.name)
    return report


def _write_recording(
    cuts: list[dict[str, Any]], root: bytes, params: ResampleParams, writer: shards.ShardWriter, report: shards.Report
) -> None:
    first = cuts[0]
    path = os.path.join(root, first["raw_path"])
    _check_unchanged(path, first)
    # Kept whole before anything is written: its level and its end are known only then, and half a recording must not stay.
    with tempfile.SpooledTemporaryFile(SPOOL_BYTES, dir=writer.path.parent) as spool:
        try:
            num_samples, peak = _decode(path, params, spool)
            _check_sound(num_samples, peak, first["recording_samples"], params)
        except decode.DecodeError as error:
            report.reject(first["source"], error.reason, error.detail)
            return
        gain = np.float32(1.0 / peak) if peak > 1.0 else np.float32(1.0)
        for cut in cuts:
            wave = _read_spool(spool, cut["start_sample"], cut["num_samples"], num_samples) * gain
            wave = np.pad(wave, (0, cut["num_samples"] + cut["pad_samples"] - len(wave)))
            writer.write(
                {
                    "clip_id": cut["clip_id"],
                    "audio": {"bytes": decode.encode_flac(wave, params.sample_rate), "path": f"{cut['clip_id']}.flac"},
                    "source": cut["source"],
                    "start": cut["start"],
                    "digest": shards.digest(
                        cut["digest"], cut["start_sample"], cut["num_samples"], cut["pad_samples"], params.sample_rate
                    ),
                    "recording_id": cut["recording_id"],
                    "num_samples": len(wave),
                    "quality": None,
                }
            )
            report.count("samples", len(wave))
    report.count("recordings")
    report.count("attenuated_recordings", int(peak > 1.0))
    report.count("length_adjusted_recordings", int(num_samples != first["recording_samples"]))


def _check_unchanged(path: bytes, cut: dict[str, Any]) -> None:
    try:
        with decode.open_regular(path) as file:
            found = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except decode.DecodeError as error:
        found = str(error)
    if found != cut["digest"]:
        raise UserError(f"{cut['source']}: the file has changed since the corpus was scanned; run it again (`dvc repro`)")


def _decode(path: bytes, params: ResampleParams, spool: IO[bytes]) -> tuple[int, float]:
    """Write the recording to `spool` as mono float32 at the project's rate; returns (number of samples, peak)."""
    rate, blocks = decode.decode_blocks(path, params.max_seconds)
    num_samples, peak = 0, 0.0
    for block in resample.resample_blocks(blocks, rate, params.sample_rate):
        if len(block):
            highest = float(np.abs(block).max())
            if not math.isfinite(highest):
                raise decode.DecodeError("nan", "samples too large for any number")
            peak = max(peak, highest)
            num_samples += len(block)
            spool.write(block.astype("<f4").tobytes())
    return num_samples, peak


def _check_sound(num_samples: int, peak: float, planned: int, params: ResampleParams) -> None:
    if abs(num_samples - planned) > params.tolerance_seconds * params.sample_rate:
        reason = "truncated" if num_samples < planned else "corrupt"
        found, wanted = num_samples / params.sample_rate, planned / params.sample_rate
        raise decode.DecodeError(reason, f"{found:.3f} s decoded, {wanted:.3f} s planned")
    if peak == 0.0 or 20 * math.log10(peak) <= params.silence_dbfs:
        raise decode.DecodeError("silent", f"never above {params.silence_dbfs:g} dB of full scale")


def _read_spool(spool: IO[bytes], start: int, count: int, num_samples: int) -> np.ndarray:
    """Samples [start, start + count) as far as the recording goes; it may end within the tolerance before its plan."""
    spool.seek(4 * min(start, num_samples))
    return np.frombuffer(spool.read(4 * count), dtype="<f4").astype(np.float32)


if __name__ == "__main__":
    stage.main(run, section="resample")
