"""Walks over containers that declare the size of their sound: WAV, Wave64, AIFF, CAF, AVI (chunks as in IFF), AU, VOC, SPHERE."""

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
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
PLAIN_AIFF_CODECS = b"NONE twos sowt in24 in32 42ni 23ni fl32 FL32 fl64 FL64".split()
# Chunks that follow the sound, of WAV, Wave64, AIFF and CAF, in lower case.
FOLLOWING = frozenset(
    f"{name:4}".encode()
    for name in "list id3 bext fact cue smpl junk peak levl mark summ comm anno name auth (c) inst midi aesd appl comt chan fver "
    "free info strg uuid kuki pakt umid edct".split()
)
CHUNK_NAME = re.compile(rb"[ -~]{4}")
Chunk = tuple[bytes, int, int]  # id, start of the data, its declared size
Parts = Callable[[int], Iterator[Chunk]]  # from a position on
MOST_AFTER = 1 << 14  # bytes after declared sound that are neither chunk, tag nor padding
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
) -> Iterator[Chunk]:
    """IFF-like chunks, padded to `align`; a size counts `counts_itself` more.

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
        if align == 2 and declared % 2 and read(file, position - 1, 4) in (b"fmt ", b"data", b"COMM", b"SSND"):
            raise DecodeError("corrupt", f"no byte of padding at {position - 1}, so decoders would miss the chunk after it")
    raise too_many_parts()


def walk_wav(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    """WAV in its forms RIFF, RIFX, RF64, BW64, and Wave64, whose chunks have GUIDs that begin with WAV's names."""
    form = read(file, 0, 4)
    wave64, long = form == b"riff", form in (b"RF64", b"BW64")
    header = struct.Struct("<16sQ" if wave64 else ">4sI" if form == b"RIFX" else "<4sI")
    fmt, long_size, samples = None, 0, 0
    parts = partial(chunks, file, size=size, header=header, align=8 if wave64 else 2, counts_itself=24 if wave64 else 0)
    for name, at, declared in parts(40 if wave64 else 12):
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
    sound = (_chunks_at_end(file, at, size, parts) if streamed else at + declared) - at
    frames = fmt.frames(sound, samples) if fmt else layout.UNKNOWN_FRAMES
    if fmt and fmt.codec in PLAIN_WAV_CODECS and frames < layout.UNKNOWN_FRAMES:
        layout.check_bound(frames, fmt.rate, fmt.channels, max_seconds)
    another = rb"riff.{20}wave" if wave64 else re.escape(form) + b".{4}WAVE"
    if streamed:
        layout.refuse_header(file, at, at + sound, another)
    _refuse_rest(file, at + sound, size, another, parts)
    readable = fmt is None or fmt.codec in SNDFILE_WAV_CODECS
    width = header.format[0] + ("Q" if wave64 else "I")
    length = struct.pack(width, sound + 24 if wave64 else min(sound, 0xFFFFFFFF))
    # Of a long form libsndfile reads the size in `ds64` alone.
    patches = ((0, b"RIFF" if long else form), (at - len(length), length)) if streamed or (long and declared != long_size) else ()
    if wave64 and fmt and fmt.codec == 0xFFFE:  # which libsndfile takes for integers
        patches = (*patches, fmt.extension)
    pieces = ((0, at + sound),) if streamed and at + sound < size else ()
    return Layout(sndfile=readable, streamed=streamed, frames=frames, patches=patches, pieces=pieces)


@dataclass(frozen=True)
class _Format:
    """Fields of WAV's chunk `fmt `."""

    codec: int
    channels: int
    rate: int
    block_bytes: int
    bits: int
    block_frames: int  # of block codecs, which declare it
    extension: tuple[int, bytes]  # position of the codec, and the codec that an extensible format gives

    @staticmethod
    def read(file: BinaryIO, at: int, order: str) -> "_Format | None":
        fields = read(file, at, 20)
        if len(fields) < 20:
            return None
        codec, channels, rate, _, block_bytes, bits, _, block_frames = struct.unpack(order + "HHIIHHHH", fields)
        if channels == 0 or rate == 0:
            raise DecodeError("corrupt", f"the header declares {channels} channels at {rate} Hz")
        return _Format(codec, channels, rate, block_bytes, bits, block_frames, (at, read(file, at + 24, 2)))

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


def _chunks_at_end(file: BinaryIO, at: int, size: int, parts: Parts) -> int:
    """Where chunks start that end exactly with the file; `size` without any. They follow sound of unknown size, from `at` on."""
    first = max(at, size - layout.LYRICS_BYTES)
    for found in re.finditer(rb"(?=[ -~]{4})", read(file, first, size - first)):
        end = 0
        for name, inside, declared in parts(first + found.start()):
            if not CHUNK_NAME.match(name) or inside + declared > size:
                break
            end = inside + declared
        if size <= end + end % 2 <= size + 1:
            return first + found.start()
    return size


def _refuse_rest(file: BinaryIO, end: int, size: int, another: bytes, parts: Parts = lambda _: iter(())) -> None:
    """DecodeError if more follows the declared `end` of the sound than chunks, tags and padding, where a decoder would stop."""
    refuse_joined(file, end, size, another)
    position = end + (end % 2 and not CHUNK_NAME.match(read(file, end, 4)))
    for name, start, declared in parts(position):
        if name[:4] in (b"data", b"SSND"):
            raise DecodeError("corrupt", f"a second chunk of sound starts at byte {start}")
        if not CHUNK_NAME.match(name) or (start + declared > size and name[:4].lower() not in FOLLOWING):
            break
        position = start + declared
    position = layout.tag_end_at(file, position, size, read(file, position, 10)) or position
    rest = layout.sound_end(file, position, layout.padding_start(file, position, size)) - position if position < size else 0
    if rest > MOST_AFTER:
        raise DecodeError("corrupt", f"{rest} bytes follow the sound that the header declares, and are neither a chunk nor a tag")


