"""All data stages on 50,000 clips: the full AudioCaps tables with synthetic sounds, at growing sizes.

For every stage: wall and CPU seconds, peak memory of a process, bytes on disk. `make bench-scale` runs it.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from bench import audiocaps_generator as generator
from bench import measure
from bench.checkout import Checkout, run
from bench.measure import GIGABYTE, ROOT, WORKERS, Target, timed
from flows import dvc

CAPTIONS = ROOT.parent / "shared" / "data" / "audiocaps"
CLIPS_PER_SHARD = 25  # as in conf/corpus/audiocaps.yaml


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--captions", type=Path, default=CAPTIONS, help="directory of AudioCaps' CSV files")
    parser.add_argument("--sizes", type=int, nargs="+", default=[5_000, 20_000, 50_000], help="numbers of clips")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of every recording and clip (default: 1)")
    args = parser.parse_args()
    clips = generator.read_clips(args.captions)
    sizes: dict[str, Any] = {}
    with measure.workplace(args.work) as place:
        for size in args.sizes:
            sizes[str(size)] = measure_size(clips[:size], args.seconds, Path(place) / str(size))
            write(sizes, args.seconds, args.results)  # after every size, because the largest takes long


def measure_size(clips: list[generator.AudioCapsClip], seconds: float, work: Path) -> dict[str, Any]:
    """Build the corpus of `clips` stage by stage, then time DVC's commit and `dvc repro` with nothing to do."""
    corpus = work / "corpus"
    generator.write_tables(clips, corpus)
    generating = timed(lambda: generator.generate(clips, corpus, seconds, WORKERS))
    checkout = Checkout.make(work / "checkout", settings(corpus, len(clips), seconds))
    stages: dict[str, Any] = {}
    for name, command in checkout.stages():
        usage = run(["sh", "-c", command], checkout.root)
        stages[name] = asdict(usage)
        print(
            f"{len(clips)} clips: {name} {usage.seconds:.1f} s, {usage.cpu_seconds:.1f} CPU s, {usage.peak_bytes / GIGABYTE:.2f} GB"
        )
    check = run([*soundmill(), "corpus", "check", str(corpus)], checkout.root)
    commit = checkout.dvc("commit", "--force")
    for name in stages:
        stages[name]["bytes"], stages[name]["files"] = on_disk(
            checkout.root, [out["path"] for out in dvc.entry_of(checkout.root, name).get("outs", [])]
        )
    return {
        "counts": {
            name: counts_of(checkout.root / f"data/metrics/{name}.json")
            for name in ("scan", "resample/default", "quality/default", "catalog/default")
        },
        "recordings_bytes": on_disk(work, ["corpus"])[0],
        "generating_seconds": generating,
        "stages": stages,
        "check": asdict(check),
        "dvc_commit": asdict(commit),
        "no_op": [asdict(checkout.dvc("repro")) for _ in range(3)],
        "no_op_without_scan": [asdict(checkout.dvc("repro", "segment@default", "--downstream")) for _ in range(3)],
    }


def settings(corpus: Path, count: int, seconds: float, clips_per_shard: int = CLIPS_PER_SHARD) -> list[str]:
    num_shards = max(1, count // clips_per_shard)
    return [
        "corpus=audiocaps",
        f"corpus.path='{corpus}'",
        f"corpus.shards={num_shards}",
        f"clips.default.clip_seconds={seconds}",
        "clips.default.min_seconds=0.1",
        "splits.duplicates=drop",  # falsely detected duplicates must not stop the benchmark; they are counted
    ]


def soundmill() -> list[str]:
    return [str(Path(dvc.executable()).parent / "soundmill")]


def counts_of(metrics: Path) -> dict[str, int]:
    """The integer metrics of a stage."""
    return {key: value for key, value in json.loads(metrics.read_text()).items() if isinstance(value, int)}


def on_disk(root: Path, names: list[str]) -> tuple[int, int]:
    """Bytes and number of the files below `names`."""
    files = [root / name for name in names if (root / name).is_file()]
    for name in names:
        files += [Path(folder) / file for folder, _, found in os.walk(root / name) for file in found]
    return sum(path.stat().st_size for path in files), len(files)


def write(sizes: dict[str, Any], seconds: float, results: Path) -> None:
    largest, small = sizes[max(sizes, key=int)], sizes[min(sizes, key=int)]
    naming = sum(largest["stages"][name]["seconds"] for name in ("splits", "catalog@default", "rename"))

    def peak(size: dict[str, Any]) -> float:
        return max(usage["peak_bytes"] for usage in size["stages"].values()) / GIGABYTE

    growth = max(usage["peak_bytes"] / small["stages"][name]["peak_bytes"] for name, usage in largest["stages"].items())
    measure.write(
        "scale",
        results,
        max(map(int, sizes)),
        {f"{name}, {size} clips": [usage["seconds"]] for size, one in sizes.items() for name, usage in one["stages"].items()},
        [
            Target("peak memory of any process", peak(largest), 1.5, at_least=False, unit=" GB"),
            # For each stage: the constant memory of torch in one stage would hide growth in another.
            *([Target("… of any stage, against the smallest corpus", growth, 1.1, at_least=False)] if len(sizes) > 1 else []),
            Target("splits + catalog + rename + corpus check", naming + largest["check"]["seconds"], 30, at_least=False, unit=" s"),
            Target(
                "dvc repro with nothing to do", median(one["seconds"] for one in largest["no_op"]), 6, at_least=False, unit=" s"
            ),
        ],
        clip_seconds=seconds,
        sizes=sizes,
        per_1000_more=per_thousand_more(small, largest, max(map(int, sizes)) - min(map(int, sizes))) if len(sizes) > 1 else None,
    )


def per_thousand_more(small: dict[str, Any], large: dict[str, Any], clips: int) -> dict[str, dict[str, float]]:
    """CPU seconds, bytes and peak memory per additional 1,000 clips in each stage, without fixed costs."""
    kinds = ("cpu_seconds", "bytes", "peak_bytes")
    return {
        name: {kind: (usage[kind] - small["stages"][name][kind]) / clips * 1000 for kind in kinds}
        for name, usage in large["stages"].items()
    }


if __name__ == "__main__":
    main()
