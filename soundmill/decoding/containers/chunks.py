"""Formats of chunks, as in IFF, and others that declare the size of their data: WAV, Wave64, AIFF, AU, CAF, AVI."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

from soundmill.decoding.containers.layout import (
    HEAD_BYTES,
    MAX_CHUNKS,
    MAX_FRAMES,
    STREAMED_SIZES,
    Layout,
    read,
    refuse_zeros,
    too_many_parts,
    truncated,
    zeros_end,
)
from soundmill.decoding.containers.tags import tag_end
from soundmill.decoding.limits import DecodeError, check_bound

SOX_STREAMED_SIZE = 0x7FFFF000  # SoX's, rounded down to whole frames
PLAIN_WAV_CODECS = (1, 3, 6, 7, 0xFFFE)  # with frames of one sample per channel
# PCM, MS ADPCM, float, A-law, µ-law, IMA ADPCM, GSM 6.10, extensible; for MP3 in WAV libsndfile only estimates the length.
SNDFILE_WAV_CODECS = (1, 2, 3, 6, 7, 0x11, 0x31, 0xFFFE)
AVI_PADDING = 4096  # zeros up to a sector or page


def chunks(
    file: BinaryIO, start: int, size: int, header: struct.Struct, align: int, counts_itself: int = 0, most: int = MAX_CHUNKS
) -> Iterator[tuple[bytes, int, int]]:
    """(id, start of the data, declared data size) of the chunks of an IFF-like file.

    `align`: padding of chunks; `counts_itself`: bytes of the header in the declared size.
    """
    position = start
    for _ in range(most):
        if position + header.size > size:
            return
        name, declared = header.unpack(read(file, position, header.size))
        declared -= counts_itself
        yield name, position + header.size, declared
        if declared < 0:
            return
        position += header.size + declared + (-declared) % align
    raise too_many_parts()


def walk_wav(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    start = tag_end(read(file, 0, HEAD_BYTES))
    form = read(file, start, 4)
    header = struct.Struct(">4sI" if form == b"RIFX" else "<4sI")
    data_size_64: int | None = None
    codec, frame_bytes, channels, rate = 0, 1, 0, 0
    for name, at, declared in chunks(file, start + 12, size, header, align=2):
        if name == b"ds64" and form in (b"RF64", b"BW64"):
            sizes = read(file, at, 16)
            data_size_64 = struct.unpack("<QQ", sizes)[1] if len(sizes) == 16 else None
        elif name == b"fmt ":
            fields = read(file, at, 16)
            if len(fields) == 16:
                codec, channels, rate, _, frame_bytes, _ = struct.unpack(header.format[0] + "HHIIHH", fields)
                if channels == 0 or rate == 0:
                    raise DecodeError("corrupt", f"the header declares {channels} channels at {rate} Hz")
        elif name == b"data":
            if form in (b"RF64", b"BW64") and declared == 0xFFFFFFFF and data_size_64 is not None:
                declared = data_size_64 if data_size_64 < 2**63 else 0
            streamed = declared in STREAMED_SIZES or 0 <= SOX_STREAMED_SIZE - declared < max(frame_bytes, 1)
            if at + declared > size and not streamed:
                raise truncated(at + declared, size, "the sound data")
            # A 32-bit size that overflowed, or data after an unknown size, would not be read.
            if declared and ((streamed and declared < size - at) or size - at - declared >= 2**32):
                raise DecodeError("corrupt", f"{size - at} bytes of sound, more than WAV can count ({declared} declared)")
            if declared == 0:
                # libsndfile believes a size of 0; what follows is sound unless it is a valid chunk.
                follow = read(file, at, 8)
                if at == size or (len(follow) == 8 and _fits(follow, header, size - at)):
                    raise DecodeError("too short", "no samples")
            sound = size - at if streamed else declared
            if codec in PLAIN_WAV_CODECS and frame_bytes:
                check_bound(sound // frame_bytes, rate, channels, max_seconds)
            refuse_zeros(file, at + sound, size)
            readable = start == 0 and declared != 0 and codec in SNDFILE_WAV_CODECS
            return Layout(sndfile=readable, streamed=streamed)
        elif at + declared > size:
            raise truncated(at + declared, size, f"chunk {name.decode('latin-1')!r}")
    raise DecodeError("truncated", "the file ends before its sound data")


def _fits(follow: bytes, header: struct.Struct, room: int) -> bool:
    name, declared = header.unpack(follow)
    return name in (b"LIST", b"id3 ", b"ID3 ", b"bext", b"fact", b"cue ", b"smpl", b"JUNK", b"PEAK") and 8 + declared <= room


def walk_w64(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    for name, at, declared in chunks(file, 40, size, struct.Struct("<16sQ"), align=8, counts_itself=24):
        if name[:4] == b"data":
            streamed = declared >= 2**62
            if at + declared > size and not streamed:
                raise truncated(at + declared, size, "the sound data")
            if not streamed:
                refuse_zeros(file, at + declared, size)
            return Layout(sndfile=True, streamed=streamed)
    raise DecodeError("truncated", "the file ends before its sound data")


def walk_aiff(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    seen = set()
    for name, at, declared in chunks(file, 12, size, struct.Struct(">4sI"), align=2):
        seen.add(name)
        if name == b"SSND" and declared in STREAMED_SIZES:
            return Layout(sndfile=True, streamed=True)
        if at + declared > size:
            raise truncated(at + declared, size, f"chunk {name.decode('latin-1')!r}")
        if {b"COMM", b"SSND"} <= seen:  # what follows is not needed
            refuse_zeros(file, at + declared, size)
            return Layout(sndfile=True)
    if b"COMM" in seen:  # allowed if there are no samples
        raise DecodeError("too short", "no samples")
    raise DecodeError("truncated", "the file ends before its sound data")


def walk_au(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    head = read(file, 0, 24)
    if len(head) < 24:
        raise DecodeError("truncated", "the file ends inside its header")
    start, declared = struct.unpack(">II" if head[:4] == b".snd" else "<II", head[4:12])
    if declared != 0xFFFFFFFF:
        if start + declared > size:
            raise truncated(start + declared, size, "the sound data")
        refuse_zeros(file, start + declared, size)
    return Layout(sndfile=True)


def walk_caf(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    for name, at, declared in chunks(file, 8, size, struct.Struct(">4sq"), align=1):
        if name == b"data" and declared == -1:
            return Layout(sndfile=True, streamed=True)
        if at + declared > size and name in (b"data", b"pakt", b"desc", b"kuki"):
            raise truncated(at + declared, size, f"chunk {name.decode('latin-1')!r}")
    return Layout(sndfile=True)


def walk_avi(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    header = struct.Struct("<4sI")
    for name, at, declared in chunks(file, 0, size, header, align=2):
        if name != b"RIFF":
            break
        if declared in STREAMED_SIZES:
            return Layout(sndfile=False, streamed=True)
        if at + declared > size:
            raise truncated(at + declared, size, "the RIFF chunk")
        for part, inside, length in chunks(file, at + 4, at + declared, header, align=2):
            if part == b"LIST" and read(file, inside, 4) == b"movi":
                # A preallocated, incomplete download has zeros at its end.
                end = min(inside + length, at + declared)
                for packet, data, _ in chunks(file, inside + 4, end, header, align=2, most=MAX_FRAMES):
                    if packet == b"\0\0\0\0":
                        if (hole := zeros_end(file, data, end) - data) > AVI_PADDING:
                            raise DecodeError("corrupt", f"{hole} zeros where a packet should start, at byte {data - header.size}")
                        break  # ffmpeg finds packets after a few zeros
    return Layout(sndfile=False)
