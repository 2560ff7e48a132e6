"""Callbacks of a training: its curve, timed checkpoints, progress on a terminal or in a log, samples now and then."""

from __future__ import annotations

import csv
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from soundmill.errors import UserError
from soundmill.training.checkpoint import LAST

TRAIN, VALID = "loss/train", "loss/valid"  # names of the curves; MLflow groups by what is before the slash
LOG_SECONDS = 10  # between lines where there is no terminal to draw a bar on
WARM_UP_STEPS = 3  # of a process, slower than those that follow


def step_ended(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether a batch was the last of its step, which adds up the gradients of `accumulate_grad_batches`."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


class Curve(pl.Callback):
    """Mean loss over every `every` steps; part of the checkpoint, so a resumed curve is whole.

    Batches on which the net took no turn do not count: what its discriminators lose is no loss of its own.
    """

    def __init__(self, every: int, on_point: Callable[[dict[str, float], int], None] | None = None):
        self.every, self.on_point = every, on_point
        self.points: list[dict[str, float]] = []
        self._losses: list[Any] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if module.net_stepped:
            self._losses.append(outputs["loss"].detach() * trainer.accumulate_grad_batches)  # Lightning divides by it
        if not step_ended(trainer, batch_idx):
            return
        if self._losses and (trainer.global_step % self.every == 0 or trainer.global_step == trainer.max_steps):
            losses = [float(loss) for loss in self._losses]
            self._losses = []
            if not math.isfinite(sum(losses)):
                raise UserError(
                    f"the loss is no longer a number at step {trainer.global_step}: lower optimiser.learning_rate, bound "
                    "optimiser.clip_norm, or set hardware.precision to `32`"
                )
            rate = float(trainer.optimizers[0].param_groups[0]["lr"])
            point = {"step": trainer.global_step, TRAIN: sum(losses) / len(losses), "learning_rate": rate}
            self.points.append(point)
            if self.on_point and trainer.is_global_zero:
                self.on_point(*without_step(point))

    def state_dict(self) -> dict[str, Any]:
        return {"points": [dict(point) for point in self.points], "losses": [float(loss) for loss in self._losses]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        import torch

        self.points = state["points"]
        self._losses = [torch.tensor(loss) for loss in state["losses"]]


def without_step(point: dict[str, float]) -> tuple[dict[str, float], int]:
    """A point's values, and its step apart."""
    return {key: value for key, value in point.items() if key != "step"}, int(point["step"])


def write_curve(points: list[dict[str, float]], path: Path) -> None:
    """The points as CSV; all have the same keys. None: a header."""
    columns = list(points[0]) if points else ["step", TRAIN]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: f"{value:.6g}" for key, value in point.items()} for point in points)


class TimedCheckpoint(pl.Callback):
    """Save `directory/last.ckpt` when `seconds` have passed (looked at every `every` steps), and when training ends."""

    def __init__(self, directory: Path, seconds: float, every: int):
        self.path, self.seconds, self.every = directory / LAST, seconds, every
        self._saved_at = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        # Between the batches of a step there are gradients, which no checkpoint holds.
        if step_ended(trainer, batch_idx) and trainer.global_step % self.every == 0 and trainer.global_step < trainer.max_steps:
            # Every rank takes part in a save: the first one's clock decides.
            if trainer.strategy.broadcast(time.monotonic() - self._saved_at >= self.seconds):
                trainer.save_checkpoint(self.path)
                self._saved_at = time.monotonic()

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        trainer.save_checkpoint(self.path)


class Progress(pl.Callback):
    """A bar with rate and time left on a terminal; elsewhere a line about every ten seconds, and the rate for `on_rate`."""

    def __init__(self, label: str, on_rate: Callable[[dict[str, float], int], None] | None = None):
        self.label, self.on_rate = label, on_rate
        self._bar: Any = None
        self._loss: Any = None
        self._since = (0.0, 0)
        self._steps = 0  # of this process
        self._warm = self._latest = 0.0  # when the first ones were done, and the last one

    @property
    def seconds_per_step(self) -> float | None:
        """Of this process's steps, with what lies between them; None where it took too few, or other processes did."""
        counted = self._steps - WARM_UP_STEPS
        return (self._latest - self._warm) / counted if counted > 0 else None

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self._since = (time.monotonic(), trainer.global_step)
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=trainer.max_steps, initial=trainer.global_step, desc=self.label, unit="step")
        elif trainer.global_step:
            print(f"{self.label}: resuming at step {trainer.global_step} of {trainer.max_steps}", flush=True)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not (trainer.is_global_zero and step_ended(trainer, batch_idx)):
            return
        loss = outputs["loss"].detach() * trainer.accumulate_grad_batches
        self._loss = loss if self._loss is None else self._loss + 0.05 * (loss - self._loss)
        now, (then, step) = time.monotonic(), self._since
        self._steps += 1
        self._latest = now
        if self._steps == WARM_UP_STEPS:
            self._warm = now
        if self._bar is not None:
            self._bar.update(trainer.global_step - self._bar.n)
        if now - then > LOG_SECONDS or trainer.global_step == trainer.max_steps:
            rate = (trainer.global_step - step) / max(now - then, 1e-9)
            left = round((trainer.max_steps - trainer.global_step) / max(rate, 1e-9))
            if self._bar is not None:
                self._bar.set_postfix(loss=f"{float(self._loss):.4f}")
            else:
                print(
                    f"{self.label}: step {trainer.global_step} of {trainer.max_steps}, loss {float(self._loss):.4f}, "
                    f"{rate:.3g} steps/s, {left // 60} min {left % 60} s left",
                    flush=True,
                )
            if self.on_rate:
                self.on_rate({"steps_per_second": rate}, trainer.global_step)
            self._since = (now, trainer.global_step)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self._bar is not None:
            self._bar.close()


class Every(pl.Callback):
    """Call `action(module, step)` on the first rank after every `every` steps, the last one not included."""

    def __init__(self, every: int, action: Callable[[Any, int], None]):
        self.every, self.action = every, action

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        due = step_ended(trainer, batch_idx) and trainer.global_step % self.every == 0
        if due and trainer.global_step < trainer.max_steps and trainer.is_global_zero:
            self.action(module, trainer.global_step)
