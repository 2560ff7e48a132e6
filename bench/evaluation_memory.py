"""Peak memory of any process of `soundmill evaluate`, by the number of generated sounds.

The sounds are synthetic, all different, and long enough for two embeddings; YAMNet, JSON and page. First with the metrics that
stream, from an empty cache; then with all metrics, some of which compare embeddings pairwise. The reference set has a constant
size, or with `--reference 0` one sound for each generated one.
"""

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np

from bench import measure
from bench.checkout import Usage, run
from bench.measure import WORKERS, Target
from bench.scale import soundmill
from soundmill import params, pretrained
from soundmill.audio.flac import encode_flac
from soundmill.evaluation import embedders
from soundmill.metrics import scores

RATE = 16_000
SECONDS = 1.5
WINDOWS = 2  # of YAMNet, in each sound
FOLDER = 1000  # sounds per folder


def main() -> None:
    parser = measure.parser(__doc__, reference=1000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 5_000, 10_000], help="numbers of generated sounds")
    args = parser.parse_args()
    yamnet = measure.weights_directory() / embedders.published()["yamnet"].file
    if not yamnet.is_file():
        print(f"evaluation_memory is skipped: missing {yamnet}")
        return
    os.environ[pretrained.VARIABLE] = str(yamnet.parent.resolve())
    streamed: dict[int, Usage] = {}
    whole: dict[int, Usage] = {}
    with measure.workplace(args.work) as place:
        for size in args.sizes:
            work = Path(place) / str(size)
            make(size, 0, work / "generated")
            make(args.reference or size, 1, work / "reference")
            streamed[size] = evaluate(work, ["--protocol", str(streaming(work))], args.reference == 0)
            whole[size] = evaluate(work, ["--embedder", "yamnet"], args.reference == 0)
            for what, usage in (("metrics that stream", streamed[size]), ("all metrics", whole[size])):
                print(f"{size} clips, {what}: {usage.seconds:.0f} s, {usage.peak_bytes / 1e6:.0f} MB", flush=True)
    large, pairwise = max(whole), [size for size in whole if size * WINDOWS >= scores.MAX_ROWS]
    compared = [("metrics that stream", streamed, min(streamed), 1.25), ("all metrics", whole, min(whole), 2.0)]
    if pairwise:  # sizes at which the pairwise metrics use their maximum number of rows
        compared.append(("all metrics", whole, min(pairwise), 1.25))
    targets = [
        Target(f"{what}: memory of {large} clips against {size}", of[large].peak_bytes / of[size].peak_bytes, limit, at_least=False)
        for what, of, size, limit in compared
        if size < large
    ]
    measure.write(
        "evaluation_memory",
        args.results,
        large,
        {f"{size} clips": [usage.seconds] for size, usage in streamed.items()},
        targets,
        reference=args.reference,
        clip_seconds=SECONDS,
        sizes={str(size): {"streamed": asdict(streamed[size]), "whole": asdict(whole[size])} for size in whole},
    )


def evaluate(work: Path, protocol: list[str], paired: bool) -> Usage:
    options = ["--workers", str(WORKERS), "--cache", str(work / "cache"), *([] if paired else ["--unpaired"])]
    results = ["--json", str(work / "result.json"), "--report", str(work / "page")]
    return run([*soundmill(), "evaluate", str(work / "generated"), str(work / "reference"), *protocol, *options, *results], work)


def streaming(work: Path) -> Path:
    """Write a protocol of YAMNet's unpaired metrics without pairwise comparisons, whose memory is bounded."""
    names = [name for name, metric in scores.METRICS.items() if not metric.pairwise and not metric.paired]
    document = {
        "name": "streaming",
        "version": 1,
        "label": "streaming-1",
        "description": "Metrics that stream.",
        "sample_rate": RATE,
        "resampler": "soxr HQ",
        "embedders": {"yamnet": {}},
        "scores": [{"metric": name, "embedder": "yamnet"} for name in names],
        "replicates": 1000,
        "seed": 0,
        "parity": ["None: only for this benchmark."],
    }
    params.write_yaml(document, work / "streaming.yaml")
    return work / "streaming.yaml"


def make(count: int, seed: int, target: Path) -> None:
    starts = range(0, count, FOLDER)
    with ProcessPoolExecutor(WORKERS) as pool:
        list(
            pool.map(make_folder, [seed] * len(starts), starts, [min(FOLDER, count - at) for at in starts], [target] * len(starts))
        )


def make_folder(seed: int, start: int, count: int, target: Path) -> None:
    """Write `count` sounds from number `start`: a gliding tone in noise."""
    folder = target / f"{start // FOLDER:03d}"
    folder.mkdir(parents=True)
    time = np.arange(int(SECONDS * RATE)) / RATE
    for number in range(start, start + count):
        random = np.random.default_rng([seed, number])
        tone = np.sin(2 * np.pi * random.uniform(80, 3000) * time * (1 + random.uniform(0, 0.5) * time))
        wave = 0.3 * tone + random.uniform(0.001, 0.1) * random.standard_normal(len(time))
        (folder / f"clip-{number:06d}.flac").write_bytes(encode_flac(wave, RATE))


if __name__ == "__main__":
    main()
