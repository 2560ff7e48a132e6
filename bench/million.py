"""The stages that hold a whole corpus in one process, on a million recordings: `scan`, `splits` and `catalog`.

They read names, captions and tables, never sound, so the recordings are files of a few bytes under AudioCaps' names, with a caption
each, and the tables of clips are written by the benchmark. `python -m bench.million`
"""

import csv
import hashlib
from base64 import urlsafe_b64encode
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from bench import measure
from bench.checkout import Checkout, Usage, run
from bench.measure import GIGABYTE, Target, in_fresh_process
from soundmill import manifest, shards

CLIPS_PER_SHARD = 1000
FILES_PER_FOLDER = 1000
STAGES = ("scan", "splits", "catalog")


def main() -> None:
    args = measure.parser(__doc__, recordings=1_000_000).parse_args()
    usages: dict[str, Usage] = {}
    with measure.workplace(args.work) as name:
        corpus = Path(name) / "corpus"
        write_corpus(corpus, args.recordings)
        settings = ["corpus=audiocaps", f"corpus.path='{corpus}'", f"corpus.shards={-(-args.recordings // CLIPS_PER_SHARD)}"]
        checkout = Checkout.make(Path(name) / "checkout", settings)
        for stage, command in [(stage.partition("@")[0], command) for stage, command in checkout.stages()]:
            if stage in STAGES:
                if stage == "splits":
                    in_fresh_process(write_clips, checkout.root / "data")
                usages[stage] = run(["sh", "-c", command], checkout.root)
                wall, cpu, peak = usages[stage].seconds, usages[stage].cpu_seconds, usages[stage].peak_bytes / GIGABYTE
                print(f"{args.recordings} recordings: {stage} {wall:.0f} s, {cpu:.0f} CPU s, {peak:.2f} GB", flush=True)
    measure.write(
        "million",
        args.results,
        args.recordings,
        {stage: [usage.seconds] for stage, usage in usages.items()},
        [
            Target("scan + splits + catalog", sum(usage.seconds for usage in usages.values()), 600, at_least=False, unit=" s"),
            Target(
                "… in CPU seconds of all processes",
                sum(usage.cpu_seconds for usage in usages.values()),
                600,
                at_least=False,
                unit=" s",
            ),
            Target(
                "peak memory of a process",
                max(usage.peak_bytes for usage in usages.values()) / GIGABYTE,
                4,
                at_least=False,
                unit=" GB",
            ),
        ],
        stages={stage: asdict(usage) for stage, usage in usages.items()},
    )


def write_corpus(directory: Path, count: int) -> None:
    """`count` files that are distinct, and train.csv with a caption of each."""
    directory.mkdir(parents=True)
    with (directory / "train.csv").open("w", encoding="utf-8", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["audiocap_id", "youtube_id", "start_time", "caption"])
        for number in range(count):
            video, start = urlsafe_b64encode(hashlib.sha256(b"%d" % number).digest())[:11].decode(), number % 300
            folder = directory / f"{number // FILES_PER_FOLDER:04d}"
            if number % FILES_PER_FOLDER == 0:
                folder.mkdir()
            (folder / f"{video}_{start}.wav").write_bytes(b"RIFF%d" % number)
            writer.writerow([number, video, start, f"a dog barks for the {number}th time while rain falls on a roof"])


def write_clips(data: Path) -> None:
    """The tables that the stages between write, for one clip of every recording: clips without sound, verdicts, no duplicates."""
    recordings = shards.read_table(data / "corpus/recordings.parquet", manifest.RECORDINGS)
    quality = {"seconds": 5.0, "peak": 0.5, "level_db": -20.0, "silence_ratio": 0.0, "clipping_ratio": 0.0, "dc_offset": 0.0}
    quality |= {"bandwidth_hz": 8000.0, "channel_correlation": None}
    with shards.ShardWriter(data / "quality/default.parquet", manifest.VERDICTS) as verdicts:
        for shard, rows in shards.by_shard(recordings).items():
            clips = [clip_of(row, quality) for row in rows.to_pylist()]
            shards.write_rows(clips, data / "clips/default" / shards.shard_name(shard), manifest.CLIPS)
            kept = [{name: clip[name] for name in ("clip_id", "source", "start", "quality")} for clip in clips]
            verdicts.write_table(pa.Table.from_pylist(kept, manifest.VERDICTS))
    shards.write_rows([], data / "duplicates.parquet", manifest.DUPLICATES)
    shards.write_rows([], data / "zero_shot/default.parquet", manifest.ZERO_SHOT)


def clip_of(recording: dict[str, Any], quality: dict[str, Any]) -> dict[str, Any]:
    clip_id = manifest.clip_name(manifest.naming_stem(recording["recording_id"]), recording["start_time"])
    return {
        "clip_id": clip_id,
        "audio": {"bytes": b"-", "path": f"{clip_id}.flac"},
        "source": recording["path"],
        "start": 0.0,
        "digest": recording["digest"],
        "recording_id": recording["recording_id"],
        "num_samples": 80_000,
        "quality": quality,
    }


if __name__ == "__main__":
    main()
