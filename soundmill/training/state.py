"""The state of a running training on disk. Writes are atomic and the previous state is kept, so it survives a kill at any time."""

import os
import time
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from soundmill import hashing, terminal
from soundmill.disk import write_atomically
from soundmill.errors import UserError
from soundmill.training import adapters
from soundmill.training.curve import Curve
from soundmill.training.loader import Loader
from soundmill.training.module import TrainingModule
from soundmill.training.monitoring import Scoring, Validation

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
SHARED_SECONDS = 120.0  # until a file written on one machine is seen by all: NFS caches directories for a minute


@dataclass(frozen=True)
class State:
    """Everything that a training resumes from."""

    module: TrainingModule
    optimisers: Mapping[str, Any]
    loader: Loader
    curve: Curve
    validation: Validation | None
    scoring: Scoring | None = None  # only in the first process
    scaler: Any = None  # of the loss, for fp16

    def values(self) -> dict[str, Any]:
        module = self.module
        return {
            "step": module.step,
            "module": adapters.changing(module),
            "ema": module.ema.state_dict(),
            "more": module.more_state(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers.values()],
            "scaler": self.scaler and self.scaler.state_dict(),
            "loader": self.loader.state_dict(),
            "curve": self.curve.state_dict(),
            "validation": self.validation and self.validation.state_dict(),
            "scoring": self.scoring and self.scoring.state_dict(),
        }

    def restore(self, path: Path) -> None:
        """Restore the state saved in `path`."""
        values = load(path)
        self.module.check_state(values["more"])
        self.loader.load_state_dict(values["loader"])
        take(values, self.module, self.curve, self.validation, self.scoring)
        for optimiser, state in zip(self.optimisers.values(), values["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        if self.scaler:
            self.scaler.load_state_dict(values["scaler"])


def take(
    values: dict[str, Any], module: TrainingModule, curve: Curve, validation: Validation | None, scoring: Scoring | None
) -> None:
    """Restore what remains of a state when no step follows: weights, average, curve, held-out losses and scores."""
    adapters.restore(module, values["module"])
    module.step = values["step"]
    module.ema.load_state_dict(values["ema"])
    module.ema.to(module.device)
    curve.load_state_dict(values["curve"])
    if validation:
        validation.load_state_dict(values["validation"])
    if scoring:
        scoring.load_state_dict(values["scoring"])


class Timed:
    """Saves `directory/last.ckpt`; `due` every `seconds`, checked every `every` steps."""

    def __init__(self, directory: Path, seconds: float, every: int):
        self.path, self.seconds, self.every = directory / LAST, seconds, every
        self._saved_at = time.monotonic()

    def due(self, step: int, steps: int) -> bool:
        return step % self.every == 0 and step < steps and time.monotonic() - self._saved_at >= self.seconds

    def save(self, state: State) -> None:
        save(state.values(), self.path)
        self._saved_at = time.monotonic()


def save(values: dict[str, Any], path: Path) -> None:
    """Write a checkpoint and keep the previous one."""
    if path.exists():
        os.replace(path, path.with_name(PREVIOUS))
    try:
        write_atomically(path, lambda temporary: torch.save(values, temporary))
    except RuntimeError as error:  # torch's error for a full disk
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{path}: the checkpoint could not be written ({reason}); free some space and run again. The previous one is kept"
        ) from None


def load(path: Path) -> dict[str, Any]:
    """The values that `save` wrote; runs no code from the file."""
    return torch.load(path, map_location="cpu", weights_only=True)


def resume_point(directory: Path) -> Path | None:
    """The newest undamaged checkpoint in `directory`, or None; damaged ones are reported and skipped."""
    candidates = [path for path in (directory / LAST, directory / PREVIOUS) if path.exists()]
    for path in candidates:
        try:
            _check_sums(path)
            values = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # on damage, zipfile, zlib, pickle and torch each raise their own errors
            terminal.say(f"{path}: damaged ({error}); skipped")
            continue
        if "optimizer_states" not in values:
            return path
        terminal.say(f"{path}: written by an earlier version of Soundmill, which alone can resume it; skipped")
    if candidates:
        terminal.say(f"{directory}: no checkpoint to resume from; training starts from the beginning")
    return None


def identity(path: Path | None) -> str:
    """A digest of the checksums in a checkpoint; "" for none."""
    if path is None:
        return ""
    with zipfile.ZipFile(path) as archive:
        return hashing.digest([[part.filename, part.CRC] for part in archive.infolist()])


def found(directory: Path, wanted: str) -> Path | None:
    """The checkpoint with this `identity`, which another process chose: caches of a shared file system may be stale."""
    until = time.monotonic() + SHARED_SECONDS
    while wanted:
        for path in (directory / LAST, directory / PREVIOUS):
            with suppress(OSError, ValueError, KeyError):
                if identity(path) == wanted:
                    return path
        if time.monotonic() > until:
            raise UserError(f"{directory} lacks the checkpoint that the head resumes from; is it the same directory?")
        time.sleep(1.0)
    return None


def _check_sums(path: Path) -> None:
    """Raise if a part of a checkpoint does not match its checksum: torch writes checksums but never checks them."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged:
        raise ValueError(f"{damaged} is damaged")
