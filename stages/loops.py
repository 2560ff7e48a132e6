"""Make a corpus of loops: recordings with an estimated tempo, cut to whole bars, all bars stretched to one length.

The result is a corpus that `segment` and `resample` cut into bars.
"""

import math
from collections import Counter
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from soundmill import hashing, manifest, shards, stage, terminal
from soundmill.audio import figures, flac, pieces, tempo
from soundmill.audio.resample import resample
from soundmill.corpora import forgotten as lists
from soundmill.corpora.clip_plan import check_rate
from soundmill.corpora.sources import Sources, embedded_path
from soundmill.decoding import decode, ffmpeg
from soundmill.decoding.stretch import Stretcher, stretch
from soundmill.errors import UserError
from soundmill.params import Decibels, SampleRate, Seconds, StageParams
from soundmill.stage import Context, Input, Output, Shown

NAMED = 20  # recordings listed in the metrics
SHOWN = 12  # in the picture
SHOWN_SECONDS = 8.0  # of each
OCTAVES = (0.5, 1.0, 2.0)  # ratios of a name's tempo to the estimate that count as equal
CLOSE = 0.02  # relative tolerance of tempi


class LoopsParams(StageParams):
    sample_rate: SampleRate
    channels: Literal[1, 2]
    bar_seconds: float = Field(ge=0.1, description="length of every bar after stretching")
    lowest_bpm: float = Field(ge=30, le=200, description="tempi are estimated between this and twice this, unless a name gives one")
    longest_stretch: float = Field(
        gt=1, le=4, description="recordings whose bars need a larger stretch factor, or a smaller inverse, are rejected"
    )
    stretcher: Stretcher
    silence_dbfs: Decibels = Field(le=0)
    max_seconds: Seconds = Field(gt=0)


def run(params: LoopsParams, ctx: Context, corpus: Input, loops: Output, picture: Shown, forgotten: Input = None) -> dict[str, Any]:
    """Write `audio/shard-*.parquet`, a row per loop; other recordings, and those with a `forgotten` stretch, are rejected."""
    recordings = _remembered(shards.read_table(corpus / "recordings.parquet", manifest.RECORDINGS), forgotten, ctx)
    if not recordings.num_rows:
        raise UserError(f"{corpus}: no recording is left for loops: all are in forgotten.yaml")
    sources = Sources.of(corpus, ctx.root, ctx.home)
    jobs = [
        shards.Job(shards.shard_name(shard), (rows, sources, params), rows.num_rows, shards.table_digest(rows.select(KEY)))
        for shard, rows in shards.by_shard(recordings.sort_by("raw_path")).items()
    ]
    report = ctx.map_shards(loops_shard, jobs, loops / "audio", unit="recording")
    for name in report.details:  # of shards without a loop
        (loops / "audio" / name).unlink()
    if not report.counts.get("loops"):
        first = min(report.quarantine, key=lambda row: row["path"])
        raise UserError(
            f"none of the {recordings.num_rows} recordings is a loop: {report.main_reasons}; "
            f"first: {first['path']}: {first['reason']} ({first['detail']}). A tempo in "
            "the name (`pad 120bpm.wav`) helps if the pulse is weak; check also `lowest_bpm` and `longest_stretch` of these loops"
        )
    found = _write_tables(corpus, loops, recordings)
    named = [row for row in found if row["named_bpm"] is not None]
    wrong = [row for row in named if all(abs(row["named_bpm"] / row["bpm"] / octave - 1) > CLOSE for octave in OCTAVES)]
    for row in wrong[:NAMED]:
        terminal.say(f"{ctx.name}: {row['path']}: its name says {row['named_bpm']:g} bpm, but it has {row['bpm']:.4g}")
    ctx.show(f"the loops ({picture.name})", partial(_draw, loops, found, picture))
    return {
        "recordings": recordings.num_rows,
        "loops": len(found),
        "bars": sum(row["bars"] for row in found),
        "seconds": params.bar_seconds * sum(row["bars"] for row in found),
        "found_by": dict(sorted(Counter(row["found_by"] for row in found).items())),
        "misnamed": len(wrong),
        "misnamed_first": [row["path"] for row in wrong[:NAMED]],
        "ffmpeg": ffmpeg.ffmpeg_version(),  # stretching is reproducible only with one version
        "quarantined_for": report.quarantined_for,
    }


def _remembered(recordings: pa.Table, forgotten: Path | None, ctx: Context) -> pa.Table:
    """The recordings without a forgotten stretch."""
    stretches = lists.read(forgotten).stretches(recordings.select(["recording_id", "digest"]).to_pylist())
    gone = pc.is_in(recordings["recording_id"], pa.array(stretches, pa.string()))
    for row in recordings.filter(gone).to_pylist():
        ctx.reject(row["path"], lists.REASON, "; ".join(reason for _, _, reason in stretches[row["recording_id"]]))
    return recordings.filter(pc.invert(gone))


KEY = ["raw_path", "recording_id", "path", "digest"]  # columns that a loop depends on


