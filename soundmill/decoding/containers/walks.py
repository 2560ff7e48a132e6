"""Walks over containers: formats of chunks, as in IFF, and others that declare the size of their data (WAV, Wave64, AIFF, AU, CAF,
AVI); raw streams, frame by frame (MPEG audio, AAC in ADTS, AMR, MLP); and FLAC's own header."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import BinaryIO

from soundmill.decoding.containers import layout
from soundmill.decoding.containers.layout import DecodeError, Layout, read, refuse_joined, too_many_parts, truncated

PLAIN_WAV_CODECS = (1, 3, 6, 7, 0xFFFE)  # with frames of one sample per channel
BLOCK_CODECS = (2, 0x11, 0x31, 0x61, 0x62, 0x69)  # MS ADPCM, IMA ADPCM and its kin, GSM 6.10
# ADPCM of OKI, Dialogic, Yamaha, NMS, Creative, Flash, G.721, G.726.
BIT_CODECS = (0x10, 0x14, 0x17, 0x20, 0x38, 0x40, 0x45, 0x64, 0x200, 0x5346)
# PCM, MS ADPCM, float, A-law, µ-law, IMA ADPCM, GSM 6.10, NMS ADPCM, G.721, extensible; the length of MP3 would be an estimate.
SNDFILE_WAV_CODECS = (1, 2, 3, 6, 7, 0x11, 0x31, 0x38, 0x40, 0xFFFE)
# Chunks that follow the sound, of WAV, Wave64, AIFF and CAF, in lower case.
FOLLOWING = frozenset(
    f"{name:4}".encode()
    for name in "list id3 bext fact cue smpl junk peak levl mark summ comm anno name auth (c) inst midi aesd appl comt chan fver "
    "free info strg uuid kuki pakt umid edct".split()
)
AVI_PADDING = 4096  # zeros up to a sector or page
AVI_JITTER = 0.2  # seconds by which packets, beside the longest, may come late


def chunks(
    file: BinaryIO,
    start: int,
    size: int,
    header: struct.Struct,
    align: int,
    counts_itself: int = 0,
    most: int = layout.MAX_CHUNKS,
    entered: bytes = b"",
) -> Iterator[tuple[bytes, int, int]]:
    """(id, start of the data, its declared size) of IFF-like chunks, padded to `align`; a size counts `counts_itself` more.

    Instead of the chunks `entered`, those in them.
    """
    position = start
    for _ in range(most):
        if position + header.size > size:
            return
        name, declared = header.unpack(read(file, position, header.size))
        if name == entered:
            position += header.size + 4
            continue
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
    unsure = not (wave64 or long) and layout.is_unknown_size(declared)
    known = 0 < declared <= room and (not unsure or _chunk_follows(file, at + declared, size, header))
    streamed = not (known or declared == room) and _is_unknown(file, at, declared, size, header)
    if (not known and 0 < declared < room) or (not wave64 and room - declared >= 2**32 > declared > 0):
        # A 32-bit size that overflowed, or data after an unknown size, would not be read.
        raise DecodeError("corrupt", f"{room} bytes of sound, more than WAV can count ({declared} declared)")
    sound = room if streamed else declared
    frames = fmt.frames(sound, samples) if fmt else layout.UNKNOWN_FRAMES
    if fmt and fmt.codec in PLAIN_WAV_CODECS and frames < layout.UNKNOWN_FRAMES:
        layout.check_bound(frames, fmt.rate, fmt.channels, max_seconds)
    refuse_joined(file, at + sound, size, rb"riff.{20}wave" if wave64 else re.escape(form) + b".{4}WAVE")
    readable = fmt is None or fmt.codec in SNDFILE_WAV_CODECS
    width = header.format[0] + ("Q" if wave64 else "I")
    length = struct.pack(width, sound + 24 if wave64 else min(sound, 0xFFFFFFFF))
    # Of a long form libsndfile reads the size in `ds64` alone.
    patches = ((0, b"RIFF" if long else form), (at - len(length), length)) if streamed or (long and declared != long_size) else ()
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

    def frames(self, sound: int, declared: int) -> int:
        """Samples per channel in `sound` bytes: `declared`, if the last blocks are that full, else those of whole blocks."""
        if self.codec in PLAIN_WAV_CODECS:
            plain = self.block_bytes == self.channels * ((self.bits + 7) // 8) > 0
            return sound // self.block_bytes if plain else layout.UNKNOWN_FRAMES
        if self.codec in BIT_CODECS and self.bits:
            counted = sound * 8 // (self.bits * self.channels)
            return declared if counted - (1 << 14) < declared <= counted else layout.UNKNOWN_FRAMES
        if self.codec in BLOCK_CODECS and self.block_bytes and self.block_frames:
            whole, rest = divmod(sound, self.block_bytes)
            least, most = (whole - 1) * self.block_frames, (whole + (rest > 1)) * self.block_frames
            return declared if max(least, 0) < declared <= most else whole * self.block_frames
        return layout.UNKNOWN_FRAMES


def _is_unknown(file: BinaryIO, at: int, declared: int, size: int, header: struct.Struct | None, head: int = 0) -> bool:
    """Whether data at `at`, of them `head` bytes no sound, last to the end, their size unknown; DecodeError if cut or empty."""
    room = size - at
    if layout.is_unknown_size(declared - head) and (declared > room or declared <= head):
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
            refuse_joined(file, at + declared, size, rb"FORM.{4}AIF[FC]")
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
    refuse_joined(file, start + declared, size, re.escape(head[:4]))
    return Layout(sndfile=True)


def walk_caf(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    header = struct.Struct(">4sq")
    for name, at, declared in chunks(file, 8, size, header, align=1):
        if name == b"data" and _is_unknown(file, at, declared, size, header, head=4):
            return Layout(sndfile=True, streamed=True, patches=((at - 8, struct.pack(">q", size - at)),))
        if name == b"data":
            refuse_joined(file, at + declared, size, re.escape(b"caff\0\1\0\0"))
        if at + declared > size and name in (b"pakt", b"desc", b"kuki"):
            raise truncated(at + declared, size, f"chunk {name.decode('latin-1')!r}")
    return Layout(sndfile=True)


def walk_avi(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    """Packets have no times: they last as long as their bytes or number say. So sound that lacks packets would move ahead."""
    streams: dict[int, tuple[bytes, float, int]] = {}  # kind; seconds and bytes (0: a packet) of a unit
    promised = 0.0  # seconds of sound by its header
    pictures = sound = counted = longest = 0.0  # seconds; `counted`: of sound, with empty packets
    times: list[float] = []  # of each packet with sound
    leads: list[float] = []  # by which pictures or empty packets are ahead of it
    for part, inside, length in _avi_parts(file, size):
        if part == b"strh":
            kind, scale, rate, units, unit = struct.unpack("<4s16xII4xI8xI", read(file, inside, 48).ljust(48, b"\0"))
            first = all(kind != other for other, *_ in streams.values())
            if first and kind == b"auds":
                promised = units * scale / max(rate, 1)
            streams[len(streams)] = kind if first else b"", scale / max(rate, 1), unit
        elif part[:2].isdigit() and part[2:] != b"pc":  # a palette
            kind, seconds, unit = streams.get(int(part[:2]), (b"", 0.0, 0))
            lasts = seconds * (length / unit if unit else 1)
            longest = max(longest, lasts)
            if kind == b"vids":
                pictures += lasts
            elif kind == b"auds":
                if length:
                    times.append(sound)
                    leads.append(max(pictures, counted) - sound)
                    sound += lasts
                counted += lasts
    leads.append(max(pictures, counted) - sound)
    least = list(accumulate(reversed(leads), min))[::-1]  # from each packet on
    steps = zip(accumulate(leads, max), least[1:], times[1:], strict=False)
    gaps = [(after - before, at) for before, after, at in steps if after - before > longest + AVI_JITTER]
    if 0 < len(gaps) <= max(1, len(times) // 10):  # if there are more, the header has wrong rates
        raise DecodeError("gap", f"the packets leave {gaps[0][0]:.3f} s of sound out at {gaps[0][1]:.3f} s")
    streamed = layout.is_unknown_size(int.from_bytes(read(file, 4, 4), "little"))
    if not (streamed or pictures) and sound < promised - longest - AVI_JITTER:  # a film may be longer than its sound
        raise DecodeError("truncated", f"{sound:.3f} s of sound, {promised:.3f} s declared")
    return Layout(sndfile=False, streamed=streamed)


def _avi_parts(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int, int]]:
    """(id, start of the data, its declared size) of all chunks in lists, up to zeros."""
    header = struct.Struct("<4sI")
    for name, at, declared in chunks(file, 0, size, header, align=2):
        if name != b"RIFF":
            break
        end = size if layout.is_unknown_size(declared) else at + declared
        if end > size:
            raise truncated(end, size, "the RIFF chunk")
        for part, inside, length in chunks(file, at + 4, end, header, align=2, most=layout.MAX_FRAMES, entered=b"LIST"):
            if part == b"\0\0\0\0":
                # A preallocated, incomplete download has zeros at its end.
                if (hole := layout.zeros_end(file, inside, end) - inside) > AVI_PADDING:
                    raise DecodeError("corrupt", f"{hole} zeros where a packet should start, at byte {inside - header.size}")
                return  # ffmpeg finds packets after a few zeros
            yield part, inside, length


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
            tag = layout.tag_end_at(file, position, size, header)
            if tag is not None:
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


def walk_voc(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    """DecodeError if another file follows the blocks, of types 1 to 9: a decoder ends there."""
    position = int.from_bytes(read(file, 20, 2), "little")
    for _ in range(layout.MAX_CHUNKS):
        kind, *length = read(file, position, 4).ljust(4, b"\0")
        if not 1 <= kind <= 9:
            break
        position += 4 + int.from_bytes(length, "little")
    refuse_joined(file, position, size, b"Creative Voice File\x1a")
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
    # A streamed FLAC declares no length; libsndfile cannot read it, ffmpeg can.
    return Layout(sndfile=total > 0, md5=info[22:38] if any(info[22:38]) else None, bits=bits)
