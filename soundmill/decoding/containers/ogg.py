"""Ogg: checksums of its pages, their order and end, and Opus's granule positions."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import BinaryIO

from soundmill.decoding.containers.layout import MAX_FRAMES, MAX_PADDING, Layout, read, too_many_parts, truncated
from soundmill.decoding.limits import DecodeError

_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def ogg_checksum(page: bytes) -> int:
    """CRC-32 of an Ogg page (RFC 3533): zlib's polynomial, but neither reflected nor inverted, so bits are reversed here."""
    turned = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{turned:032b}"[::-1], 2)


# First bytes of a codec's first packet → where that has rate and channels.
_HEADS = {b"OpusHead": slice(9, 10), b"\x01vorbis": slice(11, 16), b"\x7fFLAC": slice(27, 30), b"Speex": slice(36, 52)}
LARGEST_JITTER = 2400  # samples, 50 ms at 48 kHz
FULL_OPUS_RATES = range(24_001, 2**31)  # declared; at others, libsndfile decodes at a lower rate than Opus's 48 kHz


def walk_ogg(file: BinaryIO, size: int, sums_checked: bool) -> Layout:
    position = 0
    codecs: list[bytes] = []
    forms: dict[bytes, bytes] = {}
    open_streams: set[int] = set()
    next_page: dict[int, int] = {}
    times: _Times | None = None
    pages = 0
    while position < size:
        pages += 1
        if pages > MAX_FRAMES:
            raise too_many_parts()
        header = read(file, position, 27)
        if header[:4] != b"OggS":
            if not open_streams and codecs:  # tags or padding after the last page
                if size - position > MAX_PADDING:
                    raise DecodeError("corrupt", f"{size - position} bytes after the last Ogg page, at byte {position}")
                break
            raise DecodeError("truncated" if position + 27 > size else "corrupt", f"no Ogg page at byte {position}")
        if len(header) < 27:
            raise DecodeError("truncated", "the file ends inside a page")
        flags, serial, number, checksum = header[5], *struct.unpack("<III", header[14:26])
        lengths = file.read(header[26])
        length = sum(lengths)
        content = file.read(length)
        end = position + 27 + header[26] + length
        if end > size:
            raise truncated(end, size, "the last Ogg page")
        if not sums_checked and ogg_checksum(header[:22] + b"\0\0\0\0" + header[26:] + lengths + content) != checksum:
            raise DecodeError("corrupt", f"wrong checksum of the Ogg page at byte {position}")
        if flags & 2:
            codec = next((magic for magic in _HEADS if content.startswith(magic)), content[:8])
            form = content[_HEADS.get(codec, slice(0))]
            if not open_streams and forms.setdefault(codec, form) != form:
                raise DecodeError("corrupt", f"the rate or number of channels changes at byte {position}; cut the file there")
            codecs.append(codec)
            open_streams.add(serial)
            times = _times(codec, content) if len(codecs) == 1 else None
        elif number != next_page.get(serial, number):
            raise DecodeError("corrupt", f"pages are missing before byte {position}")
        next_page[serial] = number + 1
        if times and number > 1:  # after the header and tags
            times.add(flags, struct.unpack("<q", header[6:14])[0], lengths, content)
        if flags & 4:
            open_streams.discard(serial)
        position = end
    if not codecs:
        raise DecodeError("corrupt", "no Ogg stream begins")
    # libsndfile fails if granule positions differ from the samples in packets. ffmpeg writes such streams for input with gaps or
    # overlaps, and decodes them.
    remark = "no end-of-stream flag: it may be cut short" if open_streams else ""
    return Layout(sndfile=times is not None and times.agree, remark=remark, pieces=((0, position),))


def _times(codec: bytes, head: bytes) -> _Times | None:
    """For a codec that libsndfile decodes as it should."""
    if codec == b"OpusHead" and int.from_bytes(head[12:16], "little") in FULL_OPUS_RATES:
        return _Times(opus_samples, exact=True)
    if codec == b"\x01vorbis" and len(head) > 28:
        longest = (1 << (head[28] >> 4)) // 2
        return _Times(lambda packet: longest, exact=False)
    return None


class _Times:
    """Whether the granule positions of a stream agree with its packets (RFC 7845, 4), each of `samples`: `exact`, or at most."""

    def __init__(self, samples: Callable[[bytes], int], exact: bool) -> None:
        self.agree = True
        self._samples_of, self._exact = samples, exact
        self._samples = 0  # since the last position
        self._last: int | None = None  # not 0 at the start of recordings of broadcasts
        self._begun = b""  # first bytes of a packet that continues on the next page

    def add(self, flags: int, position: int, lengths: bytes, content: bytes) -> None:
        at = 0
        for length in lengths:
            self._begun += content[at : at + 2 - len(self._begun)]
            at += length
            if length < 255:
                self._samples += self._samples_of(self._begun)
                self._begun = b""
        if position == -1:  # no packet ends on this page
            return
        if self._last is None:
            self._last = 0 if flags & 4 else max(0, position - self._samples)
        declared = position - self._last
        if not self._exact and declared > self._samples + LARGEST_JITTER:  # where in the page is unknown
            raise DecodeError("gap", f"the timestamps leave {declared - self._samples} samples out before sample {position}")
        # The last page may declare less; the rest is trimmed.
        self.agree &= declared == self._samples if self._exact and not flags & 4 else declared <= self._samples
        self._last, self._samples = position, 0


def opus_samples(packet: bytes) -> int:
    """Samples at 48 kHz of an Opus packet, by its first two bytes (RFC 6716, 3.1)."""
    if not packet:
        return 0
    config, code = packet[0] >> 3, packet[0] & 3
    if config < 12:
        frame = (480, 960, 1920, 2880)[config % 4]
    elif config < 16:
        frame = (480, 960)[config % 2]
    else:
        frame = (120, 240, 480, 960)[config % 4]
    return frame * ((1, 2, 2)[code] if code < 3 else packet[1] & 63 if len(packet) > 1 else 0)
