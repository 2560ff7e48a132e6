"""Checkpoints of a running training that survive a kill at any moment: written beside, synced, renamed; the last good one stays."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO

from soundmill.disk import sync_directory, write_atomically
from soundmill.errors import UserError

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
    """The newest checkpoint in `directory` that is as it was written; one that is not is named and passed over."""
    candidates = [path for path in (directory / LAST, directory / PREVIOUS) if path.exists()]
    for path in candidates:
        try:
            _check_sums(path)
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            return path
        except Exception as error:  # what damage is taken for: zipfile, zlib, pickle and torch each raise their own
            print(f"{path}: is not as it was written ({error}), so passed over", flush=True)
    if candidates:
        print(f"{directory}: no checkpoint to resume from is whole; training starts from its beginning", flush=True)
    return None


def _check_sums(path: Path) -> None:
    """Raise where a part of a checkpoint has another checksum than when it was written: torch notes them and reads over them."""
    with zipfile.ZipFile(path) as parts:
        damaged = parts.testzip()
    if damaged:
        raise ValueError(f"{damaged} is damaged")
