"""Weights of a running training that are kept beside its last and its best."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from soundmill.training import checkpoint
from soundmill.training.module import TrainingModule


@dataclass(frozen=True)
class Kept:
    """Averaged weights in `directory`, of every `every` steps before the last one; the newest `keep` of them stay."""

    directory: Path
    every: int
    keep: int

    def steps(self, step: int, steps: int) -> list[int]:
        """Those that there are weights of after step `step` of `steps`, in order."""
        newest = min(step, steps - 1) // self.every
        return [self.every * number for number in range(max(1, newest - self.keep + 1), newest + 1)]

    def due(self, step: int, steps: int) -> bool:
        return step % self.every == 0 and step < steps

    def path(self, step: int) -> Path:
        return self.directory / checkpoint.weights_of_step(step)

    def save(self, module: TrainingModule) -> None:
        """Those of the module's step. A training that was killed saves them again, so newer ones may be there."""
        with module.ema.applied(module.net):
            checkpoint.write_weights(module.net.state_dict(), self.path(module.step))
        staying = {self.path(step) for step in self.steps(module.step, module.steps)}
        for step in range(self.every, module.step, self.every):
            if self.path(step) not in staying:
                self.path(step).unlink(missing_ok=True)
