"""Weights of earlier steps that a training keeps beside the last and the best."""

from dataclasses import dataclass
from pathlib import Path

from soundmill.training import adapters, checkpoint
from soundmill.training.module import TrainingModule


@dataclass(frozen=True)
class Kept:
    """Averaged weights in `directory`, saved every `every` steps but the last; only the newest `keep` stay."""

    directory: Path
    every: int
    keep: int

    def steps(self, step: int, steps: int) -> list[int]:
        """The steps, in order, whose weights are kept after step `step` of `steps`."""
        newest = min(step, steps - 1) // self.every
        return [self.every * number for number in range(max(1, newest - self.keep + 1), newest + 1)]

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
