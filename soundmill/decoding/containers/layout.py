"""The result of walking a container, and helpers of all walks."""

import os
from dataclasses import dataclass
from typing import BinaryIO

from soundmill.decoding.limits import DecodeError

HEAD_BYTES = 65_536  # read to detect the type
MAX_CHUNKS = 100_000  # top-level parts of a file; crafted files could have millions
MAX_FRAMES = 5_000_000  # a day of 20 ms packets
MAX_PADDING = 1 << 20  # contiguous bytes that are neither sound nor tag
UNKNOWN_ROOM = (1 << 24) + 65_536  # by which writers that cannot seek back stay below the largest size


@dataclass(frozen=True)
class Layout:
    """The result of walking a whole container."""

    sndfile: bool  # libsndfile can decode it reliably
    exact: bool = True  # libsndfile's length is exact, not an estimate
    frames: int | None = None  # samples per channel by the container, where decoders go beyond its sound
    at_least: int = 0  # samples counted on the walk; a lower estimate would cut the sound
    streamed: bool = False  # no declared length; the last packet may be incomplete
    seconds: float | None = None  # duration in the header: an estimate for planning
    md5: bytes | None = None  # of the decoded samples (FLAC)
    bits: int = 0  # per sample, where `md5` is given
    remark: str = ""  # a doubt that does not make the file unusable
    patches: tuple[tuple[int, bytes], ...] = ()  # (position, bytes) of a header that does not know the length, for libsndfile
    pieces: tuple[tuple[int, int], ...] = ()  # (start, end) of the sound between tags and padding; none: the whole file


class Part:
    """The bytes of a file from `start` to `end`, some of them replaced by `patches`, for reading."""

    def __init__(self, file: BinaryIO, start: int, end: int, patches: tuple[tuple[int, bytes], ...] = ()):
        self._file, self._start, self._size, self._patches = file, start, end - start, patches
        self._position = 0

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        self._position = position + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, count: int) -> bytes:
        first = self._position
        self._file.seek(self._start + first)
        data = self._file.read(max(0, min(count, self._size - first)))
        for at, patch in self._patches:
            if first - len(patch) < at < first + len(data):
                kept = data[: max(0, at - first)]
                data = (kept + patch[max(0, first - at) :] + data[at - first + len(patch) :])[: len(data)]
        self._position += len(data)
        return data


def read(file: BinaryIO, position: int, count: int) -> bytes:
    file.seek(position)
    return file.read(count)


def is_unknown_size(declared: int) -> bool:
    """Whether a size stands for one that is unknown until the end: 0, negative, or about the largest of 31, 32 or 63 bits.

    Writers subtract a header from the largest, or round it down to whole frames or pages; SoX writes 0x7F000000 and 0x7FFFF000.
    """
    return declared <= 0 or declared >= 2**62 or any(-65_536 <= most - declared <= UNKNOWN_ROOM for most in (2**31, 2**32))


def truncated(declared: int, size: int, what: str) -> DecodeError:
    return DecodeError("truncated", f"{what} ends at byte {declared}, the file at {size}")


def too_many_parts() -> DecodeError:
    return DecodeError("corrupt", "too many parts for audio")


def refuse_zeros(file: BinaryIO, start: int, size: int) -> None:
    """DecodeError if the file ends in more zeros than padding, from `start` on: a preallocated, incomplete download."""
    if size - start > MAX_PADDING:
        if not any(read(file, size - 64, 64)) and not read(file, size - MAX_PADDING, MAX_PADDING).strip(b"\0"):
            raise DecodeError("corrupt", f"ends in more than {MAX_PADDING} zeros")


def padding_start(file: BinaryIO, start: int, end: int) -> int:
    """The end without zeros after it; the checksum of the last frame, two bytes, may be zero too."""
    tail = read(file, max(start, end - MAX_PADDING), min(end - start, MAX_PADDING))
    return end - max(0, len(tail) - len(tail.rstrip(b"\0")) - 2)


def zeros_end(file: BinaryIO, position: int, size: int) -> int:
    """The end of the zeros at `position`; DecodeError if they are more than padding."""
    start = position
    while position < size:
        if position - start > MAX_PADDING:
            raise DecodeError("corrupt", f"more than {MAX_PADDING} zeros from byte {start} on")
        block = read(file, position, HEAD_BYTES)
        rest = block.lstrip(b"\0")
        position += len(block) - len(rest)
        if rest:
            break
    return position
