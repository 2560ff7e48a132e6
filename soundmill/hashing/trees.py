"""Digests of several files together: their names and contents."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from soundmill.hashing.digests import digest
from soundmill.hashing.file_cache import file_digests


def files_digest(directory: Path, files: Sequence[Path], cache: Path | None = None, workers: int = 1, linked: bool = False) -> str:
    """Digest of files below `directory`, in the given order: paths from there, and contents. Options as in `file_digests`.

    OSError if a file cannot be read.
    """
    contents = _contents(files, cache, workers, linked)
    return digest([[path.relative_to(directory).as_posix(), value] for path, value in zip(files, contents, strict=True)])


def tree_digest(path: Path, cache: Path | None = None, workers: int = 1) -> str:
    """`file_digest` of a file, `files_digest` of everything in a directory but `.gitignore`, which DVC writes beside outputs.

    OSError if anything cannot be read. Files count as `linked`: DVC links outputs to its cache and replaces them, as we do.
    """
    if path.is_file():
        return _contents([path], cache, workers, linked=True)[0]
    names = sorted(
        os.path.relpath(os.path.join(where, name), path)
        for where, _, files in os.walk(path, onerror=_raise)
        for name in files
        if name != ".gitignore"
    )
    return files_digest(path, [path / name for name in names], cache, workers, linked=True)


def is_intact(path: Path, expected: str) -> bool:
    """Whether a file or directory still has this `tree_digest`. A bit that a disk loses changes neither size nor time."""
    try:
        return tree_digest(path) == expected
    except OSError:  # a disk may also report the loss
        return False


def model_digest(directory: Path) -> str:
    """SHA-256 of a checkpoint's file names and contents, which identifies versions in the model registry."""
    state = hashlib.sha256()
    for path in sorted(path for path in directory.rglob("*") if path.is_file() and path.name != ".gitignore"):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        state.update(f"{path.relative_to(directory)} {content}\n".encode())
    return state.hexdigest()


def _contents(paths: Sequence[Path], cache: Path | None, workers: int, linked: bool) -> list[str]:
    contents = []
    for value in file_digests([os.fsencode(path) for path in paths], cache, workers, linked):
        if isinstance(value, Exception):
            raise value
        contents.append(value)
    return contents


def _raise(error: OSError) -> NoReturn:
    raise error
