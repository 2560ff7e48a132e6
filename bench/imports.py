"""CPU seconds of importing each stage, compared with torch alone (`python -m bench.imports`)."""

import os
import subprocess
import sys

from bench import measure

REPETITIONS = 2


def seconds(module: str) -> float:
    """CPU seconds of a single-threaded Python that only imports the module: the minimum of a few runs."""
    return min(_once(module) for _ in range(REPETITIONS))


def _once(module: str) -> float:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", f"import {module}"], cwd=measure.ROOT, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"import {module} failed")
    return usage.ru_utime + usage.ru_stime


def main() -> int:
    measure.parser(__doc__).parse_args()
    torch = seconds("torch")
    print(f"| import | CPU seconds | beyond torch |\n|---|---|---|\n| `torch` | {torch:.1f} | |")
    for path in sorted((measure.ROOT / "stages").glob("[a-z]*.py")):
        whole = seconds(f"stages.{path.stem}")
        print(f"| `stages.{path.stem}` | {whole:.1f} | {max(whole - torch, 0):.1f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
