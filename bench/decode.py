"""From 5 s ogg at 44.1 kHz to 16 kHz mono FLAC: the resample stage, against a shell loop of ffmpeg, lhotse and a bare loop."""

from __future__ import annotations

import functools
import importlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench import measure, recordings
from bench.measure import ROOT, WORKERS, Target, in_fresh_process, ratio, timed
from bench.project import Project
from soundmill.audio.ffmpeg import ffmpeg_executable, version_of

SHARDS = 4
STANDARD_PATH = "/usr/local/bin:/usr/bin:/bin"  # where a script finds its ffmpeg

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

        loops = with_each_ffmpeg("shell loop of", lambda ffmpeg: shell_loop(ffmpeg, source, work / "shell"))
        rounds = measure.in_turns(
            {
                "soundmill": ours,
                **loops,
                "lhotse": lambda: peer("lhotse", source, work / "lhotse"),
                "lhotse, started processes": lambda: peer("lhotse", source, work / "lhotse", "--started"),
                "bare loop": lambda: peer("bare loop", source, work / "bare"),
                "bare loop, started processes": lambda: peer("bare loop", source, work / "bare", "--started"),
            },
            args.repetitions,
        )
        seconds = rounds.seconds
        seconds["soundmill, started processes"] = mapping
        mine, started = seconds["soundmill"], mapping
        judged, *others = ((name, ratio(seconds[name], mine)) for name in loops)
        measure.write(
            "decode",
            args.results,
            args.clips,
            seconds,
            [
                Target(f"decode + resample + FLAC, against a {judged[0]}", judged[1], 10),
                Target("… against lhotse's resample → save_audios", ratio(seconds["lhotse"], mine), 1.8),
                Target("… with started processes", ratio(seconds["lhotse, started processes"], started), 1.8),
                Target("… against a bare loop of libsndfile, soxr, FLAC", ratio(seconds["bare loop"], mine), 0.85),
                Target("… with started processes", ratio(seconds["bare loop, started processes"], started), 0.85),
            ],
            recordings=what,
            workers=WORKERS,
            cpu_seconds=rounds.cpu_seconds,
            **about_ffmpegs(others),
        )


def with_each_ffmpeg(what: str, competitor: Callable[[Path], float]) -> dict[str, Callable[[], float]]:
    """A competitor for every ffmpeg, by name; the targets are held against the first."""
    return {f"{what} {name}": functools.partial(competitor, executable) for name, executable in ffmpegs().items()}


def ffmpegs() -> dict[str, Path]:
    """The system's ffmpeg, if it has one, which is what others' scripts find; and the pinned one that we decode with.

    They differ: a distribution's links a hundred libraries and takes three times as long to start as a static one.
    """
    found = shutil.which("ffmpeg", path=STANDARD_PATH)
    system = {"the system's ffmpeg": Path(found)} if found else {}
    pinned = ffmpeg_executable()
    return system if found and os.path.samefile(found, pinned) else {**system, "the pinned ffmpeg": pinned}


def about_ffmpegs(others: list[tuple[str, float]]) -> dict[str, object]:
    """What a result has to say of them: versions, and the ratios that no target was set for."""
    for name, value in others:
        print(f"against {name}: {value:.3g}×")
    return {"ffmpegs": {name: version_of(path) for name, path in ffmpegs().items()}, "other_ratios": dict(others)}


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
    working = project.run("resample", corpus=planned / "data/corpus", segments=planned / "data/segments")
    return time.perf_counter() - start, working


def shell_loop(ffmpeg: Path, source: Path, output: Path) -> float:
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    command = ["sh", "-c", SHELL_LOOP, "sh", str(ffmpeg), str(source), str(output)]
    return timed(lambda: subprocess.run(command, check=True))


def peer(name: str, source: Path, output: Path, *options: str) -> float:
    """Seconds that one of bench/peers.py took."""
    command = [sys.executable, "-m", "bench.peers", name, source, output, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as `in_fresh_process` does
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
