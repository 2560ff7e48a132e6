"""The held-out loss during training, and the weights for which it was lowest."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from soundmill.errors import UserError
from soundmill.training import adapters
from soundmill.training.curve import VALID
from soundmill.training.device import evaluating
from soundmill.training.loader import Batch, Source, share
from soundmill.training.module import TrainingModule


@dataclass(frozen=True)
class HeldOut:
    """Clips that are not trained on: `num_items` items of a source."""

    source: Source
    num_items: int


class Validation:
    """Measures the averaged net every `every` steps (None: never) and after the last, and keeps the weights of the lowest loss.

    The batches and their random draws are the same each time; their numbers are negative, so that they differ from training
    batches. Saved in the checkpoint, so a resumed training still has the best weights.
    """

    def __init__(
        self,
        held_out: HeldOut,
        draw: Callable[[int], Tensor],
        batch_size: int,
        *,
        batches: int,
        every: int | None,
        patience: int | None = None,
    ):
        self.patience = patience  # losses in a row that are not the lowest, after which the training ends; None: it goes on
        self.held_out, self.draw, self.batch_size, self.batches, self.every = held_out, draw, batch_size, batches, every
        self.points: list[dict[str, float]] = []
        self.loss, self.step = math.inf, 0
        self.weights: dict[str, Tensor] = {}

    def due(self, step: int, steps: int) -> bool:
        return step == steps or (self.every is not None and step % self.every == 0)

    @property
    def exhausted(self) -> bool:
        """Whether the last `patience` losses were all above the lowest."""
        return self.patience is not None and sum(point["step"] > self.step for point in self.points) >= self.patience

    def measure(self, module: TrainingModule, accelerator: Accelerator) -> tuple[dict[str, float], int]:
        """Add a point, averaged over processes; returns its values and its step."""
        step = module.step
        with module.ema.applied(module.net):
            loss = self._measure(module, accelerator)
            if loss < self.loss:
                self.loss, self.step = loss, step
                self.weights = {name: value.detach().cpu().clone() for name, value in adapters.weights_of(module.net).items()}
        if not math.isfinite(loss):
            raise UserError(
                f"the held-out loss is no longer a number at step {step}: lower optimiser.learning_rate, or bound "
                "optimiser.clip_norm"
            )
        self.points.append({"step": step, VALID: loss})
        return {VALID: loss}, step

    def _measure(self, module: TrainingModule, accelerator: Accelerator) -> float:
        """Mean loss of all batches, of which each process measures its share."""
        losses = []
        with torch.no_grad(), evaluating(module.net), accelerator.autocast():
            for number in range(self.batches):
                batch = self._batch(number, module.rank, module.world_size).to(module.device)
                losses.append(module.valid_loss(batch.step, batch).float())
            return float(accelerator.reduce(torch.stack(losses).mean(), "mean"))

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
