"""Tags before, between and after sound: ID3, Lyrics3, APE."""

import re
import struct
from typing import BinaryIO

from soundmill.decoding.containers.layout import read

MOST_TAGS = 16  # one after another
LYRICS_BYTES = 1 << 20  # searched for the ends of a Lyrics3 tag, and for an ID3v2 tag at the end


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


def sound_start(file: BinaryIO, size: int) -> int:
    """Start of the sound after the tags at the start of a file."""
    position = 0
    for _ in range(MOST_TAGS):
        position = tag_end_at(file, position, size, read(file, position, 10)) or position
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
