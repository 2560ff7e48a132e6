"""Formats of chunks, as in IFF, and others that declare the size of their data: WAV, Wave64, AIFF, AU, CAF, AVI."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from soundmill.decoding.containers.layout import (
    MAX_CHUNKS,
    MAX_FRAMES,
    DecodeError,
    Layout,
    check_bound,
    is_unknown_size,
    read,
    refuse_zeros,
    too_many_parts,
    truncated,
    zeros_end,
)

PLAIN_WAV_CODECS = (1, 3, 6, 7, 0xFFFE)  # with frames of one sample per channel
BLOCK_CODECS = (2, 0x11, 0x31, 0x61, 0x62, 0x69)  # MS ADPCM, IMA ADPCM and its kin, GSM 6.10
BIT_CODECS = (0x10, 0x14, 0x17, 0x20, 0x38, 0x40, 0x45, 0x64, 0x200)  # ADPCM of OKI, Dialogic, Yamaha, NMS, Creative, G.721, G.726
# PCM, MS ADPCM, float, A-law, µ-law, IMA ADPCM, GSM 6.10, NMS ADPCM, extensible; the length of MP3 would be an estimate.
SNDFILE_WAV_CODECS = (1, 2, 3, 6, 7, 0x11, 0x31, 0x38, 0xFFFE)
# Chunks that follow the sound, of WAV, Wave64, AIFF and CAF, in lower case.
FOLLOWING = frozenset(
    f"{name:4}".encode()
    for name in "list id3 bext fact cue smpl junk peak levl mark summ comm anno name auth (c) inst midi aesd appl comt chan fver "
    "free info strg uuid kuki pakt umid edct".split()
)
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
    """WAV in its forms RIFF, RIFX, RF64, BW64, and Wave64, whose chunks have GUIDs that begin with WAV's names."""
    form = read(file, 0, 4)
    wave64, long = form == b"riff", form in (b"RF64", b"BW64")
    header = struct.Struct("<16sQ" if wave64 else ">4sI" if form == b"RIFX" else "<4sI")
    fmt, long_size, samples = None, 0, 0
    parts = chunks(file, 40 if wave64 else 12, size, header, 8 if wave64 else 2, 24 if wave64 else 0)
    for name, at, declared in parts:
        name = name[:4]
        if name == b"data":
            break
        if name == b"ds64" and long and len(sizes := read(file, at, 24)) == 24:
            _, long_size, samples = struct.unpack("<QQQ", sizes)
        elif name == b"fmt ":
            fmt = _Format.read(file, at, header.format[0])
        elif name == b"fact" and not (samples and long):
            samples = int.from_bytes(read(file, at, min(declared, 8)), "big" if form == b"RIFX" else "little")
        elif at + declared > size:
            raise truncated(at + declared, size, f"chunk {name.decode('latin-1')!r}")
    else:
        raise DecodeError("truncated", "the file ends before its sound data")
    if long and declared == 0xFFFFFFFF:
        declared = long_size
    room = size - at
    known = 0 < declared <= room and (
        wave64 or long or not is_unknown_size(declared) or _chunk_follows(file, at + declared, size, header)
    )
    streamed = not (known or declared == room) and _is_unknown(file, at, declared, size, header)
    if (not known and 0 < declared < room) or (not wave64 and room - declared >= 2**32 > declared > 0):
        # A 32-bit size that overflowed, or data after an unknown size, would not be read.
        raise DecodeError("corrupt", f"{room} bytes of sound, more than WAV can count ({declared} declared)")
    sound = room if streamed else declared
    frames = fmt and fmt.frames(sound, samples)
    if fmt and frames and fmt.codec in PLAIN_WAV_CODECS:
        check_bound(frames, fmt.rate, fmt.channels, max_seconds)
    refuse_zeros(file, at + sound, size)
    readable = fmt is None or fmt.codec in SNDFILE_WAV_CODECS
    width = header.format[0] + ("Q" if wave64 else "I")
    length = struct.pack(width, room + 24 if wave64 else min(room, 0xFFFFFFFF))
    patches = ((0, b"RIFF" if long else form), (at - len(length), length)) if streamed else ()
    return Layout(sndfile=readable, streamed=streamed, frames=frames, patches=patches)