def loops_shard(
    recordings: pa.Table, sources: Sources, params: LoopsParams, output: Path, previous: Path | None = None
) -> shards.Report:
    with shards.ItemWriter(output, manifest.LOOPS, previous) as writer:
        rows = [(hashing.digest(*(row[name] for name in KEY)), row) for row in recordings.to_pylist()]
        wanted = [(row["raw_path"], row["digest"]) for key, row in rows if key not in writer]
        places = sources.open_unchanged(wanted, output.parent)
        with closing(places), closing(decode.open_all(places, params.max_seconds)) as opened:
            for _, row, report in writer.new(rows):
                try:
                    writer.write(_loop_of(row, next(opened), params))
                    report.count("loops")
                except (decode.DecodeError, tempo.NoLoopError) as error:
                    report.reject(row["path"], error.reason, error.detail)
    if writer.num_rows == 0:
        writer.report.details.append(output.name)
    return writer.report


def _loop_of(row: dict[str, Any], recording: decode.Recording | decode.DecodeError, params: LoopsParams) -> dict[str, Any]:
    """The row of manifest.LOOPS of a recording; DecodeError or NoLoopError if it is not a loop."""
    if isinstance(recording, decode.DecodeError):
        raise recording
    rate = recording.sample_rate
    check_rate(rate)
    blocks = [decode.mix_down(block)[:, None] if params.channels == 1 else decode.to_stereo(block) for block in recording.blocks]
    wave = np.concatenate([np.zeros((0, params.channels), np.float32), *blocks]).T
    peak = float(np.abs(wave).max(initial=0.0))
    if peak == 0 or 20 * math.log10(peak) <= params.silence_dbfs:
        raise tempo.NoLoopError("silent", f"never above {params.silence_dbfs:g} dBFS")
    found = tempo.find(resample(wave.mean(0) / np.float32(peak), rate, tempo.RATE), Path(row["path"]).name, params.lowest_bpm)
    ratio = params.bar_seconds / found.bar_seconds
    if not 1 / params.longest_stretch <= ratio <= params.longest_stretch:
        detail = f"a bar at {found.bpm:.4g} bpm would be stretched by {ratio:.3g} (tempo by {found.found_by})"
        raise tempo.NoLoopError("stretch", detail)
    first = pieces.to_samples(found.start, rate)
    cut = wave[:, first : first + pieces.to_samples(found.bars * found.bar_seconds, rate)]
    fitted = resample(cut, rate, params.sample_rate)
    num_samples = found.bars * pieces.to_samples(params.bar_seconds, params.sample_rate)
    stretched = stretch(fitted, params.sample_rate, num_samples, params.stretcher)
    data = flac.encode_flac(stretched / np.float32(max(1.0, np.abs(stretched).max())), params.sample_rate)
    return {
        "recording_id": row["recording_id"],
        "audio": {"bytes": data, "path": f"{row['recording_id']}.flac"},
        "path": row["path"],
        "bpm": round(found.bpm, 4),
        "found_by": found.found_by,
        "named_bpm": found.named,
        "start": round(found.start, 4),
        "bars": found.bars,
        "stretch": round(ratio, 6),
        "confidence": round(found.confidence, 4),
        "digest": hashing.bytes_digest(data),
    }


def _write_tables(corpus: Path, loops: Path, recordings: pa.Table) -> list[dict[str, Any]]:
    """Write the loops as recordings with the captions of whole recordings; returns their estimates."""
    of_id = {row["recording_id"]: row for row in recordings.to_pylist()}
    rows, found = [], []
    for path in shards.shard_paths(loops / "audio"):
        for number, loop in enumerate(shards.read_rows(path, manifest.LOOPS, manifest.LOOPS.names)):
            size = len(loop.pop("audio")["bytes"])
            place = {"raw_path": embedded_path(path.name.encode(), number), "size": size, "digest": loop["digest"]}
            rows.append({**of_id[loop["recording_id"]], **place})
            found.append(loop)
    shards.write_rows(rows, loops / "recordings.parquet", manifest.RECORDINGS)
    captions = shards.read_table(corpus / "captions.parquet", manifest.CAPTIONS)
    ours = pc.is_in(captions["recording_id"], pa.array([row["recording_id"] for row in rows], pa.string()))
    whole = captions.filter(pc.and_(ours, pc.is_null(captions["start_time"])))  # windows refer to other times than a loop's
    shards.write_rows(whole.to_pylist(), loops / "captions.parquet", manifest.CAPTIONS)
    return sorted(found, key=lambda row: row["path"])


def _draw(loops: Path, found: list[dict[str, Any]], picture: Path) -> None:
    chosen = {row["path"] for row in sorted(found, key=lambda row: hashing.digest(row["path"]))[:SHOWN]}
    shown = []
    for row in shards.rows_below(loops / "audio", manifest.LOOPS, manifest.LOOPS.names):
        if row["path"] in chosen:
            data = row["audio"]["bytes"]
            wave, rate = flac.decode_mono(data), flac.flac_rate(data)
            title = f"{Path(row['path']).name}: {row['bpm']:.4g} by {row['found_by']}"
            shown.append((title, wave, rate, len(wave) / rate / row["bars"] / tempo.BEATS))
    figures.save_png(figures.draw_beats(shown, SHOWN_SECONDS, tempo.BEATS), picture)


if __name__ == "__main__":
    stage.main(run, section="loops")
