"""From 5 s ogg at 44.1 kHz to 16 kHz mono FLAC: the resample stage, against one ffmpeg per file, lhotse and a bare loop."""

from __future__ import annotations

import importlib
import io
import shutil
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from bench import measure, recordings
from bench.measure import WORKERS, Target, in_fresh_process, ratio, timed
from bench.project import Project
from soundmill.audio.decode import ffmpeg_executable

RATE = 16_000
SHARDS = 4

# One ffmpeg after the other, as a shell script does it. $1: ffmpeg, $2: recordings, $3: output.
SHELL_LOOP = """
for path in "$2"/*; do
    name=$(basename "$path")
    "$1" -nostdin -loglevel error -y -i "file:$path" -ar 16000 -ac 1 "file:$3/${name%.*}.wav" || exit 1
done
"""


def main() -> None:
    args = measure.parser(__doc__, clips=800, repetitions=3).parse_args()
    with measure.workplace(args.work) as place:
        work = Path(place)
        found, what = recordings.find(args.audio, work)
        source = work / "recordings"
        recordings.repeat(found, args.clips, source)
        planned = plan(source, work / "planned")
        mapping: list[float] = []  # of each round, without starting the processes

        def ours() -> float:
            seconds, working = in_fresh_process(resample, planned, work / "ours")
            mapping.append(working)
            return seconds

        rounds = measure.in_turns(
            {
                "soundmill": ours,
                "shell loop of ffmpeg": lambda: shell_loop(source, work / "shell"),
                "lhotse": lambda: in_fresh_process(lhotse, source, work / "lhotse", False),
                "lhotse, started processes": lambda: in_fresh_process(lhotse, source, work / "lhotse", True),
                "bare loop": lambda: in_fresh_process(bare_loop, source, work / "bare", False),
                "bare loop, started processes": lambda: in_fresh_process(bare_loop, source, work / "bare", True),
            },
            args.repetitions,
        )
        seconds = rounds.seconds
        seconds["soundmill, started processes"] = mapping
        mine, started = seconds["soundmill"], mapping
        measure.write(
            "decode",
            args.results,
            args.clips,
            seconds,
            [
                Target(
                    "decode + resample + FLAC, against the shell loop of ffmpeg", ratio(seconds["shell loop of ffmpeg"], mine), 10
                ),
                Target("… against lhotse's resample → save_audios", ratio(seconds["lhotse"], mine), 1.8),
                Target("… with started processes", ratio(seconds["lhotse, started processes"], started), 1.8),
                Target("… against a bare loop of libsndfile, soxr, FLAC", ratio(seconds["bare loop"], mine), 0.85),
                Target("… with started processes", ratio(seconds["bare loop, started processes"], started), 0.85),
            ],
            recordings=what,
            workers=WORKERS,
            cpu_seconds=rounds.cpu_seconds,
        )


def plan(source: Path, root: Path) -> Path:
    """A project in which `scan` and `segment` have planned the clips of `source`: what `resample` starts from."""
    settings = ["corpus=folder", f"corpus.path='{source}'", f"corpus.shards={SHARDS}", "segment.clip_seconds=5.0"]
    project = Project.make(root, settings)
    project.run("scan", "corpus")
    project.run("segment")
    return root


def resample(planned: Path, root: Path) -> tuple[float, float]:
    """Seconds of the resample stage in a project of its own (nothing to reuse), and those without starting processes."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    shutil.copyfile(planned / "params.yaml", root / "params.yaml")
    project = Project(root)
    importlib.import_module("stages.resample")
    start = time.perf_counter()
    working = project.run("resample", imported=("scipy.fft",), corpus=planned / "data/corpus", segments=planned / "data/segments")
    return time.perf_counter() - start, working


def shell_loop(source: Path, output: Path) -> float:
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    command = ["sh", "-c", SHELL_LOOP, "sh", str(ffmpeg_executable()), str(source), str(output)]
    return timed(lambda: subprocess.run(command, check=True))


def lhotse(source: Path, output: Path, started: bool) -> float:
    """lhotse's way, as its documentation has it; `started`: with processes that have lhotse imported already."""
    from lhotse import CutSet, Recording, RecordingSet

    shutil.rmtree(output, ignore_errors=True)
    found = RecordingSet.from_recordings(Recording.from_file(path) for path in sorted(source.iterdir()))
    cuts = CutSet.from_manifests(recordings=found).resample(RATE)
    return in_pool(
        lambda pool: cuts.save_audios(output, format="flac", num_jobs=WORKERS, executor=pool, progress_bar=False),
        ["lhotse", "soundfile", "torchaudio"] if started else [],
    )


def bare_loop(source: Path, output: Path, started: bool) -> float:
    """The least that does the same work: whole files through libsndfile and soxr, FLAC to a file each, no checks."""
    shutil.rmtree(output, ignore_errors=True)
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
    """Seconds of `work` in spawned processes, starting and ending them included; not, where they are to have modules `imported`."""
    start = time.perf_counter()
    with ProcessPoolExecutor(WORKERS, get_context("spawn")) as pool:
        if not imported:
            work(pool)
        else:
            for future in [pool.submit(import_and_wait, imported) for _ in range(WORKERS)]:
                future.result()
            return timed(work, pool)
    return time.perf_counter() - start


def import_and_wait(modules: list[str]) -> None:
    for name in modules:
        importlib.import_module(name)
    time.sleep(0.5)  # so that every process gets one


if __name__ == "__main__":
    main()
