"""What a training measures, keeps and shows while it runs.

The held-out loss, scores of a model's sounds, the weights for which either was lowest, weights of earlier steps, and samples.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from soundmill import terminal
from soundmill.errors import UserError
from soundmill.training import adapters, checkpoint
from soundmill.training.curve import VALID
from soundmill.training.device import evaluating
from soundmill.training.loader import Batch, Source
from soundmill.training.module import TrainingModule
from soundmill.training.params import kept_steps

if TYPE_CHECKING:
    from accelerate import Accelerator

Report = Callable[[dict[str, float], int], None]  # points of curves, live
MOST_TIME = 0.1  # share of a training's time; above it a warning names the remedy
SAVED = ("score", "step", "weights", "spacing", "step_operations")  # attributes of `Scoring` saved in the checkpoint

# module, step → points of curves, of which the first is a score (lower is better), and the floating-point operations they cost
Measure = Callable[[TrainingModule, int], tuple[dict[str, float], int]]


@dataclass(frozen=True)
class HeldOut:
    """Clips that are not trained on: `num_items` items of a source."""

    source: Source
    num_items: int


@dataclass(eq=False)
class Validation:
    """Measures the averaged net every `every` steps (None: never) and after the last, and keeps the weights of the lowest loss.

    The batches and their random draws are the same each time; their numbers are negative, so that they differ from training
    batches. Saved in the checkpoint, so a resumed training still has the best weights.
    """

    held_out: HeldOut
    draw: Callable[[int], Tensor]
    batch_size: int
    _: KW_ONLY
    batches: int
    every: int | None
    patience: int | None = None  # losses in a row that are not the lowest, after which the training ends; None: it goes on
    points: list[dict[str, float]] = field(default_factory=list, init=False)
    loss: float = field(default=math.inf, init=False)
    step: int = field(default=0, init=False)
    weights: dict[str, Tensor] = field(default_factory=dict, init=False)

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
                step, first = -1 - number, number * self.batch_size
                all_items = np.arange(first, first + self.batch_size) % self.held_out.num_items
                items, drawn = map(module.share, (all_items, self.draw(step).numpy()))
                batch = Batch(step, items, self.held_out.source.batch(items, drawn)).to(module.device)
                losses.append(module.valid_loss(step, batch).float())
            return float(accelerator.reduce(torch.stack(losses).mean(), "mean"))

    def state_dict(self) -> dict[str, Any]:
        points = [dict(point) for point in self.points]
        return {"points": points, "loss": self.loss, "step": self.step, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.points, self.loss, self.step, self.weights = (state[key] for key in ("points", "loss", "step", "weights"))


@dataclass(frozen=True)
class Kept:
    """Averaged weights in `directory`, saved every `every` steps but the last; only the newest `keep` stay."""

    directory: Path
    every: int
    keep: int

    def steps(self, step: int, steps: int) -> list[int]:
        return kept_steps(self.every, self.keep, step, steps)

    def due(self, step: int, steps: int) -> bool:
        return step % self.every == 0 and step < steps

    def path(self, step: int) -> Path:
        return self.directory / checkpoint.weights_of_step(step)

    def save(self, module: TrainingModule) -> None:
        """Save the weights of the current step. A resumed training saves some again, so newer files may already exist."""
        with module.ema.applied(module.net):
            checkpoint.write_weights(adapters.weights_of(module.net), self.path(module.step))
        newest = {self.path(step) for step in self.steps(module.step, module.steps)}
        for step in range(self.every, module.step, self.every):
            if self.path(step) not in newest:
                self.path(step).unlink(missing_ok=True)


@dataclass(frozen=True)
class Sampling:
    """Calls `show(module, step)` every `every` steps but the last, to make samples while training."""

    every: int
    show: Callable[[TrainingModule, int], None]


class Operations(TorchDispatchMode):
    """Counts the floating-point operations of the block, back-propagation included: of products and convolutions.

    By PyTorch's own formulas. Its FlopCounterMode also assigns them to modules, and fails where a discriminator's input has no
    gradient.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        aten, formulas = torch.ops.aten, FlopCounterMode(display=False).flop_registry
        attention = aten._scaled_dot_product_flash_attention, aten._scaled_dot_product_flash_attention_backward
        on_cpu = aten._scaled_dot_product_flash_attention_for_cpu, aten._scaled_dot_product_flash_attention_for_cpu_backward
        self._formulas = formulas | {name: formulas[same] for name, same in zip(on_cpu, attention, strict=True)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if formula := self._formulas.get(func.overloadpacket):
            self.total += formula(*args, **kwargs, out_val=out)
        return out


class Scoring:
    """Measures scores with the averaged weights every `every` steps and after the last, in the first process.

    With `most`, the first score's floating-point operations are compared with those of the first training step, and later scores
    come at the smallest multiple of `every` at which they are at most this share of all. A clock would give other points each time.
    Saved in the checkpoint, so a resumed training still has all points and the best weights. Only what it prints depends on time.
    """

    def __init__(self, every: int, measure: Measure, most: float | None = None):
        self.every = self.spacing = every
        self.values = measure
        self.most = most
        self.step_operations = 0
        self.points: list[dict[str, float]] = []
        self.score, self.step = math.inf, 0  # the lowest
        self.weights: dict[str, Tensor] = {}
        self._began, self._seconds, self._warned = time.monotonic(), 0.0, False

    def start(self) -> None:
        """The first step of this process follows."""
        self._began = time.monotonic()

    @contextmanager
    def counting(self, module: TrainingModule) -> Iterator[None]:
        """Count the operations of a batch, if it is one of the first step's."""
        if self.most is None or module.step > 0:
            yield
            return
        with Operations() as counted:
            yield
        self.step_operations += counted.total

    def due(self, step: int, steps: int) -> bool:
        return step == steps or step % self.spacing == 0

    def measure(self, module: TrainingModule, label: str) -> tuple[dict[str, float], int]:
        """Add a point; returns its values and its step. Warns once, under the training's `label`, if scores take too much time.

        If a score cannot be measured, as when a sound is not finite, this is told; the step then has no point.
        """
        began, step = time.monotonic(), module.step
        try:
            values, operations = self.values(module, step)
        except UserError as error:
            terminal.say(f"{label}: no scores at step {step}: {error}")
            return {}, step
        score = next(iter(values.values()))
        if score < self.score:
            self.score, self.step = score, step
            with module.ema.applied(module.net):
                self.weights = {name: value.detach().cpu().clone() for name, value in adapters.weights_of(module.net).items()}
        if not self.points:
            self._space(operations, label)
        self.points.append({"step": step, **values})
        self._seconds += time.monotonic() - began
        if self.share > MOST_TIME and step < module.steps and not self._warned:
            self._warned = True
            terminal.say(f"{label}: {self._cost()}; {self._remedy()}")
        return values, step

    def _space(self, operations: int, label: str) -> None:
        """Set the spacing of the scores that follow, each of so many operations."""
        if self.most is None or not self.step_operations:
            return
        steps = operations / self.step_operations  # that cost as much as a score
        self.spacing = self.every * max(1, math.ceil(steps * (1 - self.most) / self.most / self.every))
        if self.spacing > self.every:
            share = steps / (steps + self.every)
            terminal.say(
                f"{label}: every {self.every} steps, scores would be {share:.0%} of all operations; for {self.most:.0%} "
                f"(score_share), the next ones come every {self.spacing} steps; fewer score_requests allow more of them"
            )

    def end(self, label: str) -> None:
        """Print the cost."""
        remedy = f"; {self._remedy()}" if self.share > MOST_TIME and not self._warned else ""
        terminal.say(f"{label}: {self._cost()}{remedy}")

    @property
    def share(self) -> float:
        """Share of the time of this process's steps."""
        return self._seconds / max(time.monotonic() - self._began, 1e-9)

    def _cost(self) -> str:
        return f"scores took {self._seconds:.3g} s, {self.share:.1%} of the training's time"

    def _remedy(self) -> str:
        fewer = (1 - MOST_TIME) / MOST_TIME * self.share / max(1 - self.share, 1e-9)
        return f"for {MOST_TIME:.0%}, set score_every_steps to {math.ceil(self.spacing * fewer)}, or score_requests lower"

    def state_dict(self) -> dict[str, Any]:
        points = [dict(point) for point in self.points]
        return {"points": points} | {name: getattr(self, name) for name in SAVED}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.points = state["points"]
        for name in SAVED:
            setattr(self, name, state[name])
