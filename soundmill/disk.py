"""Atomic file writes, synced to disk, and locks between processes."""

import ctypes
import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from soundmill.errors import UserError


def sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def opened(directory: Path) -> Iterator[int]:
    """A handle of a directory, to sync or to lock it."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)


def sync_directory(path: Path) -> None:
    with opened(path) as handle:
        os.fsync(handle)


def sync_files_below(directory: Path) -> None:
    """Flush the file system of `directory`: syncing thousands of small files one by one takes minutes."""
    with opened(directory) as handle:
        if ctypes.CDLL(None, use_errno=True).syncfs(handle) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(directory))


def start_sync(path: Path) -> None:
    """Start writing a file to disk without waiting, so that a later sync has less to do."""
    SYNC_FILE_RANGE_WRITE = 2
    start = end = ctypes.c_int64(0)  # the whole file
    with path.open("rb") as file:
        ctypes.CDLL(None).sync_file_range(file.fileno(), start, end, SYNC_FILE_RANGE_WRITE)


def make_directory(path: Path) -> None:
    """Make a directory and those above it; UserError if that fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot create this directory ({error.strerror}); choose another one") from None


def write_atomically(path: Path, write: Callable[[Path], Any]) -> Any:
    """Write a file with `write(temporary)`, then move it into place: nobody sees a part. A device is written to directly."""
    if own := re.fullmatch(r"/dev/(stdout|stderr)|(?:/dev|/proc/self)/fd/(\d+)", os.path.abspath(path)):
        number = int(own[2] or (2 if own[1] == "stderr" else 1))  # opened by its name, it would lose what was written before
        with named(path), tempfile.NamedTemporaryFile() as temporary, open(os.dup(number), "wb") as file:
            result = write(Path(temporary.name))
            shutil.copyfileobj(temporary, file)
        return result
    if is_device(path):
        with named(path):
            return write(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")  # several ranks may write one file
    try:
        with named(path):
            result = write(temporary)
            sync_file(temporary)
            os.replace(temporary, path)
            sync_directory(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    return result


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, document: Any, **options: Any) -> None:
    """Write a document as JSON, atomically: indented and sorted, if the `options` of json.dumps do not say otherwise."""
    options = {"indent": 2, "sort_keys": True, "ensure_ascii": False, "allow_nan": False} | options
    write_text(path, json.dumps(document, **options) + "\n")


def private(path: str, flags: int) -> int:
    """An `opener` of files that only this user may read, also if there was one that others could."""
    descriptor = os.open(path, flags, 0o600)
    os.fchmod(descriptor, 0o600)
    return descriptor


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Name the file in an OSError that lacks it, as errors of an open file do."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def is_device(path: Path) -> bool:
    """Whether a path is not a regular file or directory, or is a name for an open file descriptor."""
    descriptor = re.fullmatch(r"/dev/(stdout|stderr|fd/\d+)|/proc/(self|\d+)/fd/\d+", os.path.abspath(path))
    return descriptor is not None or (path.exists() and not (path.is_file() or path.is_dir()))


def break_cache_link(path: Path) -> None:
    """Have DVC check damaged files again, perhaps links to its cache: it takes read-only or unchanged ones for undamaged."""
    for file in path.iterdir() if path.is_dir() else [path]:
        with suppress(OSError):
            file.chmod(0o644)
            os.utime(file)


def try_lock(file: IO | int, shared: bool = False) -> bool:
    """Lock an open file or directory until it is closed; False if another process holds a conflicting lock."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock(file: IO | int, shared: bool = False) -> None:
    """Like `try_lock`, but waits for the lock."""
    fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Lock a directory while a file in it is read, changed and written, so that no concurrent change is lost."""
    directory.mkdir(parents=True, exist_ok=True)
    with opened(directory) as handle:
        lock(handle)
        yield
