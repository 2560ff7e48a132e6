"""Fréchet distances of embeddings against scipy's matrix square root, which other tools use; and memory by number of clips.

FD of 886 clips in 2048 dimensions (the AudioCaps test set by PANNs) and FAD of their patches in 128 (by VGGish), each in a process
of one thread, in CPU seconds. Memory is the peak of a process that scores a streamed set with an interval.
"""

import time
from collections.abc import Callable, Iterator

import numpy as np

from bench import measure
from bench.measure import Target, in_fresh_process, ratio
from soundmill.metrics import scores
from soundmill.metrics.frechet import Gathered

EQUAL = 1e-6  # largest relative difference of the two results


def main() -> None:
    parser = measure.parser(__doc__, clips=886, size=2048, patches=8860, patch_size=128, few=1000, many=50_000, memory_size=512)
    parser.add_argument("--repetitions", type=int, default=3, help="default: 3")
    args = parser.parse_args()
    values: dict[str, float] = {}
    seconds: dict[str, list[float]] = {}
    sizes = {"FD": (args.clips, args.size, 1), "FAD": (args.patches, args.patch_size, 10)}
    for name, how in sizes.items():

        def run(way: str, name: str = name, how: tuple[int, int, int] = how) -> float:
            cpu, values[f"{name}, {way}"] = in_fresh_process(timed, way, *how)
            return cpu

        ways = {f"{name}, {way}": (lambda way=way, run=run: run(way)) for way in ("soundmill", "scipy's sqrtm")}
        seconds |= measure.in_turns(ways, args.repetitions).seconds
    peaks = {str(clips): in_fresh_process(peak, clips, args.memory_size) for clips in (args.few, args.many)}
    differences = {
        name: abs(values[f"{name}, soundmill"] - values[f"{name}, scipy's sqrtm"]) / values[f"{name}, soundmill"] for name in sizes
    }
    measure.write(
        "distances",
        args.results,
        1,
        seconds,
        [
            Target(f"FD of {args.clips} clips, {args.size}-d", ratio(seconds["FD, scipy's sqrtm"], seconds["FD, soundmill"]), 30),
            Target("… relative difference of the values", differences["FD"], EQUAL, at_least=False, unit=""),
            Target(
                f"FAD of {args.patches} patches, {args.patch_size}-d",
                ratio(seconds["FAD, scipy's sqrtm"], seconds["FAD, soundmill"]),
                1,
            ),
            Target("… relative difference of the values", differences["FAD"], EQUAL, at_least=False, unit=""),
            Target(
                f"memory of {args.many} clips against {args.few}, {args.memory_size}-d",
                peaks[str(args.many)] / peaks[str(args.few)],
                1.25,
                at_least=False,
            ),
        ],
        values=values,
        peak_megabytes=peaks,
    )


def sets(rows: int, size: int) -> list[np.ndarray]:
    """Two sets similar to embeddings: after a ReLU, with unequal variances, float32."""
    random = np.random.default_rng(0)
    spread = 1 / np.sqrt(1 + np.arange(size) / 20)
    mix = random.standard_normal((size, size)) / np.sqrt(size)
    both = [np.maximum((random.standard_normal((rows, size)) * spread) @ mix + shift, 0) for shift in (0.1, 0.15)]
    return [part.astype(np.float32) for part in both]


def frechet_of_rows(first: np.ndarray, second: np.ndarray) -> float:
    """Fréchet distance of two sets of rows [n, d] (see `Gathered.distance`)."""
    sets = [Gathered.of(rows, np.ones(len(rows), int)) for rows in (first, second)]
    return sets[0].distance(sets[1])


def timed(way: str, rows: int, size: int, repeats: int) -> tuple[float, float]:
    """CPU seconds of the distance, and its value."""
    first, second = sets(rows, size)
    distance: Callable[[np.ndarray, np.ndarray], float] = {"soundmill": frechet_of_rows, "scipy's sqrtm": by_square_root}[way]
    distance(first[:, :8], second[:, :8])  # imports happen in the first call
    start = time.process_time()
    for _ in range(repeats):
        value = distance(first, second)
    return (time.process_time() - start) / repeats, value


def by_square_root(first: np.ndarray, second: np.ndarray) -> float:
    """Fréchet distance as in frechet-audio-distance, audioldm_eval and others: numpy's covariances, scipy's matrix square root."""
    from scipy.linalg import sqrtm

    means = [rows.mean(axis=0, dtype=np.float64) for rows in (first, second)]
    covariances = [np.cov(rows, rowvar=False) for rows in (first, second)]
    root = sqrtm(covariances[0] @ covariances[1])
    shift = means[0] - means[1]
    return float(shift @ shift + sum(np.trace(part) for part in covariances) - 2 * np.trace(root).real)


def peak(clips: int, size: int) -> float:
    """Peak memory in megabytes of this process, scoring two streamed sets of this many clips with an interval."""

    def side(seed: int) -> scores.EmbeddingSet:
        ids = tuple(f"clip{number:06d}" for number in range(clips))

        def frames() -> Iterator[tuple[str, np.ndarray]]:
            random = np.random.default_rng(seed)
            for clip_id in ids:
                yield clip_id, random.standard_normal((1, size), dtype=np.float32)

        return scores.EmbeddingSet(ids, frames)

    scores.compute("fad", side(0), side(1), seed=0, replicates=100)
    return measure.peak_megabytes()


if __name__ == "__main__":
    main()
