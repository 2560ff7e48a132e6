"""Memory of a whole `soundmill evaluate`, by the number of generated sounds: the most that any of its processes holds.

Made sounds, all different, short but long enough for two embeddings; YAMNet with all metrics, the JSON and the page; nothing is in
the cache beforehand. A set of reference sounds that stays as it is, or with --reference 0 as many as generated ones, in pairs.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np

from bench import measure
from bench.checkout import Usage, run
from bench.measure import ROOT, WORKERS, Target
from bench.scale import soundmill
from soundmill.audio.decode import encode_flac
from soundmill.evaluation import scores, weights

RATE = 16_000
SECONDS = 1.5
WINDOWS = 2  # of YAMNet, in so long a sound
FOLDER = 1000  # sounds in one
MODELS = ROOT.parent / "shared" / "models"


def main() -> None:
    parser = measure.parser(__doc__, reference=1000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 5_000, 10_000], help="numbers of generated sounds")
    args = parser.parse_args()
    models = Path(os.environ.get(weights.VARIABLE) or MODELS)
    if not (models / weights.REGISTRY["yamnet"].file).is_file():
        print(f"evaluation_memory is left out: no {models / weights.REGISTRY['yamnet'].file}")
        return
    os.environ[weights.VARIABLE] = str(models.resolve())
    found: dict[int, Usage] = {}
    with measure.workplace(args.work) as place:
        for size in args.sizes:
            found[size] = measure_size(size, args.reference, Path(place) / str(size))
            print(f"{size} clips: {found[size].seconds:.0f} s, {found[size].peak_bytes / 1e6:.0f} MB", flush=True)
    large = max(found)
    limits = {min(found): 2.0}
    if pairwise := [size for size in found if size * WINDOWS >= scores.MOST_ROWS]:
        limits[min(pairwise)] = 1.25  # here the rows that pairwise metrics compare are as many as they may be
    targets = [
        Target(f"memory of {large} clips against {size}", found[large].peak_bytes / found[size].peak_bytes, limit, at_least=False)
        for size, limit in limits.items()
        if size < large
    ]
    measure.write(
        "evaluation_memory",
        args.results,
        large,
        {f"{size} clips": [usage.seconds] for size, usage in found.items()},
        targets,
        reference=args.reference,
        clip_seconds=SECONDS,
        sizes={str(size): asdict(usage) for size, usage in found.items()},
    )


def measure_size(size: int, reference: int, work: Path) -> Usage:
    make(size, 0, work / "generated")
    make(reference or size, 1, work / "reference")
    options = ["--embedder", "yamnet", "--workers", str(WORKERS), "--cache", str(work / "cache")]
    results = ["--json", str(work / "result.json"), "--report", str(work / "page")]
    unpaired = ["--unpaired"] if reference else []
    return run([*soundmill(), "evaluate", str(work / "generated"), str(work / "reference"), *options, *results, *unpaired], work)


def make(count: int, seed: int, target: Path) -> None:
    starts = range(0, count, FOLDER)
    with ProcessPoolExecutor(WORKERS) as pool:
        list(
            pool.map(make_folder, [seed] * len(starts), starts, [min(FOLDER, count - at) for at in starts], [target] * len(starts))
        )


def make_folder(seed: int, start: int, count: int, target: Path) -> None:
    """`count` sounds from number `start`: a tone that glides, in noise."""
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