def _to_the_end(file: BinaryIO, at: int, size: int, another: bytes, parts: Parts, form: str) -> Layout:
    """Sound of unknown size at `at`, to the chunks at the end of the file; `form`: of its size."""
    layout.refuse_header(file, at, size, another)
    end, width = _chunks_at_end(file, at, size, parts), struct.calcsize(form)
    patches = ((at - width, struct.pack(form, min(end - at, 2 ** (8 * width) - 1))),)
    return Layout(sndfile=True, streamed=True, patches=patches, pieces=((0, end),) if end < size else ())


def walk_aiff(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    header, another = struct.Struct(">4sI"), rb"FORM.{4}AIF[FC]"
    parts = partial(chunks, file, size=size, header=header, align=2)
    found: dict[bytes, tuple[int, int]] = {}
    for name, at, declared in parts(12):
        found.setdefault(name, (at, declared))
        if name == b"SSND" and _is_unknown(file, at, declared, size, header, head=8):
            return _to_the_end(file, at, size, another, parts, ">I")
        if at + declared > size:
            raise truncated(at + declared, size, f"chunk {name.decode('latin-1')!r}")
        if {b"COMM", b"SSND"} <= found.keys():  # what follows is not needed
            _refuse_rest(file, at + declared, size, another, parts)
            return Layout(sndfile=True, frames=_aiff_frames(file, found[b"COMM"][0], *found[b"SSND"]))
    if b"COMM" in found:  # allowed if there are no samples
        raise DecodeError("too short", "no samples")
    raise DecodeError("truncated", "the file ends before its sound data")


def _aiff_frames(file: BinaryIO, comm: int, at: int, declared: int) -> int:
    """Samples per channel by `COMM`, if they end before `SSND` does, whose padding libsndfile would read."""
    channels, frames, bits, codec = struct.unpack(">HIH10x4s", read(file, comm, 22).ljust(22, b"\0"))
    end = at + 8 + int.from_bytes(read(file, at, 4), "big") + frames * channels * ((bits + 7) // 8)
    if frames == 0 or end >= at + declared or (read(file, 8, 4) == b"AIFC" and codec not in PLAIN_AIFF_CODECS):
        return layout.UNKNOWN_FRAMES
    _refuse_rest(file, end, at + declared, b"FORM")
    return frames


def walk_au(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    head = read(file, 0, 24)
    if len(head) < 24:
        raise DecodeError("truncated", "the file ends inside its header")
    fields = struct.Struct(">II" if head[:4] == b".snd" else "<II")
    start, declared = fields.unpack(head[4:12])
    if _is_unknown(file, start, declared, size, None):
        layout.refuse_header(file, start, size, re.escape(head[:4]) + b".{8}" + re.escape(head[12:16]))
        return Layout(sndfile=True, streamed=True, patches=((4, fields.pack(start, min(size - start, 0xFFFFFFFF))),))
    _refuse_rest(file, start + declared, size, re.escape(head[:4]))
    return Layout(sndfile=True)


def walk_caf(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    header, another = struct.Struct(">4sq"), re.escape(b"caff\0\1\0\0")
    parts = partial(chunks, file, size=size, header=header, align=1)
    for name, at, declared in parts(8):
        if name == b"data" and _is_unknown(file, at, declared, size, header, head=4):
            return _to_the_end(file, at, size, another, parts, ">q")
        if name == b"data":
            _refuse_rest(file, at + declared, size, another, parts)
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


def walk_voc(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    """DecodeError if decoders would leave out blocks: they stop at what is none, ignore silence and keep the first rate."""
    position, rates = int.from_bytes(read(file, 20, 2), "little"), set()
    for _ in range(layout.MAX_CHUNKS):
        kind, *length = read(file, position, 4).ljust(4, b"\0")
        if not 1 <= kind <= 9:
            break
        head, start = read(file, position + 4, 12), position
        position += 4 + int.from_bytes(length, "little")
        if position > size:
            raise truncated(position, size, f"the block at byte {start}")
        if kind == 3:
            raise DecodeError("gap", f"a block of silence at byte {start}, which decoders leave out")
        if kind in (1, 9):  # others continue it
            rates.add(head[:1] if kind == 1 else head[:4])
    if len(rates) > 1:
        raise DecodeError("corrupt", "the rate changes between blocks; cut the file there")
    _refuse_rest(file, position + 1, size, b"Creative Voice File\x1a")
    return Layout(sndfile=False)


def walk_nist(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    """NIST SPHERE: lines of text declare the size of the header and of the sound."""
    start = int((re.match(rb"NIST_1A\s+(\d+)", read(file, 0, 64)) or ("", 1024))[1])
    fields = dict(re.findall(rb"(\w+) -\w+ (\S+)", read(file, 0, min(start, layout.HEAD_BYTES))))
    if b"," in (coding := fields.get(b"sample_coding", b"pcm")):
        raise DecodeError("unknown codec", f"{coding.decode('latin-1')}; convert it with sph2pipe")
    counts = [fields.get(key, b"1") for key in (b"sample_count", b"channel_count", b"sample_n_bytes")]
    if fields.get(b"sample_count", b"0") == b"0" or not all(count.isdigit() for count in counts):
        return Layout(sndfile=True)
    frames, channels, width = map(int, counts)
    end = start + frames * channels * width
    if end > size:
        raise truncated(end, size, "the sound")
    _refuse_rest(file, end, size, rb"NIST_1A")
    return Layout(sndfile=True, frames=frames, pieces=((0, end),))
