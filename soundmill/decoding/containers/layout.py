"""The result of walking a container, and helpers of all walks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

from soundmill.decoding.limits import DecodeError

HEAD_BYTES = 65_536  # read to detect the type
MAX_CHUNKS = 100_000  # top-level parts of a file; crafted files could have millions
MAX_FRAMES = 5_000_000  # a day of 20 ms packets
MAX_PADDING = 1 << 20  # contiguous bytes that are neither sound nor tag
STREAMED_SIZES = (0, 0xFFFFFFFF, 0x80000000)  # WAV data sizes of writers that could not seek back; the last is arecord's


@dataclass(frozen=True)
class Layout:
    """The result of walking a whole container."""

    sndfile: bool  # libsndfile can decode it reliably
    exact: bool = True  # libsndfile's length is exact, not an estimate
    at_least: int = 0  # samples counted on the walk; a lower estimate would cut the sound
    streamed: bool = False  # no declared length; the last packet may be incomplete
    seconds: float | None = None  # duration in the header: an estimate for planning
    md5: bytes | None = None  # of the decoded samples (FLAC)
    bits: int = 0  # per sample, where `md5` is given


def read(file: BinaryIO, position: int, count: int) -> bytes:
    file.seek(position)
    return file.read(count)


def truncated(declared: int, size: int, what: str) -> DecodeError:
    return DecodeError("truncated", f"{what} ends at byte {declared}, the file at {size}")


def too_many_parts() -> DecodeError:
    return DecodeError("corrupt", "too many parts for audio")


def refuse_zeros(file: BinaryIO, start: int, size: int) -> None:
    """DecodeError if the file ends in more zeros than padding, from `start` on: a preallocated, incomplete download."""
    if size - start > MAX_PADDING:
        if not any(read(file, size - 64, 64)) and not read(file, size - MAX_PADDING, MAX_PADDING).strip(b"\0"):
            raise DecodeError("corrupt", f"ends in more than {MAX_PADDING} zeros")


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
