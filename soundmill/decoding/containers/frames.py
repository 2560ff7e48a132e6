"""Walks over raw streams, frame by frame (MPEG audio, AAC in ADTS, WavPack, AMR, MLP), TTA's seek table, and FLAC's own header."""

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO

from soundmill.decoding.containers import layout
from soundmill.decoding.containers.layout import DecodeError, Layout, read, refuse_joined, too_many_parts, truncated

FILLED_BYTES, FILLING = 4096, b"\0\xff \r\n\t"  # what tools leave at the end of a stream
# Frames of raw streams: header bytes → (frame bytes, samples, sample rate, channels), None where no frame starts.
FrameParser = Callable[[bytes], "tuple[int, int, int, int] | None"]

_MPEG_RATES = (44100, 48000, 32000)
_MPEG_KBPS = {  # (MPEG-1, layer)
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_ADTS_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
_AMR_NB_BYTES = (13, 14, 16, 18, 20, 21, 27, 32, 6, 1, 1, 1, 1, 1, 1, 1)
_AMR_WB_BYTES = (18, 24, 33, 37, 41, 47, 51, 59, 61, 6, 1, 1, 1, 1, 1, 1)


def mpeg_frame(header: bytes) -> tuple[int, int, int, int] | None:
    """MPEG-1/2/2.5 audio layers I–III (ISO 11172-3, 13818-3); free-format frames have no size and are not walked."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
    bitrate, rate_index, padding = header[2] >> 4, header[2] >> 2 & 3, header[2] >> 1 & 1
    if version == 1 or layer == 4 or bitrate in (0, 15) or rate_index == 3:
        return None
    rate = _MPEG_RATES[rate_index] >> {3: 0, 2: 1, 0: 2}[version]
    bits_per_second = 1000 * _MPEG_KBPS[version == 3, layer][bitrate - 1]
    channels = 1 if header[3] >> 6 == 3 else 2
    if layer == 1:
        return (12 * bits_per_second // rate + padding) * 4, 384, rate, channels
    samples = 576 if layer == 3 and version != 3 else 1152
    return samples // 8 * bits_per_second // rate + padding, samples, rate, channels


def adts_frame(header: bytes) -> tuple[int, int, int, int] | None:
    """AAC in ADTS (ISO 13818-7)."""
    if len(header) < 7 or header[0] != 0xFF or header[1] & 0xF6 != 0xF0:
        return None
    rate_index = header[2] >> 2 & 15
    size = (header[3] & 3) << 11 | header[4] << 3 | header[5] >> 5
    if rate_index >= len(_ADTS_RATES) or size < 7:
        return None
    return size, 1024 * (1 + (header[6] & 3)), _ADTS_RATES[rate_index], (header[2] & 1) << 2 | header[3] >> 6


def _wavpack_block(header: bytes) -> tuple[int, int, int, int] | None:
    return (int.from_bytes(header[4:8], "little") + 8, 0, 1, 1) if header.startswith(b"wvpk") else None


def _mlp_frame(header: bytes) -> tuple[int, int, int, int] | None:
    size = ((header[0] & 15) << 8 | header[1]) * 2 if len(header) >= 4 else 0
    return (size, 0, 1, 1) if size >= 4 else None


@dataclass
class _Frames:
    """What a walk over frames found; `pieces`: (start, end) of frames without a tag or padding between them."""

    count: int = 0
    samples: int = 0
    seconds: float = 0.0
    pieces: list[tuple[int, int]] = field(default_factory=list)
    declared: int | None = None  # frames, by the first note
    by_xing: bool = False  # libmpg123 does not know the other note


# Notes of encoders, in frames of their own, with a number of frames: Xing's and LAME's, Fraunhofer's.
_NOTE = re.compile(rb"(?:Xing|Info)\0\0\0.(.{4})|VBRI.{10}(.{4})", re.DOTALL)
_LONGEST_NOTE_HEAD = 256


def _walk_frames(file: BinaryIO, position: int, size: int, frame: FrameParser, max_seconds: float) -> _Frames:
    """Walk from `position` to the end. Bytes between frames that are not a tag raise DecodeError.

    So does a change of rate or channels, where libmpg123 ends silently and ffmpeg restarts its count.
    """
    found = _Frames()
    form: tuple[int, int] | None = None
    free = True  # no frame since the beginning, or a tag
    zeros = False  # since the last frame or tag
    for _ in range(layout.MAX_FRAMES):
        if position >= size:
            return found
        header = read(file, position, 10)
        parsed = frame(header)
        if parsed is None:
            if (tag := layout.tag_end_at(file, position, size, header)) is not None:
                position, free, zeros = tag, True, False
                continue
            after = layout.zeros_end(file, position, size)
            # Padding at the end, or no more sound after a tag.
            if after == size or (free and found.count and after == position):
                return found
            if found.count and size - position <= FILLED_BYTES and not read(file, position, FILLED_BYTES).strip(FILLING):
                return found
            if after == position:
                reason = "truncated" if size - position < 10 else "corrupt"
                raise DecodeError(reason, f"no frame where one should start, at byte {position}")
            position, zeros = after, True
            continue
        if zeros and not free:  # before the first frame and around tags they are padding, between frames a hole
            raise DecodeError("corrupt", f"zeros between frames, up to byte {position}")
        length, samples, rate, channels = parsed
        if position + length > size:
            raise truncated(position + length, size, "the last frame")
        if free and frame is mpeg_frame and (note := _NOTE.search(read(file, position, min(length, _LONGEST_NOTE_HEAD)))):
            if found.count == 0 and (note[2] or note[0][7] & 1):
                found.declared, found.by_xing = int.from_bytes(note[1] or note[2], "big"), note[1] is not None
            position, free = position + length, not found.count
            continue
        if found.count == 1:  # the first may be an encoder's note
            form = rate, channels
        elif form is not None and form != (rate, channels):
            raise DecodeError("corrupt", f"the rate or number of channels changes at byte {position}; cut the file there")
        if found.pieces and found.pieces[-1][1] == position:
            found.pieces[-1] = found.pieces[-1][0], position + length
        else:
            found.pieces.append((position, position + length))
        position += length
        free = zeros = False
        found.count += 1
        found.samples += samples
        found.seconds += samples / rate
        if found.seconds > max_seconds:
            raise DecodeError("too long", f"more than {max_seconds:g} s")
    raise too_many_parts()


def walk_mpeg_audio(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    start = layout.sound_start(file, size)
    end = layout.sound_end(file, start, size)
    found = _walk_frames(file, start, end, mpeg_frame, max_seconds)
    declared = found.declared
    if declared is not None:
        if declared > found.count + 1:  # some encoders count their note
            raise DecodeError("truncated", f"{declared} frames declared, {found.count} found")
        if found.by_xing and declared >= found.count - 1:
            return Layout(sndfile=True, exact=declared <= found.count, pieces=((start, end),))
    # libsndfile ends at the declared frames, even if files were joined; libmpg123 complains of what follows, except ID3v1.
    clean = declared is None and len(found.pieces) == 1 and size - found.pieces[0][1] <= 128
    pieces = ((start, found.pieces[0][1]),) if clean else tuple(found.pieces)  # several are joined for it
    return Layout(sndfile=clean or len(pieces) > 1, exact=False, at_least=found.samples, pieces=pieces)


def walk_adts(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    start = layout.sound_start(file, size)
    found = _walk_frames(file, start, layout.sound_end(file, start, size), adts_frame, max_seconds)
    return Layout(sndfile=False, seconds=found.seconds, pieces=tuple(found.pieces))


def walk_wavpack(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    return Layout(sndfile=False, pieces=tuple(_walk_frames(file, 0, size, _wavpack_block, max_seconds).pieces))


def walk_amr(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    wide = read(file, 0, 9) == b"#!AMR-WB\n"
    sizes, samples, rate = (_AMR_WB_BYTES, 320, 16_000) if wide else (_AMR_NB_BYTES, 160, 8000)

    def frame(header: bytes) -> tuple[int, int, int, int] | None:
        starts = any(header) and not header[0] & 0x83  # zeros are padding, though they could be a damaged frame of the lowest rate
        return (sizes[header[0] >> 3 & 15], samples, rate, 1) if starts else None

    found = _walk_frames(file, 9 if wide else 6, size, frame, max_seconds)
    return Layout(sndfile=False, pieces=((0, found.pieces[-1][1]),) if found.pieces else ())


def walk_tta(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    """DecodeError if another file follows the frames that the seek table lists: a decoder ends there."""
    channels, rate, samples = struct.unpack("<6xH2xII4x", read(file, 0, 22).ljust(22, b"\0"))
    layout.check_bound(samples, rate, channels, max_seconds)
    sizes = read(file, 22, 4 * -(-samples // max(1, 256 * rate // 245)))  # frames of 256/245 s
    end = 22 + len(sizes) + 4 + sum(struct.unpack(f"<{len(sizes) // 4}I", sizes[: len(sizes) // 4 * 4]))
    refuse_joined(file, end, size, re.escape(b"TTA1\1\0"))  # perhaps behind a tag
    return Layout(sndfile=False)


def walk_mlp(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    _walk_frames(file, 0, size, _mlp_frame, max_seconds)
    return Layout(sndfile=False)


def walk_flac(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    info = read(file, 4, 38)
    if len(info) < 38 or info[0] & 0x7F != 0:
        raise DecodeError("truncated" if len(info) < 38 else "corrupt", "no stream information at the start")
    bits = ((info[16] & 1) << 4 | info[17] >> 4) + 1
    total = (info[17] & 15) << 32 | int.from_bytes(info[18:22], "big")
    md5 = info[22:38] if any(info[22:38]) else None
    # Of a streamed FLAC, which declares no length, libsndfile reads nothing; without a checksum, no more than a wrong length says.
    return Layout(sndfile=total > 0 and md5 is not None, md5=md5, bits=bits)
