"""Files that are written whole or not at all, and synced to the disk; locks between processes."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any


def sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_files_below(directory: Path) -> None:
    """Flush the file system that holds `directory`: of thousands of small files, one by one takes minutes."""
    import ctypes

    handle = os.open(directory, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(handle) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(directory))
    finally:
        os.close(handle)


def start_sync(path: Path) -> None:
    """Let the kernel begin to write a file to the disk, and do not wait: whoever flushes all later finds less left."""
    import ctypes

    SYNC_FILE_RANGE_WRITE = 2
    start = end = ctypes.c_int64(0)  # the whole file
    with path.open("rb") as file:
        ctypes.CDLL(None).sync_file_range(file.fileno(), start, end, SYNC_FILE_RANGE_WRITE)


def write_atomically(path: Path, write: Callable[[Path], Any]) -> Any:
    """Let `write(temporary)` make a file, then put it in place: readers see the old file or the new one, never a part.

    What is no file (`/dev/stdout`, a FIFO) is written to as it is.
    """
    if is_device(path):
        return write(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")  # ranks of a training may write the same file at once
    try:
        result = write(temporary)
        sync_file(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # errors of an open file have no name
        raise
    sync_directory(path.parent)
    return result


def is_device(path: Path) -> bool:
    """Whether a path to write to is something else than a file, or one of the system's names for what is open already."""
    open_already = re.fullmatch(r"/dev/(stdout|stderr|fd/\d+)|/proc/(self|\d+)/fd/\d+", os.path.abspath(path))
    return open_already is not None or (path.exists() and not (path.is_file() or path.is_dir()))


def break_cache_link(path: Path) -> None:
    """Touch a damaged file or the files of a folder, and let them be written to.

    They may be links to DVC's cache, which would hand them out again: it trusts what nobody may write to, and else size and time.
    """
    for file in path.iterdir() if path.is_dir() else [path]:
        with suppress(OSError):
            file.chmod(0o644)
            os.utime(file)


def try_lock(file: IO | int, shared: bool = False) -> bool:
    """Lock an opened file or directory until it is closed; False where another process holds a lock that excludes this one."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock(file: IO | int, shared: bool = False) -> None:
    """As `try_lock`, waiting for the other process."""
    fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)


def unlock(file: IO | int) -> None:
    fcntl.flock(file, fcntl.LOCK_UN)


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Hold a directory while a file in it is read, changed and written: one process after the other, so that no change is lost."""
    directory.mkdir(parents=True, exist_ok=True)
    handle = os.open(directory, os.O_RDONLY)
    try:
        lock(handle)
        yield
    finally:
        os.close(handle)
