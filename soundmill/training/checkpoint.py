"""Checkpoints of a running training that survive a kill at any moment: written beside, synced, renamed; the last good one stays."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO

from soundmill.errors import UserError
from soundmill.shards import sync_directory, write_atomically

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's checkpoints through `write_atomically`; the one before the newest is kept; loading runs no code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        path = Path(path)
        if path.exists():
            os.replace(path, path.with_name(PREVIOUS))
        try:
            write_atomically(path, lambda temporary: torch.save(checkpoint, temporary))
        except RuntimeError as error:  # what torch makes of a full disk
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"{path}: the checkpoint could not be written ({reason}); is the disk full? The last one is kept"
            ) from None

    def load_checkpoint(self, path: Any, map_location: Any | None = None, weights_only: bool | None = None) -> dict[str, Any]:
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)
        sync_directory(Path(path).parent)


def resume_point(directory: Path) -> Path | None:
    """The newest checkpoint in `directory` that can be read whole; one that cannot is named and passed over."""
    for path in (directory / LAST, directory / PREVIOUS):
        if path.exists():
            try:
                torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
                print(f"{path.name} cannot be read ({error}); trying the one before it")
                continue
            return path
    return None
