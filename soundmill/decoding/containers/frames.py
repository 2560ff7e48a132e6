"""Raw streams, frame by frame: MPEG audio, AAC in ADTS, AMR, MLP; and FLAC's own header."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import BinaryIO

from soundmill.decoding.containers.layout import HEAD_BYTES, MAX_FRAMES, Layout, read, too_many_parts, truncated, zeros_end
from soundmill.decoding.containers.tags import tag_end, tag_end_at
from soundmill.decoding.limits import DecodeError

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


def _amr_nb_frame(header: bytes) -> tuple[int, int, int, int] | None:
    return (_AMR_NB_BYTES[header[0] >> 3 & 15], 160, 8000, 1) if header and not header[0] & 0x83 else None


def _amr_wb_frame(header: bytes) -> tuple[int, int, int, int] | None:
    return (_AMR_WB_BYTES[header[0] >> 3 & 15], 320, 16000, 1) if header and not header[0] & 0x83 else None


def _mlp_frame(header: bytes) -> tuple[int, int, int, int] | None:
    size = ((header[0] & 15) << 8 | header[1]) * 2 if len(header) >= 4 else 0
    return (size, 0, 1, 1) if size >= 4 else None


def _walk_frames(file: BinaryIO, position: int, size: int, frame: FrameParser, max_seconds: float) -> tuple[int, int, float]:
    """(frames, samples, seconds) from `position` to the end. Bytes between frames that are not a tag raise DecodeError.

    So does a change of rate or channels, where libmpg123 ends silently and ffmpeg restarts its count.
    """
    count, total, seconds, steps = 0, 0, 0.0, 0
    form: tuple[int, int] | None = None
    free = True  # no frame since the beginning, or a tag
    zeros = False  # since the last frame or tag
    while position < size:
        steps += 1
        if steps > MAX_FRAMES:
            raise too_many_parts()
        header = read(file, position, 10)
        parsed = frame(header)
        if parsed is None:
            tag = tag_end_at(file, position, size, header)
            if tag is not None:
                position, free, zeros = tag, True, False
                continue
            after = zeros_end(file, position, size)
            if after == size or (free and count and after == position):  # padding at the end, or no more sound after a tag
                break
            if count and size - position <= FILLED_BYTES and not read(file, position, FILLED_BYTES).strip(FILLING):
                break
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
        if count == 1:  # the first may be an encoder's note
            form = rate, channels
        elif form is not None and form != (rate, channels):
            raise DecodeError("corrupt", f"the rate or number of channels changes at byte {position}; cut the file there")
        position += length
        free = zeros = False
        count += 1
        total += samples
        seconds += samples / rate
        if seconds > max_seconds:
            raise DecodeError("too long", f"more than {max_seconds:g} s")
    return count, total, seconds


def walk_mpeg_audio(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    start = tag_end(read(file, 0, HEAD_BYTES))
    header = read(file, start, 7)
    first = mpeg_frame(header)
    if first is None:
        return Layout(sndfile=False)
    count, total, _ = _walk_frames(file, start, size, mpeg_frame, max_seconds)
    estimated = Layout(sndfile=True, exact=False, at_least=total)
    content = read(file, start, min(first[0], 256))
    tag = re.search(rb"(Xing|Info)\x00\x00\x00.", content, re.DOTALL)
    if tag is None or not content[tag.end() - 1] & 1:
        return estimated
    declared = int.from_bytes(content[tag.end() : tag.end() + 4], "big")
    if abs(declared - (count - 1)) > 1:  # the tag's own frame is counted by some encoders
        raise DecodeError("truncated" if declared > count - 1 else "corrupt", f"{declared} frames declared, {count - 1} found")
    return Layout(sndfile=True)


def walk_adts(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    _, _, seconds = _walk_frames(file, tag_end(read(file, 0, HEAD_BYTES)), size, adts_frame, max_seconds)
    return Layout(sndfile=False, seconds=seconds)


def walk_amr(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    head = read(file, 0, 9)
    if head.startswith(b"#!AMR-WB\n"):
        _walk_frames(file, 9, size, _amr_wb_frame, max_seconds)
    elif head.startswith(b"#!AMR\n"):
        _walk_frames(file, 6, size, _amr_nb_frame, max_seconds)
    return Layout(sndfile=False)


def walk_mlp(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    _walk_frames(file, 0, size, _mlp_frame, max_seconds)
    return Layout(sndfile=False)


def walk_flac(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    start = tag_end(read(file, 0, HEAD_BYTES))
    info = read(file, start + 4, 38)
    if len(info) < 38 or info[0] & 0x7F != 0:
        raise DecodeError("truncated" if len(info) < 38 else "corrupt", "no stream information at the start")
    bits = ((info[16] & 1) << 4 | info[17] >> 4) + 1
    total = (info[17] & 15) << 32 | int.from_bytes(info[18:22], "big")
    # A streamed FLAC declares no length; libsndfile cannot read it, ffmpeg can.
    return Layout(sndfile=start == 0 and total > 0, md5=info[22:38] if any(info[22:38]) else None, bits=bits)
