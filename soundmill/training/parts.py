"""What a training tells and shows while it runs."""

from collections.abc import Callable
from dataclasses import dataclass

from soundmill.training.module import TrainingModule

Report = Callable[[dict[str, float], int], None]  # points of curves, live


@dataclass(frozen=True)
class Sampling:
    """Calls `show(module, step)` every `every` steps but the last, to make samples while training."""

    every: int
    show: Callable[[TrainingModule, int], None]
