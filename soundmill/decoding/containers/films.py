"""Containers of audio and video: MP4, Matroska, FLV, ASF; AVI is in chunks.py."""

import math
import struct
from typing import BinaryIO

from soundmill.decoding.containers.layout import (
    HEAD_BYTES,
    MAX_CHUNKS,
    MAX_FRAMES,
    Layout,
    read,
    refuse_zeros,
    too_many_parts,
    truncated,
)
from soundmill.decoding.limits import DecodeError


def walk_mp4(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    position = 0
    seconds: float | None = None
    for _ in range(MAX_CHUNKS):
        if position + 8 > size:
            return Layout(sndfile=False, seconds=seconds)
        length, name = struct.unpack(">I4s", read(file, position, 8))
        if length == 1:
            wide = file.read(8)
            if len(wide) < 8:
                raise DecodeError("truncated", "the file ends inside a box header")
            length = int.from_bytes(wide, "big")
        if 0 < length < 8 or not all(32 <= byte < 127 for byte in name):
            refuse_zeros(file, position, size)
            return Layout(sndfile=False, seconds=seconds)  # not a box; ffmpeg decides
        if length == 0:  # to the end of the file
            return Layout(sndfile=False, seconds=seconds)
        if position + length > size:
            raise truncated(position + length, size, f"box {name.decode('latin-1')!r}")
        if name == b"moov":
            seconds = _movie_seconds(read(file, position + 8, 40))
        position += length
    raise too_many_parts()


def _movie_seconds(content: bytes) -> float | None:
    """Duration in the movie header, if that is the first box in `content` (ISO 14496-12, 8.2.2)."""
    if len(content) < 40 or content[4:8] != b"mvhd":
        return None
    scale, duration = struct.unpack(">IQ" if content[8] else ">II", content[28:40] if content[8] else content[20:28])
    return duration / scale if scale and duration else None


def _vint(data: bytes) -> tuple[int, int] | None:
    """(value, length) of an EBML variable-size integer; -1 for `unknown`."""
    if not data or not data[0]:
        return None
    length = 9 - data[0].bit_length()
    if len(data) < length:
        return None
    value = int.from_bytes(data[:length], "big") & (1 << 7 * length) - 1
    return (-1 if value == (1 << 7 * length) - 1 else value), length


_SEGMENT, _TIMESTAMP_SCALE, _DURATION = b"\x18\x53\x80\x67", b"\x2a\xd7\xb1", b"\x44\x89"


def _matroska_seconds(content: bytes) -> float | None:
    """Duration in the segment's information (RFC 9559), searched by its element ids: it is an estimate anyway."""
    scale, at = 1_000_000, content.find(_TIMESTAMP_SCALE)
    if at >= 0 and (element := _vint(content[at + 3 : at + 4])):
        scale = int.from_bytes(content[at + 4 : at + 4 + element[0]], "big")
    at = content.find(_DURATION, max(at, 0))
    width = content[at + 2 : at + 3] if at >= 0 else b""
    layout = {b"\x84": ">f", b"\x88": ">d"}.get(width)
    if layout is None or len(content) < at + 11:
        return None
    seconds = struct.unpack_from(layout, content, at + 3)[0] * scale / 1e9
    return seconds if math.isfinite(seconds) and seconds > 0 else None


def walk_matroska(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    position = 0
    seconds: float | None = None
    for _ in range(MAX_CHUNKS):
        if position >= size:
            return Layout(sndfile=False, seconds=seconds)
        head = read(file, position, 16)
        id_length = 9 - head[0].bit_length() if head[0] else 0
        parsed = _vint(head[id_length:]) if 1 <= id_length <= 4 else None
        if head.startswith(_SEGMENT):
            seconds = _matroska_seconds(read(file, position, 4096))
        if parsed is None or parsed[0] < 0:  # not an element; or streamed: the end is not declared
            return Layout(sndfile=False, seconds=seconds)
        length, width = parsed
        position += id_length + width + length
        if position > size:
            raise truncated(position, size, "the segment")
    raise too_many_parts()


def walk_flv(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    position = int.from_bytes(read(file, 5, 4), "big") + 4
    for _ in range(MAX_FRAMES):
        if position >= size:
            return Layout(sndfile=False)
        header = read(file, position, 11)
        length = int.from_bytes(header[1:4], "big")
        if len(header) < 11 or position + 11 + length > size:
            raise truncated(position + 11 + length, size, "the last tag")
        position += 11 + length + 4
    raise too_many_parts()


_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def walk_asf(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    head = read(file, 0, HEAD_BYTES)
    at = head.find(_ASF_FILE_PROPERTIES)
    properties = head[at : at + 104] if at >= 0 else b""
    if len(properties) == 104:
        declared, duration, flags = struct.unpack("<Q16xQ16xI", properties[40:92])
        if not flags & 1 and declared > size:  # the flag marks a broadcast, whose size is not valid
            raise truncated(declared, size, "the file by its header")
        if not flags & 1:
            return Layout(sndfile=False, seconds=duration / 1e7)
    return Layout(sndfile=False)
