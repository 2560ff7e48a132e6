"""Steps of a training: one process against two that share the batch (`python -m bench.scale_out training`)."""

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import measure
from bench.measure import Target, in_fresh_process, ratio

WARM_UP_STEPS = 3


def training(args: argparse.Namespace) -> None:
    cpu_seconds: dict[str, list[float]] = {}  # per step, of the busier process
    with measure.workplace(args.work) as place:

        def run(processes: int) -> float:
            number = len(cpu_seconds.setdefault(str(processes), []))
            work = Path(place) / f"{processes}-{number}"
            seconds, cpu = in_fresh_process(train, processes, args.steps + WARM_UP_STEPS, args.batch, work)
            cpu_seconds[str(processes)].append(cpu)
            return seconds

        rounds = measure.in_turns({"1": lambda: run(1), "2": lambda: run(2)}, args.repetitions)
    measure.write(
        "scale_out_training",
        args.results,
        1,
        rounds.seconds,
        [
            Target("training steps, two processes against one", ratio(rounds.seconds["1"], rounds.seconds["2"]), 1.6),
            # What the first figure comes to if each process has a core to itself, also on a busy machine.
            Target("… by CPU seconds of the busier process", ratio(cpu_seconds["1"], cpu_seconds["2"]), 1.6),
        ],
        batch=args.batch,
        cpu_seconds_per_step=cpu_seconds,
    )


def train(processes: int, steps: int, batch: int, work: Path) -> tuple[float, float]:
    """Wall seconds per step after the first few, and CPU seconds of the busier process."""
    from soundmill.tracking import StageRun
    from soundmill.training import launcher
    from soundmill.training.params import HardwareParams

    work.mkdir(parents=True)
    argv = [str(processes), str(steps), str(batch), str(work)]
    hardware = HardwareParams(accelerator="cpu", devices=processes, precision="32", threads=1)
    launcher.launch(hardware, "bench", __name__, argv, StageRun()) if processes > 1 else main(argv)
    times = [np.array([line.split() for line in path.read_text().splitlines()], float) for path in work.glob("times-*")]
    assert [len(one) for one in times] == [steps] * processes
    wall, cpu = np.max([(one[-1] - one[WARM_UP_STEPS]) / (steps - 1 - WARM_UP_STEPS) for one in times], axis=0)
    return float(wall), float(cpu)


def main(argv: list[str]) -> None:
    """Train in this process, alone or among those that a launcher started."""
    from soundmill import params
    from soundmill.models import registry
    from soundmill.training import launcher
    from soundmill.training.curve import Curve, Progress
    from soundmill.training.loader import Loader, Order
    from soundmill.training.loop import fit
    from soundmill.training.params import HardwareParams

    processes, steps, batch = map(int, argv[:3])
    work = Path(argv[3])
    if launcher.place:
        launcher.agree({}, work)
    document = params.compose(measure.ROOT / "conf", ["model=ddpm_mel", f"ddpm_mel.train.batch_size={batch}"])
    rehearsal = registry.family("ddpm_mel").rehearse(document, 0)
    module = rehearsal.module
    module.steps = steps
    source = Noise([tuple(value.shape[1:]) for value in rehearsal.batch(0).values], work)
    order = Order(0, dict.fromkeys(map(str, range(batch)), 1.0), batch)
    hardware = HardwareParams(accelerator="cpu", devices=processes, precision="32", threads=1)
    loader = Loader(source, order, Zeros(batch), steps=steps)
    fit(module, loader, hardware=hardware, scratch=work, curve=Curve(steps), progress=Progress("bench", 0.0))


@dataclass(frozen=True)
class Zeros:
    """Random numbers that `Noise` does not need."""

    size: int

    def __call__(self, step: int) -> Any:
        import torch

        return torch.zeros(self.size)


@dataclass(frozen=True)
class Noise:
    """A source of noise; each process notes its wall and CPU time at every batch."""

    shapes: list[tuple[int, ...]]
    work: Path

    def batch(self, items: np.ndarray, drawn: np.ndarray) -> tuple[Any, ...]:
        import torch

        with (self.work / f"times-{os.getpid()}").open("a") as file:
            file.write(f"{time.perf_counter()} {time.process_time()}\n")
        return tuple(torch.randn(len(items), *shape) for shape in self.shapes)
