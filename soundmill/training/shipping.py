"""A training that is pickled to a file, for the processes of other machines. Arrays of features stay in their own files.

Whoever writes to the project's directory can run code there, as with torch's own stores.
"""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import IO, Any

from soundmill import disk
from soundmill.training.loader import Arrays


def write(path: Path, values: Any) -> None:
    with path.open("wb") as file:
        _Writer(file).dump(values)


def read(path: Path, near: Path, copy_gb: float) -> Any:
    """What `write` wrote; files of features of up to `copy_gb` 10⁹ bytes are copied to `near` and read there."""
    with path.open("rb") as file:
        return _Reader(file, near, copy_gb).load()


class _Writer(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        return (value.path.resolve(), value.ids, value.shapes, value.offsets) if isinstance(value, Arrays) else None


class _Reader(pickle.Unpickler):
    def __init__(self, file: IO[bytes], near: Path, copy_gb: float):
        super().__init__(file)
        self._near, self._copy_gb = near, copy_gb

    def persistent_load(self, key: Any) -> Arrays:
        path, *rest = key
        if path.stat().st_size <= self._copy_gb * 1e9:
            path = _near_copy(path, self._near)
        return Arrays(path, *rest)


def _near_copy(path: Path, near: Path) -> Path:
    """The copy of a file of features, made by the first process that needs it; its name has a digest of its content."""
    copy = near / path.name
    with disk.exclusive(near):
        if not copy.exists():
            disk.write_atomically(copy, lambda temporary: shutil.copyfile(path, temporary))
    return copy
