"""From 5 s Ogg at 44.1 kHz to 16 kHz mono FLAC: the stage `resample` against a shell loop of ffmpeg, lhotse and a bare loop."""

import functools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench import measure, recordings
from bench.measure import ROOT, WORKERS, Target, in_stage_environment, ratio, timed
from bench.project import Project
from soundmill import tracking
from soundmill.decoding.ffmpeg import ffmpeg_executable, version_of

CLIPS_PER_SHARD = 50  # about that; small, so that a slow process gets fewer shards
STANDARD_PATH = "/usr/local/bin:/usr/bin:/bin"  # where scripts find ffmpeg

# One ffmpeg after the other, as in a shell script. $1: ffmpeg, $2: recordings, $3: output.
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
        planned = plan(source, work / "planned", shards=max(1, args.clips // CLIPS_PER_SHARD))
        calls: list[float] = []  # seconds of lhotse's call in each round, without its imports

        def lhotse() -> float:
            seconds, call = peer("lhotse", source, work / "lhotse")
            calls.append(call)
            return seconds

        loops = with_each_ffmpeg("shell loop of", lambda ffmpeg: shell_loop(ffmpeg, source, work / "shell"))
        rounds = measure.in_turns(
            {
                "soundmill": lambda: resample_command(planned, work / "ours"),
                "soundmill, started processes": lambda: in_stage_environment(resample, planned, work / "ours"),
                **loops,
                "lhotse": lhotse,
                "lhotse, started processes": lambda: peer("lhotse", source, work / "lhotse", "--started")[1],
                "bare loop": lambda: peer("bare loop", source, work / "bare")[0],
                "bare loop, started processes": lambda: peer("bare loop", source, work / "bare", "--started")[1],
            },
            args.repetitions,
        )
        seconds = rounds.seconds
        ours, started = seconds["soundmill"], seconds["soundmill, started processes"]
        target, *others = ((name, ratio(seconds[name], ours)) for name in loops)
        others += [
            ("lhotse's call without its imports, ours with them", ratio(calls, ours)),
            ("lhotse, with started processes", ratio(seconds["lhotse, started processes"], started)),
        ]
        measure.write(
            "decode",
            args.results,
            args.clips,
            seconds,
            [
                Target(f"decode + resample + FLAC, against a {target[0]}", target[1], 5),
                Target("… against lhotse's resample → save_audios", ratio(seconds["lhotse"], ours), 1.2),
                Target("… against a bare loop of libsndfile, soxr, FLAC", ratio(seconds["bare loop"], ours), 0.7),
                Target("… with started processes", ratio(seconds["bare loop, started processes"], started), 0.7),
            ],
            recordings=what,
            workers=WORKERS,
            cpu_seconds=rounds.cpu_seconds,
            **about_ffmpegs(others),
        )


def with_each_ffmpeg(what: str, competitor: Callable[[Path], float]) -> dict[str, Callable[[], float]]:
    """A competitor for every ffmpeg, by name; targets refer to the first."""
    return {f"{what} {name}": functools.partial(competitor, executable) for name, executable in ffmpegs().items()}


def ffmpegs() -> dict[str, Path]:
    """The system's ffmpeg, if there is one, and the pinned one that Soundmill uses.

    A distribution's ffmpeg links a hundred libraries and takes three times as long to start as the static one.
    """
    found = shutil.which("ffmpeg", path=STANDARD_PATH)
    system = {"the system's ffmpeg": Path(found)} if found else {}
    pinned = ffmpeg_executable()
    return system if found and os.path.samefile(found, pinned) else {**system, "the pinned ffmpeg": pinned}


def about_ffmpegs(others: list[tuple[str, float]]) -> dict[str, object]:
    """Versions of ffmpeg and ratios without targets, for the results."""
    for name, value in others:
        print(f"against {name}: {value:.3g}×")
    return {"ffmpegs": {name: version_of(path) for name, path in ffmpegs().items()}, "other_ratios": dict(others)}


def plan(source: Path, root: Path, shards: int) -> Path:
    """Make a project in which `scan` and `segment` have planned the clips of `source`."""
    settings = ["corpus=folder", f"corpus.path='{source}'", f"corpus.shards={shards}", "clips.default.clip_seconds=5.0"]
    project = Project.make(root, settings)
    project.run("scan", "corpus")
    project.run("segment", "clips.default")
    return root


def resample_command(planned: Path, root: Path) -> float:
    """Seconds of the stage `resample` as `dvc repro` runs it, without tracking, in an empty project."""
    make_empty(root, planned)
    inputs = {"--corpus": planned / "data/corpus", "--segments": planned / "data/segments"}
    outputs = {"--clips": root / "data/clips", "--metrics": root / "data/resample.json"}
    command = ["sh", "stages/python.sh", "-m", "stages.resample", "--variant", "default", "--params", root / "params.yaml"]
    for option, path in {**inputs, **outputs}.items():
        command += [option, path]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", tracking.SWITCH: "off"}  # as many threads as the competitors
    return timed(lambda: subprocess.run(command, cwd=ROOT, env=environment, check=True))


def resample(planned: Path, root: Path) -> float:
    """Seconds of the stage's workers, from the start of the first shard to the end of the last."""
    make_empty(root, planned)
    return Project(root).run("resample", "clips.default", corpus=planned / "data/corpus", segments=planned / "data/segments")


def make_empty(root: Path, planned: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    shutil.copyfile(planned / "params.yaml", root / "params.yaml")


def shell_loop(ffmpeg: Path, source: Path, output: Path) -> float:
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    command = ["sh", "-c", SHELL_LOOP, "sh", str(ffmpeg), str(source), str(output)]
    return timed(lambda: subprocess.run(command, check=True))


def peer(name: str, source: Path, output: Path, *options: str) -> tuple[float, float]:
    """Seconds of one of bench/peers.py: of the whole command, and of the call alone."""
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "bench.peers", name, source, output, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as `in_fresh_process` does
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return time.perf_counter() - start, float(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
