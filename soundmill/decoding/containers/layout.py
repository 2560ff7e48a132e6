"""The result of a walk through a container, and the steps that all walks share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

from soundmill.decoding.limits import DecodeError

HEAD_BYTES = 65_536  # looked at to tell the type
MAX_CHUNKS = 100_000  # top-level parts of a file; a crafted one could hold millions of empty ones
MAX_FRAMES = 5_000_000  # a day of 20 ms packets
MAX_PADDING = 1 << 20  # bytes that are no sound and no tag, in one place
STREAMED_SIZES = (0, 0xFFFFFFFF, 0x80000000)  # WAV data sizes of writers that could not seek back; the last is arecord's


@dataclass(frozen=True)
class Layout:
    """The result of walking a whole container."""

    sndfile: bool  # libsndfile may be trusted with this one
    exact: bool = True  # the length that libsndfile gives is exact, not an estimate
    at_least: int = 0  # samples that were counted on the walk: an estimate below this would cut the sound
    streamed: bool = False  # no length is declared: the last packet may be a short one
    seconds: float | None = None  # duration in the header: an estimate for planning
    md5: bytes | None = None  # of the decoded samples (FLAC)
    bits: int = 0  # per sample, where `md5` is given


def read(file: BinaryIO, position: int, count: int) -> bytes:
    file.seek(position)
    return file.read(count)


def truncated(declared: int, size: int, what: str) -> DecodeError:
    return DecodeError("truncated", f"{what} ends at byte {declared}, the file at {size}")


def too_many_parts() -> DecodeError:
    return DecodeError("corrupt", "no sound has that many parts")


def refuse_zeros(file: BinaryIO, start: int, size: int) -> None:
    """Raise where more zeros than padding end the file from `start` on: a download that was given its size and never ended."""
    if size - start > MAX_PADDING:
        if not any(read(file, size - 64, 64)) and not read(file, size - MAX_PADDING, MAX_PADDING).strip(b"\0"):
            raise DecodeError("corrupt", f"it ends in more than {MAX_PADDING} zeros")


def zeros_end(file: BinaryIO, position: int, size: int) -> int:
    """Where the zeros end that stand at `position`: there, if there are none. Raises where they are more than padding."""
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
