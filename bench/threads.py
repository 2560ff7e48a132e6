"""Training steps per second by number of threads, next to processes that each keep a core busy (`python -m bench.threads`)."""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from bench import measure

BUSY = "while True: pass"


def steps_per_second(threads: int, seconds: float) -> float:
    """Steps per second of the laptop-scale mel DDPM on noise, in this process."""
    from soundmill import params
    from soundmill.models import registry
    from soundmill.training.loop import rehearse
    from soundmill.training.params import HardwareParams

    document = params.compose(measure.ROOT / "conf", ["model=ddpm_mel"])
    rehearsal = registry.family("ddpm_mel").rehearse(document, 0)
    hardware = HardwareParams(accelerator="cpu", devices=1, precision="32", threads=threads)
    warm = rehearse(rehearsal.module, rehearsal.batch, hardware, 3)
    rehearsal.module.step = 0
    taken = rehearse(rehearsal.module, rehearsal.batch, hardware, max(1, round(seconds / warm[-1])))
    return len(taken) / sum(taken)


@contextmanager
def busy_processes(others: int) -> Iterator[None]:
    running = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(others)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    args = parser.parse_args()
    print("| threads | no other process | one | two |\n|---|---|---|---|")
    for threads in (1, os.cpu_count() or 1):
        rates = []
        for others in range(3):
            with busy_processes(others):
                rates.append(measure.in_fresh_process(steps_per_second, threads, args.seconds))
        print(f"| {threads} | " + " | ".join(f"{one:.2g}" for one in rates) + " |", flush=True)


if __name__ == "__main__":
    main()
