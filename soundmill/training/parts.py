"""What a training consists of, for the loop and for what starts its processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from soundmill.training.curve import Curve
from soundmill.training.loader import Loader
from soundmill.training.module import TrainingModule
from soundmill.training.params import HardwareParams
from soundmill.training.validation import Validation

Report = Callable[[dict[str, float], int], None]  # points of curves, live


@dataclass(frozen=True)
class Sampling:
    """Calls `show(module, step)` every `every` steps but the last, to make samples while training."""

    every: int
    show: Callable[[TrainingModule, int], None]


class Training(NamedTuple):
    """What every process of a training needs."""

    module: TrainingModule
    loader: Loader
    hardware: HardwareParams
    precision: str
    scratch: Path
    curve: Curve
    validation: Validation | None
