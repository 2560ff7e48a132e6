"""State of a running training on disk. It survives a kill at any moment: written beside, synced, renamed; the last one is kept."""

from __future__ import annotations

import os
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from soundmill.disk import write_atomically
from soundmill.errors import UserError
from soundmill.training.curve import Curve
from soundmill.training.loader import Loader
from soundmill.training.module import TrainingModule
from soundmill.training.validation import Validation

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


@dataclass(frozen=True)
class State:
    """All that a training goes on from."""

    module: TrainingModule
    optimisers: Mapping[str, Any]
    loader: Loader
    curve: Curve
    validation: Validation | None
    scaler: Any = None  # of fp16's losses

    def values(self) -> dict[str, Any]:
        module = self.module
        return {
            "step": module.step,
            "module": module.state_dict(),
            "ema": module.ema.state_dict(),
            "more": module.more_state(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers.values()],
            "scaler": self.scaler and self.scaler.state_dict(),
            "loader": self.loader.state_dict(),
            "curve": self.curve.state_dict(),
            "validation": self.validation and self.validation.state_dict(),
        }

    def restore(self, path: Path) -> None:
        """Go on from what was saved as `path`."""
        values, module = load(path), self.module
        module.check_state(values["more"])
        self.loader.load_state_dict(values["loader"])
        module.load_state_dict(values["module"])
        module.step = values["step"]
        module.ema.load_state_dict(values["ema"])
        module.ema.to(module.device)
        for optimiser, state in zip(self.optimisers.values(), values["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        if self.scaler:
            self.scaler.load_state_dict(values["scaler"])
        self.curve.load_state_dict(values["curve"])
        if self.validation:
            self.validation.load_state_dict(values["validation"])


class Timed:
    """Saves `directory/last.ckpt` when `seconds` have passed (looked at every `every` steps), and when it is told to."""

    def __init__(self, directory: Path, seconds: float, every: int):
        self.path, self.seconds, self.every = directory / LAST, seconds, every
        self._saved_at = time.monotonic()

    def due(self, step: int, steps: int) -> bool:
        return step % self.every == 0 and step < steps and time.monotonic() - self._saved_at >= self.seconds

    def save(self, state: State) -> None:
        save(state.values(), self.path)
        self._saved_at = time.monotonic()


def save(values: dict[str, Any], path: Path) -> None:
    """Write a checkpoint; the one before is kept."""
    if path.exists():
        os.replace(path, path.with_name(PREVIOUS))
    try:
        write_atomically(path, lambda temporary: torch.save(values, temporary))
    except RuntimeError as error:  # what torch makes of a full disk
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{path}: the checkpoint could not be written ({reason}); is the disk full? The last one is kept") from None


def load(path: Path) -> dict[str, Any]:
    """What `save` wrote; runs no code."""
    return torch.load(path, map_location="cpu", weights_only=True)


def resume_point(directory: Path) -> Path | None:
    """The newest checkpoint in `directory` that is as it was written; one that is not is named and passed over."""
    candidates = [path for path in (directory / LAST, directory / PREVIOUS) if path.exists()]
    for path in candidates:
        try:
            _check_sums(path)
            values = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # what damage is taken for: zipfile, zlib, pickle and torch each raise their own
            print(f"{path}: is not as it was written ({error}), so passed over", flush=True)
            continue
        if "optimizer_states" not in values:
            return path
        print(f"{path}: of an earlier version of Soundmill, which is needed to go on from it; passed over", flush=True)
    if candidates:
        print(f"{directory}: no checkpoint to resume from; training starts from its beginning", flush=True)
    return None


def _check_sums(path: Path) -> None:
    """Raise where a part of a checkpoint has another checksum than when it was written: torch notes them and reads over them."""
    with zipfile.ZipFile(path) as parts:
        damaged = parts.testzip()
    if damaged:
        raise ValueError(f"{damaged} is damaged")
