"""`make bench`: every benchmark that takes minutes, each in its own process, and one picture of the results."""

import subprocess
import sys

from bench import measure, picture

BENCHMARKS = (
    "decode",
    "ffmpeg_formats",
    "log_mel",
    "loader",
    "duplicates",
    "bandwidth",
    "audio_dit",
    "tango_loop",
    "diffwave",
    "waveform",
    "rave",
    "embedding",
    "distances",
    "evaluation_memory",
    "linear",
)


def main() -> int:
    args = measure.parser(__doc__).parse_args()
    arguments = [f"--{name}={value}" for name, value in vars(args).items() if value is not None]
    failed = []
    for name in BENCHMARKS:
        print(f"— {name}", flush=True)
        (args.results / f"{name}.json").unlink(missing_ok=True)  # one that fails has no result in the picture
        if subprocess.run([sys.executable, "-m", f"bench.{name}", *arguments], cwd=measure.ROOT).returncode:
            failed.append(name)
    picture.draw(args.results, args.results / "bench.png")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
