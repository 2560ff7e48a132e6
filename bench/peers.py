"""Competitors in a program without Soundmill's imports: `python -m bench.peers PEER RECORDINGS OUTPUT`.

Prints the seconds of the call, without the imports before it; with `--started` also without starting processes and their imports.
"""

import argparse
import importlib
import io
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

RATE = 16_000
WORKERS = 2  # of every competitor


def lhotse(source: Path, output: Path, started: bool) -> float:
    """lhotse, as in its documentation."""
    from lhotse import CutSet, Recording, RecordingSet

    found = RecordingSet.from_recordings(Recording.from_file(path) for path in sorted(source.iterdir()))
    cuts = CutSet.from_manifests(recordings=found).resample(RATE)
    return in_pool(
        lambda pool: cuts.save_audios(output, format="flac", num_jobs=WORKERS, executor=pool, progress_bar=False),
        ["lhotse", "soundfile", "torchaudio"] if started else [],
    )


def bare_loop(source: Path, output: Path, started: bool) -> float:
    """A minimal loop for the same work: libsndfile, soxr, a FLAC file for each, no checks."""
    output.mkdir()
    paths = sorted(source.iterdir())
    parts = [(paths[index::WORKERS], output) for index in range(WORKERS)]
    return in_pool(lambda pool: list(pool.map(convert, *zip(*parts, strict=True))), ["soundfile", "soxr"] if started else [])


def convert(paths: list[Path], output: Path) -> None:
    import soundfile
    import soxr

    for path in paths:
        wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
        mono = wave[:, 0] if wave.shape[1] == 1 else wave.mean(axis=1)
        flac = io.BytesIO()
        soundfile.write(flac, soxr.resample(mono, rate, RATE, "HQ"), RATE, format="FLAC", subtype="PCM_16")
        (output / f"{path.stem}.flac").write_bytes(flac.getvalue())


def in_pool(work: Callable[[Executor], Any], imported: list[str]) -> float:
    """Seconds of `work` with spawned processes, including their start; without it if they first import the modules `imported`."""
    start = time.perf_counter()
    with ProcessPoolExecutor(WORKERS, get_context("spawn")) as pool:
        if imported:
            for future in [pool.submit(import_and_wait, imported) for _ in range(WORKERS)]:
                future.result()
            start = time.perf_counter()
            work(pool)
            return time.perf_counter() - start
        work(pool)
    return time.perf_counter() - start


def import_and_wait(modules: list[str]) -> None:
    for name in modules:
        importlib.import_module(name)
    time.sleep(0.5)  # so that every process gets one


PEERS = {"lhotse": lhotse, "bare loop": bare_loop}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("recordings", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--started", action="store_true")
    args = parser.parse_args()
    print(PEERS[args.peer](args.recordings, args.output, args.started))


if __name__ == "__main__":
    main()
