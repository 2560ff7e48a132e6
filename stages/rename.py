"""Write the clips of one variant as TANGO reads them: WAV files with AudioCaps names, and JSON lines of captions."""

import io
import os
import wave
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import soundfile
from pydantic import Field

from soundmill import hashing, manifest, shards, stage, terminal
from soundmill.errors import UserError
from soundmill.params import StageParams
from soundmill.stage import Context, Input, Output

ROWS_AT_ONCE = 4096


class RenameParams(StageParams):
    clips: str = Field(min_length=1, description="clip variant")
    dataset: str = Field(min_length=1)
    location: str = Field(min_length=1, description="path prefix of the file names in the JSON lines")
    naming: Literal["start", "split"]

    def name(self, clip_id: str, split: str) -> str:
        """The path of a clip's file: `{ytid}_{start}.wav`, or `{split}/Y{ytid}.wav`."""
        return f"{clip_id}.wav" if self.naming == "start" else f"{split}/{manifest.split_stem(clip_id)}.wav"


def run(params: RenameParams, ctx: Context, clips: Input, catalog: Input, audiocaps: Output) -> dict[str, Any]:
    """Write the WAV of every clip of the catalog below `audio`, and train, valid and test JSON lines of those with a caption."""
    table = shards.read_table(catalog, manifest.CATALOG, ["clip_id", "shard", "split", "captions"])
    paths = {path.name: path for path in shards.shard_paths(clips)}
    names = {row["clip_id"]: params.name(row["clip_id"], row["split"]) for row in table.select(["clip_id", "split"]).to_pylist()}
    if len(clip_of := {name: clip_id for clip_id, name in names.items()}) < len(names):
        other = next(clip_id for clip_id, name in names.items() if clip_of[name] != clip_id)
        raise UserError(
            f"params.yaml: rename.naming: {other} and {clip_of[names[other]]} would both be {names[other]}; choose `start`, or "
            f"a variant with one clip per recording (clips.{params.clips}.clip_seconds, first_seconds)"
        )
    jobs = []
    for shard, rows in shards.by_shard(table).items():
        ids, path = sorted(rows["clip_id"].to_pylist()), paths.get(shards.shard_name(shard))
        if path is None:
            raise UserError(f"{clips}: shard {shard} of {catalog} is missing; `dvc repro` rebuilds both")
        jobs.append(shards.Job(path.stem, (path, set(ids)), len(ids), hashing.digest(hashing.signature(path), ids)))
    _, named = ctx.make_shards(name_clips, jobs, "named")
    audio = audiocaps / "audio"
    for folder in {(audio / name).parent for name in names.values()}:
        folder.mkdir(parents=True)
    for job in jobs:
        with os.scandir(named / job.name) as files:
            for wav in files:
                # Linked, not moved: after a kill, the next run still finds every finished folder.
                os.link(wav.path, audio / names[wav.name.removesuffix(".wav")])
    captions = {split: _write_json(params, table, names, split, audiocaps / f"{split}.json") for split in manifest.SPLITS}
    empty = [split for split, count in captions.items() if not count]
    if 0 < len(empty) < len(captions):
        terminal.say(f"{ctx.name}: no clip of {' and '.join(empty)} has a caption, and TANGO's train.py needs one in each list")
    return {"clips": table.num_rows, "captions_by_split": captions}


def _write_json(params: RenameParams, table: pa.Table, names: dict[str, str], split: str, path: Path) -> int:
    chosen = table.filter(pc.equal(table["split"], split)).select(["clip_id", "captions"])
    return manifest.write_lines(
        path,
        (
            {"dataset": params.dataset, "location": f"{params.location.rstrip('/')}/{names[row['clip_id']]}", "captions": caption}
            for batch in chosen.to_batches(max_chunksize=ROWS_AT_ONCE)
            for row in batch.to_pylist()
            for caption in row["captions"]
        ),
    )


def name_clips(source: Path, ids: set[str], output: Path, previous: Path | None = None) -> shards.Report:
    """Write the clips `ids` of one shard as WAV files with the same samples, in the new folder `output`."""
    report = shards.Report()
    previous_keys = {key for (key,) in shards.read_report(previous).report.items} if previous else set()
    output.mkdir()
    new = []
    for number, row in enumerate(shards.read_rows(source, manifest.CLIPS, ["clip_id", "digest"])):
        name, key = f"{manifest.check_clip_id(row['clip_id'])}.wav", f"{row['clip_id']} {row['digest']}"
        if row["clip_id"] not in ids:
            continue
        if key in previous_keys:
            os.link(previous / name, output / name)
        else:
            new.append(number)
        report.items.append([key])
    if len(report.items) < len(ids):
        raise UserError(f"{source}: lacks {len(ids) - len(report.items)} clips of the catalog; `dvc repro` rebuilds both")
    for row in shards.read_rows(source, manifest.CLIPS, ["clip_id", "digest", "audio"], rows=new):
        samples, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="int16", always_2d=True)
        path = output / f"{row['clip_id']}.wav"
        with wave.open(str(path), "wb") as file:  # the same bytes as soundfile writes, seven times faster
            file.setparams((samples.shape[1], 2, rate, len(samples), "NONE", ""))
            file.writeframesraw(samples.astype("<i2", copy=False).tobytes())
    return report


if __name__ == "__main__":
    stage.main(run, section="rename")
