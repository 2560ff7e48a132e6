"""Ogg: checksums of its pages, their order and end, and Opus's granule positions."""

from __future__ import annotations

import struct
import zlib
from typing import BinaryIO

from soundmill.decoding.containers.layout import MAX_FRAMES, MAX_PADDING, Layout, read, too_many_parts, truncated
from soundmill.decoding.limits import DecodeError

_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def ogg_checksum(page: bytes) -> int:
    """CRC-32 of an Ogg page (RFC 3533): zlib's polynomial, but neither reflected nor inverted, so bits are reversed here."""
    turned = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{turned:032b}"[::-1], 2)


def walk_ogg(file: BinaryIO, size: int, sums_checked: bool) -> Layout:
    position = 0
    codecs: list[bytes] = []
    open_streams: set[int] = set()
    next_page: dict[int, int] = {}
    opus = _OpusTimes()
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
            codecs.append(content[:8])
            open_streams.add(serial)
        elif number != next_page.get(serial, number):
            raise DecodeError("corrupt", f"pages are missing before byte {position}")
        next_page[serial] = number + 1
        if codecs == [b"OpusHead"] and number > 1:  # after the header and tags
            opus.add(flags, struct.unpack("<q", header[6:14])[0], lengths, content)
        if flags & 4:
            open_streams.discard(serial)
        position = end
    if open_streams:
        raise DecodeError("truncated", "the Ogg stream has no end")
    simple = len(codecs) == 1 and (codecs[0].startswith(b"\x01vorbis") or codecs[0] == b"OpusHead")
    # libsndfile fails if granule positions differ from the samples in packets. ffmpeg writes such streams for input with gaps or
    # overlaps, and decodes them.
    return Layout(sndfile=simple and opus.agree)


class _OpusTimes:
    """Whether the granule positions of an Opus stream agree with its packets (RFC 7845, 4)."""

    def __init__(self) -> None:
        self.agree = True
        self._samples = 0  # at 48 kHz, of all complete packets
        self._offset: int | None = None  # start of the stream; not 0 in recordings of broadcasts
        self._begun = b""  # first bytes of a packet that continues on the next page

    def add(self, flags: int, position: int, lengths: bytes, content: bytes) -> None:
        at = 0
        for length in lengths:
            self._begun += content[at : at + 2 - len(self._begun)]
            at += length
            if length < 255:
                self._samples += opus_samples(self._begun)
                self._begun = b""
        if position == -1:  # no packet ends on this page
            return
        if self._offset is None:
            self._offset = max(0, position - self._samples) if not flags & 4 else 0
        declared = position - self._offset
        # The last page may declare less; the rest is trimmed.
        self.agree &= declared <= self._samples if flags & 4 else declared == self._samples


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
