"""The result of walking a container, limits of one file, and helpers of all walks: reading, zeros, tags (ID3, Lyrics3, APE)."""

import os
import re
import struct
from dataclasses import dataclass
from typing import BinaryIO

HEAD_BYTES = 65_536  # read to detect the type
MAX_CHUNKS = 100_000  # top-level parts of a file; crafted files could have millions
MAX_FRAMES = 5_000_000  # a day of 20 ms packets
MAX_PADDING = 1 << 20  # contiguous bytes that are neither sound nor tag
UNKNOWN_FRAMES = 2**63 - 1  # by libsndfile
UNKNOWN_ROOM = (1 << 24) + 65_536  # by which writers that cannot seek back stay below the largest size
MAX_CHANNELS = 1024  # libsndfile's own limit
MAX_SAMPLES_PER_SECOND = 8 * 192_000  # of all channels; with `max_seconds`, bounds decompression bombs
MIN_SAMPLES = 2  # fewer are rejected
BLOCK_SAMPLES = 1 << 18  # of all channels, in memory at once: 1 MB
LENGTH_TOLERANCE_SECONDS = 0.05  # decoded against declared length: 5 s of WMA are 34 ms short


class DecodeError(Exception):
    """A file cannot be used: `reason` is short and stable, for counting; `detail` explains it."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason} ({self.detail})" if self.detail else self.reason


def check_bound(num_frames: int, sample_rate: int, channels: int, max_seconds: float) -> None:
    """DecodeError if a declared or decoded length exceeds the limits."""
    if num_frames > max_seconds * sample_rate:
        raise DecodeError("too long", f"more than {max_seconds:g} s")
    if num_frames * channels > max_seconds * MAX_SAMPLES_PER_SECOND:
        raise DecodeError("too long", f"{channels} channels at {sample_rate} Hz exceed the size of {max_seconds:g} s")


def check_length(decoded: int, declared: float, sample_rate: int, slack: int) -> None:
    """Compare decoded and declared length in samples; `slack`: what the format may lose at its ends."""
    if abs(decoded - declared) > LENGTH_TOLERANCE_SECONDS * sample_rate + slack:
        reason = "truncated" if decoded < declared else "corrupt"
        raise DecodeError(reason, f"{decoded / sample_rate:.3f} s of sound, {declared / sample_rate:.3f} s declared")


@dataclass(frozen=True)
class Layout:
    sndfile: bool  # libsndfile can decode it reliably
    exact: bool = True  # libsndfile's length is exact, not an estimate
    frames: int = UNKNOWN_FRAMES  # samples per channel by the container, where decoders go beyond its sound
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


def refuse_joined(file: BinaryIO, end: int, size: int, start: bytes) -> None:
    """DecodeError if what starts a file, a pattern, or too many zeros follow the sound's `end`, where a decoder would stop."""
    refuse_zeros(file, end, size)
    refuse_header(file, end, min(size, end + 1), start)


def refuse_header(file: BinaryIO, position: int, size: int, start: bytes) -> None:
    """DecodeError if what starts a file, a pattern, is in sound of unknown size."""
    while position < size:
        if found := re.compile(start, re.DOTALL).search(read(file, position, MAX_PADDING)):
            raise DecodeError("corrupt", f"another file starts at byte {position + found.start()}, after the sound; files joined?")
        position += MAX_PADDING - 64  # a start may be divided


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


TAG_BYTES = {b"3DI": 10, b"TAG+": 227, b"TAG": 128}  # of tags of one size
MOST_TAGS = 16  # one after another
LYRICS_BYTES = 1 << 20  # searched for the ends of a Lyrics3 tag, and for an ID3v2 tag or chunks at the end


def tag_end(head: bytes) -> int:
    """Length of the ID3v2 tag that `head` starts (0: none)."""
    if not re.match(rb"ID3.{3}[\0-\x7f]{4}", head, re.DOTALL):
        return 0
    a, b, c, d = head[6:10]
    return 10 + (a << 21 | b << 14 | c << 7 | d) + (10 if head[5] & 0x10 else 0)


def tag_end_at(file: BinaryIO, position: int, size: int, header: bytes) -> int | None:
    """End of the tag at `position`, or None. Sound may follow in files joined by `cat`."""
    if header.startswith(b"ID3"):
        return position + max(tag_end(header), 10)
    for mark, length in TAG_BYTES.items():
        if header.startswith(mark):
            return position + length
    if header.startswith(b"APETAGEX"):
        head = read(file, position, 32)
        counted, flags = struct.unpack("<I4xI", head[12:24]) if len(head) == 32 else (0, 0)
        return position + 32 + (counted if flags & 1 << 29 else 0)  # a header; otherwise a footer
    if header.startswith(b"LYRICSBEG"):
        text = read(file, position, LYRICS_BYTES)
        ends = [text.find(mark) for mark in (b"LYRICS200", b"LYRICSEND")]
        return position + min((end + 9 for end in ends if end >= 0), default=size - position)
    return None


_BEGINS_WITH_ZEROS = re.compile(rb".{4}(ftyp|moov|mdat|wide|free|skip|pnot|\xf8ro|G.{191}G)|\0\0\1\xba|\0\1\xa3d", re.DOTALL)


def sound_start(file: BinaryIO, size: int) -> int:
    """Start of the sound after the tags at the start of a file, and the zeros that pad them."""
    position = 0
    for _ in range(MOST_TAGS):
        if (tag := tag_end_at(file, position, size, read(file, position, 10))) is None:
            break
        position = zeros_end(file, tag, size)
        start = max(tag, position - 4)
        if (number := _BEGINS_WITH_ZEROS.search(read(file, start, 204))) and number.start() <= position - start:
            position = start + number.start()
    return position


def sound_end(file: BinaryIO, start: int, size: int) -> int:
    """End of the sound before the tags at the end of a file."""
    for _ in range(MOST_TAGS):
        size = _last_tag(file, start, size)
    return size


def _last_tag(file: BinaryIO, start: int, end: int) -> int:
    """Start of the tag that ends at `end`; without one, `end`."""
    foot = read(file, max(start, end - 227), min(227, end - start))
    length = 0
    if foot[-128:].startswith(b"TAG"):
        length = 128
    elif len(foot) == 227 and foot.startswith(b"TAG+"):
        length = 227
    elif foot[-32:].startswith(b"APETAGEX"):
        counted, flags = struct.unpack("<I4xI", foot[-20:-8])
        length = counted + (32 if flags & 1 << 31 else 0)
    else:
        first = max(start, end - LYRICS_BYTES)
        text = read(file, first, end - first)
        if foot[-9:] in (b"LYRICS200", b"LYRICSEND") and (at := text.rfind(b"LYRICSBEGIN")) >= 0:
            return first + at
        for tag in re.finditer(rb"ID3[\2-\4]", text):
            if tag_end(text[tag.start() : tag.start() + 10]) == len(text) - tag.start():
                return first + tag.start()
    return end - length if length <= end - start else end
