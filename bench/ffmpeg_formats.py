"""Formats that only ffmpeg reads (m4a, webm, mp4): the stage `resample` against one ffmpeg process per file, two at a time."""

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench import measure, recordings
from bench.decode import about_ffmpegs, plan, resample, resample_command, with_each_ffmpeg
from bench.measure import WORKERS, Target, in_fresh_process, in_stage_environment, ratio, timed
from bench.peers import RATE
from soundmill.decoding.ffmpeg import ffmpeg_executable

SHARDS = 16  # default of a corpus
CODECS = {"m4a": ["-c:a", "aac", "-b:a", "128k"], "webm": ["-c:a", "libopus", "-b:a", "96k"], "mp4": ["-c:a", "aac", "-b:a", "96k"]}


def main() -> None:
    args = measure.parser(__doc__, clips=240, repetitions=3).parse_args()
    with measure.workplace(args.work) as place:
        work = Path(place)
        found, what = recordings.find(args.audio, work)
        source = work / "recordings"
        encode(found, args.clips, source)
        planned = work / "planned"
        in_fresh_process(plan, source, planned, SHARDS)
        singles = with_each_ffmpeg("one process per file of", lambda ffmpeg: one_by_one(ffmpeg, source, work / "one"))
        ours = {
            "soundmill, resample": lambda: resample_command(planned, work / "ours"),
            "soundmill, resample, started processes": lambda: in_stage_environment(resample, planned, work / "ours"),
        }
        rounds = measure.in_turns({**ours, **singles}, args.repetitions)
        seconds = rounds.seconds
        ours_seconds, started = seconds["soundmill, resample"], seconds["soundmill, resample, started processes"]
        target, *others = ((name, ratio(seconds[name], ours_seconds)) for name in singles)
        # `segment` decodes these formats to count their samples.
        seconds["soundmill, scan and segment"] = [timed(lambda: rerun_plan(source, planned)) for _ in range(args.repetitions)]
        measure.write(
            "ffmpeg_formats",
            args.results,
            args.clips,
            seconds,
            [
                Target(f"m4a, webm, mp4: against {target[0]}", target[1], 3),
                Target("… with started processes", ratio(seconds[target[0]], started), 3),
            ],
            recordings=what,
            workers=WORKERS,
            cpu_seconds=rounds.cpu_seconds,
            **about_ffmpegs(others),
        )


def rerun_plan(source: Path, planned: Path) -> None:
    shutil.rmtree(planned)
    in_fresh_process(plan, source, planned, SHARDS)


def encode(found: list[Path], count: int, directory: Path) -> None:
    """Write `count` recordings, encoded in the three formats in turn."""
    directory.mkdir()
    formats = sorted(CODECS)

    def one(index: int) -> None:
        extension = formats[index % len(formats)]
        command = [ffmpeg_executable(), "-nostdin", "-loglevel", "error", "-i", f"file:{found[index % len(found)]}", "-vn"]
        subprocess.run([*command, *CODECS[extension], f"file:{directory}/recording-{index:05d}.{extension}"], check=True)

    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(one, range(count)))


def one_by_one(ffmpeg: Path, source: Path, output: Path) -> float:
    """Seconds of one process per file, two at a time, with the same rate and format as output."""
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()

    def one(path: Path) -> None:
        command = [ffmpeg, "-nostdin", "-loglevel", "error", "-threads", "1", "-i", f"file:{path}"]
        subprocess.run([*command, "-ar", str(RATE), "-ac", "1", f"file:{output}/{path.stem}.flac"], check=True)

    with ThreadPoolExecutor(WORKERS) as pool:
        return timed(lambda: list(pool.map(one, sorted(source.iterdir()))))


if __name__ == "__main__":
    main()
