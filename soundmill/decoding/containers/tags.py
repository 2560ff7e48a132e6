"""Tags before, between and after sound: ID3, Lyrics3, APE."""

from __future__ import annotations

import struct
from typing import BinaryIO

from soundmill.decoding.containers.layout import read

LYRICS_BYTES = 1 << 20  # searched for the end of a Lyrics3 tag


def tag_end(head: bytes) -> int:
    """Start of the audio after ID3v2 tags (0 without tags)."""
    position = 0
    while head[position : position + 3] == b"ID3" and len(head) >= position + 10:
        a, b, c, d = head[position + 6 : position + 10]
        if (a | b | c | d) & 0x80:
            break
        footer = 10 if head[position + 5] & 0x10 else 0
        position += 10 + (a << 21 | b << 14 | c << 7 | d) + footer
    return position


def tag_end_at(file: BinaryIO, position: int, size: int, header: bytes) -> int | None:
    """End of the tag at `position`, or None. Sound may follow in files joined by `cat`."""
    if header.startswith(b"ID3"):
        return position + max(tag_end(header), 10)
    if header.startswith(b"3DI"):
        return position + 10
    if header.startswith(b"TAG+"):
        return position + 227
    if header.startswith(b"TAG"):
        return position + 128
    if header.startswith(b"APETAGEX"):
        head = read(file, position, 32)
        counted, flags = struct.unpack("<I4xI", head[12:24]) if len(head) == 32 else (0, 0)
        return position + 32 + (counted if flags & 1 << 29 else 0)  # a header; otherwise a footer
    if header.startswith(b"LYRICSBEG"):
        text = read(file, position, LYRICS_BYTES)
        ends = [text.find(mark) for mark in (b"LYRICS200", b"LYRICSEND")]
        return position + min((end + 9 for end in ends if end >= 0), default=size - position)
    return None
