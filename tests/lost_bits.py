"""Damage as a disk does it, and files that run code when they are read."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def lose_a_bit(path: Path, place: float) -> None:
    """As a disk does: neither size nor time is another, and a link shows the same."""
    status, data = path.stat(), bytearray(path.read_bytes())
    bit = int(place * 8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    mode = status.st_mode & 0o777
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    path.chmod(mode)


@contextmanager
def room_in_files(size: int) -> Iterator[None]:
    """No file of this process grows beyond `size` bytes: as a disk that fills up, it takes a part of a write, then nothing."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Code:
    """What a pickle of it does when it is read."""

    def __reduce__(self):
        return print, ("it ran",)
