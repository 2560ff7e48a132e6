"""The loss curve of a training run, and its progress on a terminal or in a log."""

import math
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from soundmill import csv_files, terminal
from soundmill.errors import UserError
from soundmill.training.loader import Loader

TRAIN, VALID = "loss/train", "loss/valid"  # names of the curves; MLflow groups them by the part before the slash
LOG_SECONDS = 10  # between log lines, if there is no terminal for a bar
WARM_UP_STEPS = 3  # first steps of a process, too slow to time


class Curve:
    """Mean loss over every `every` steps; saved in the checkpoint, so a resumed curve is complete.

    Batches on which only the discriminators stepped do not count: their loss is not the net's.
    """

    def __init__(self, every: int):
        self.every = every
        self.points: list[dict[str, float]] = []
        self._losses: list[Tensor] = []
        self._restored: list[float] = []  # losses from the checkpoint, not yet in a point

    def add(self, loss: Tensor) -> None:
        """The net's loss on a batch."""
        self._losses.append(loss)

    def due(self, step: int, steps: int) -> bool:
        return bool(self._losses or self._restored) and (step % self.every == 0 or step == steps)

    def point(self, step: int, rate: float) -> tuple[dict[str, float], int]:
        """Add a point; returns its values and its step."""
        losses, self._losses, self._restored = self._read(), [], []
        if not math.isfinite(sum(losses)):
            raise UserError(
                f"the loss is no longer a number at step {step}: lower optimiser.learning_rate, bound optimiser.clip_norm, or set "
                "hardware.precision to `32`"
            )
        values = {TRAIN: sum(losses) / len(losses), "learning_rate": rate}
        self.points.append({"step": step, **values})
        return values, step

    def _read(self) -> list[float]:
        """All losses at once, because reading them waits for the GPU."""
        return self._restored + (torch.stack(self._losses).tolist() if self._losses else [])

    def state_dict(self) -> dict[str, Any]:
        return {"points": [dict(point) for point in self.points], "losses": self._read()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.points, self._restored = state["points"], state["losses"]


def side_by_side(training: list[dict[str, float]], validation: list[dict[str, float]]) -> list[dict[str, float]]:
    """Points of the held-out loss, each with the mean training loss since the previous one, or the last before it if none came.

    If the held-out loss was never measured, the points of the training loss.
    """
    joined, before = [], 0
    for point in validation:
        earlier = [one for one in training if one["step"] <= point["step"]]
        since = [one for one in earlier if one["step"] > before] or earlier[-1:]
        if since:
            loss = sum(one[TRAIN] for one in since) / len(since)
            joined.append({"step": point["step"], TRAIN: loss, VALID: point[VALID], "learning_rate": since[-1]["learning_rate"]})
            before = point["step"]
    return joined or training


def write_curve(points: Sequence[Mapping[str, float]], path: Path, columns: Sequence[str] = ()) -> None:
    """Write the points as CSV, by default with the columns of the first one; without points, only a header."""
    columns = columns or (list(points[0]) if points else ["step", TRAIN])
    numbers = ({key: value if key == "step" else f"{value:.6g}" for key, value in point.items()} for point in points)
    csv_files.write(path, columns, ([point.get(column, "") for column in columns] for point in numbers))


class Progress:
    """A progress bar on a terminal; elsewhere a line with rate and time left about every ten seconds.

    An item has `item_seconds` seconds of sound.
    """

    def __init__(self, label: str, item_seconds: float):
        self.label, self.item_seconds = label, item_seconds
        self._bar: Any = None
        self._loss: Any = None
        self._total = 0
        self._loader: Any = None
        self._since = (0.0, 0, 0, 0.0)
        self._steps = 0  # taken by this process
        self._warm = self._latest = 0.0  # times at which the warm-up and the latest step ended

    @property
    def seconds_per_step(self) -> float | None:
        """Mean wall time of this process's steps after warm-up, with all that runs between them; None if there are none."""
        counted = self._steps - WARM_UP_STEPS
        return (self._latest - self._warm) / counted if counted > 0 else None

    def start(self, step: int, total: int, loader: Loader) -> None:
        """Start at `step` of `total`, with batches of `loader`."""
        self._total, self._loader, self._since = total, loader, (time.monotonic(), step, loader.step, loader.waited)
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=step, desc=self.label, unit="step")
        elif step:
            terminal.say(f"{self.label}: resuming at step {step} of {total}")
            terminal.report(remark=f"resuming at step {step} of {total}")

    def stepped(self, step: int, loss: Tensor) -> dict[str, float] | None:
        """Report that `step` steps are done; returns points of the curves of speed and memory if it is time to show them."""
        self._loss = loss if self._loss is None else self._loss + 0.05 * (loss - self._loss)
        now, (then, before, batches, waited) = time.monotonic(), self._since
        self._steps += 1
        self._latest = now
        if self._steps == WARM_UP_STEPS:
            self._warm = now
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
        if now - then <= LOG_SECONDS and step != self._total:
            return None
        seconds, steps = max(now - then, 1e-9), step - before
        rate = steps / seconds
        left = round((self._total - step) / max(rate, 1e-9))
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{float(self._loss):.4f}")
        else:
            terminal.say(
                f"{self.label}: step {step} of {self._total}, loss {float(self._loss):.4f}, {rate:.3g} steps/s, "
                f"{left // 60} min {left % 60} s left"
            )
            terminal.report(done=step / self._total, left=left)
        items = (self._loader.step - batches) * self._loader.order.batch_size  # of all devices
        waited = self._loader.waited - waited
        self._since = (now, step, self._loader.step, self._loader.waited)
        return speed(seconds, steps, items, self.item_seconds, waited)

    def end(self) -> None:
        if self._bar is not None:
            self._bar.close()


def speed(seconds: float, steps: int, items: int, item_seconds: float, waited: float) -> dict[str, float]:
    """A point of each curve of speed and memory: in `seconds` there were so many steps and items, and data was waited for.

    Memory is the largest so far; reading it does not wait for the GPU.
    """
    return {
        "steps_per_second": steps / seconds,
        "items_per_second": items / seconds,
        "sound_seconds_per_second": items / seconds * item_seconds,
        "data_wait_share": waited / seconds,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0,
        **({"peak_gpu_memory_bytes": float(torch.cuda.max_memory_allocated())} if torch.cuda.is_initialized() else {}),
    }
