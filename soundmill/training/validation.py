"""The loss on held-out clips while a training runs, and the weights for which it was lowest."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from soundmill.errors import UserError
from soundmill.training.callbacks import TRAIN, VALID, step_ended, without_step
from soundmill.training.device import autocast, evaluating
from soundmill.training.loader import Batch, Source, share


@dataclass(frozen=True)
class HeldOut:
    """Clips that are not trained on: `num_items` of a source like the training's."""

    source: Source
    num_items: int


class Validation(pl.Callback):
    """Every `every` steps (None: never) and after the last: measure the averaged net, and remember the weights of the lowest loss.

    The batches are the same each time, and so is what chance decides of them: their numbers are below 0, which no batch of the
    training has. Part of the checkpoint, so a resumed training still has the best weights.
    """

    def __init__(
        self,
        held_out: HeldOut,
        draw: Callable[[int], Tensor],
        batch_size: int,
        *,
        batches: int,
        every: int | None,
        precision: str,
        on_point: Callable[[dict[str, float], int], None] | None = None,
    ):
        self.held_out, self.draw, self.batch_size, self.batches = held_out, draw, batch_size, batches
        self.every, self.precision, self.on_point = every, precision, on_point
        self.points: list[dict[str, float]] = []
        self.loss, self.step = math.inf, 0
        self.weights: dict[str, Tensor] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        due = step == trainer.max_steps or (self.every is not None and step % self.every == 0)
        if not (due and step_ended(trainer, batch_idx)):
            return
        with module.ema.applied(module.net):
            loss = self._measure(trainer, module)
            if loss < self.loss:
                self.loss, self.step = loss, step
                self.weights = {name: value.detach().cpu().clone() for name, value in module.net.state_dict().items()}
        if not math.isfinite(loss):
            raise UserError(
                f"the held-out loss is no longer a number at step {step}: lower optimiser.learning_rate, or bound "
                "optimiser.clip_norm"
            )
        self.points.append({"step": step, VALID: loss})
        if self.on_point and trainer.is_global_zero:
            self.on_point(*without_step(self.points[-1]))

    def _measure(self, trainer: pl.Trainer, module: pl.LightningModule) -> float:
        """Mean loss of all batches, each rank's share by itself."""
        losses = []
        with torch.no_grad(), evaluating(module.net), autocast(module.device, self.precision):
            for number in range(self.batches):
                batch = trainer.strategy.batch_to_device(self._batch(number, trainer.global_rank, trainer.world_size))
                losses.append(module.valid_loss(batch.step, batch).float())
            return float(trainer.strategy.reduce(torch.stack(losses).mean(), reduce_op="mean"))

    def _batch(self, number: int, rank: int, world_size: int) -> Batch:
        step = -1 - number
        first = number * self.batch_size
        items = np.arange(first, first + self.batch_size) % self.held_out.num_items
        items, drawn = (share(values, rank, world_size) for values in (items, self.draw(step).numpy()))
        return Batch(step, items, self.held_out.source.batch(items, drawn))

    def state_dict(self) -> dict[str, Any]:
        points = [dict(point) for point in self.points]
        return {"points": points, "loss": self.loss, "step": self.step, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.points, self.loss, self.step, self.weights = (state[key] for key in ("points", "loss", "step", "weights"))


def side_by_side(training: list[dict[str, float]], validation: list[dict[str, float]]) -> list[dict[str, float]]:
    """A point for every measurement of the held-out loss, with the mean training loss since the one before.

    Without any, the training's own points.
    """
    joined, before = [], 0
    for point in validation:
        since = [one for one in training if before < one["step"] <= point["step"]]
        if since:
            loss = sum(one[TRAIN] for one in since) / len(since)
            joined.append({"step": point["step"], TRAIN: loss, VALID: point[VALID], "learning_rate": since[-1]["learning_rate"]})
            before = point["step"]
    return joined or training