@dataclass(frozen=True)
class _Format:
    """Fields of WAV's chunk `fmt `."""

    codec: int
    channels: int
    rate: int
    block_bytes: int
    bits: int
    block_frames: int  # of block codecs, which declare it

    @staticmethod
    def read(file: BinaryIO, at: int, order: str) -> _Format | None:
        fields = read(file, at, 20)
        if len(fields) < 20:
            return None
        codec, channels, rate, _, block_bytes, bits, _, block_frames = struct.unpack(order + "HHIIHHHH", fields)
        if channels == 0 or rate == 0:
            raise DecodeError("corrupt", f"the header declares {channels} channels at {rate} Hz")
        return _Format(codec, channels, rate, block_bytes, bits, block_frames)

    def frames(self, sound: int, declared: int) -> int | None:
        """Samples per channel in `sound` bytes: `declared`, if the last blocks are that full, else those of whole blocks."""
        if self.codec in PLAIN_WAV_CODECS:
            plain = self.block_bytes == self.channels * ((self.bits + 7) // 8) > 0
            return sound // self.block_bytes if plain else None
        if self.codec in BIT_CODECS and self.bits:
            counted = sound * 8 // (self.bits * self.channels)
            return declared if counted - (1 << 14) < declared <= counted else None
        if self.codec in BLOCK_CODECS and self.block_bytes and self.block_frames:
            whole, rest = divmod(sound, self.block_bytes)
            least, most = (whole - 1) * self.block_frames, (whole + (rest > 1)) * self.block_frames
            return declared if max(least, 0) < declared <= most else whole * self.block_frames
        return None


def _is_unknown(file: BinaryIO, at: int, declared: int, size: int, header: struct.Struct | None, head: int = 0) -> bool:
    """Whether data at `at`, of which `head` bytes are not sound, lasts to the end because its size was unknown when it was written.

    DecodeError if it is cut, or empty.
    """
    room = size - at
    if is_unknown_size(declared - head) and (declared > room or declared <= head):
        if room <= head or (header and declared <= head and _chunk_follows(file, at + max(declared, 0), size, header)):
            raise DecodeError("too short", "no samples")
        return True
    if declared > room:
        raise truncated(at + declared, size, "the sound data")
    return False


def _chunk_follows(file: BinaryIO, at: int, size: int, header: struct.Struct) -> bool:
    """Whether a known chunk begins at `at`, or after a byte of padding, that fits into the file."""
    for start in (at, at + 1):
        follow = read(file, start, header.size)
        if len(follow) == header.size:
            name, declared = header.unpack(follow)
            if name[:4].lower() in FOLLOWING and declared <= size - start:
                return True
    return False


def walk_aiff(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    header = struct.Struct(">4sI")
    seen = set()
    for name, at, declared in chunks(file, 12, size, header, align=2):
        seen.add(name)
        if name == b"SSND" and _is_unknown(file, at, declared, size, header, head=8):
            return Layout(sndfile=True, streamed=True, patches=((at - 4, struct.pack(">I", min(size - at, 0xFFFFFFFF))),))
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
    fields = struct.Struct(">II" if head[:4] == b".snd" else "<II")
    start, declared = fields.unpack(head[4:12])
    if _is_unknown(file, start, declared, size, None):
        return Layout(sndfile=True, streamed=True, patches=((4, fields.pack(start, min(size - start, 0xFFFFFFFF))),))
    refuse_zeros(file, start + declared, size)
    return Layout(sndfile=True)


def walk_caf(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    header = struct.Struct(">4sq")
    for name, at, declared in chunks(file, 8, size, header, align=1):
        if name == b"data" and _is_unknown(file, at, declared, size, header, head=4):
            return Layout(sndfile=True, streamed=True, patches=((at - 8, struct.pack(">q", size - at)),))
        if at + declared > size and name in (b"pakt", b"desc", b"kuki"):
            raise truncated(at + declared, size, f"chunk {name.decode('latin-1')!r}")
    return Layout(sndfile=True)


def walk_avi(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    header = struct.Struct("<4sI")
    for name, at, declared in chunks(file, 0, size, header, align=2):
        if name != b"RIFF":
            break
        if is_unknown_size(declared) and at + declared != size:
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
