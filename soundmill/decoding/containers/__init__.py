"""The format of a file and whether it is complete, from its bytes, before any decoder reads it.

Decoders silently resynchronise, fill gaps and end early (a cut mp3 or ogg decodes with exit code 0), and some "audio" is a text
list that makes ffmpeg read other files. So the type is sniffed here, text is rejected, and containers whose decoders hide damage
are walked: declared sizes against the file size, checksums of Ogg pages, frames of MPEG audio.
"""

from __future__ import annotations

import csv
import math
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from soundmill.decoding.containers import chunks, frames, layout
from soundmill.decoding.containers.frames import FrameParser, adts_frame, mpeg_frame
from soundmill.decoding.containers.layout import (
    HEAD_BYTES,
    DecodeError,
    Layout,
    read,
    refuse_joined,
    refuse_zeros,
    too_many_parts,
    truncated,
)


@dataclass(frozen=True)
class Kind:
    """A sniffed type; `demuxer`: forced for ffmpeg (None: it may choose a harmless one)."""

    name: str
    demuxer: str | None
    sndfile: bool = False  # libsndfile reads it, ffmpeg is the fallback


UNKNOWN = Kind("unknown", None)


def _read_table(name: str) -> list[tuple[re.Pattern[bytes], dict[str, str]]]:
    """The rows of a table beside this module, each with its `pattern` of a file's first bytes; the first that matches wins."""
    with Path(__file__).with_name(name).open(encoding="ascii", newline="") as file:
        return [(re.compile(row["pattern"].encode(), re.DOTALL), row) for row in csv.DictReader(file)]


_MAGIC = [
    (pattern, Kind(row["kind"], row["demuxer"] or None, sndfile=row["sndfile"] == "yes"))
    for pattern, row in _read_table("magic.csv")
]
_NOT_AUDIO = [(pattern, row["what"]) for pattern, row in _read_table("not_audio.csv")]
_PLAYLIST = re.compile(
    rb"#EXT(M3U|-X-|INF)|ffconcat|\[playlist\]|\[Reference\]|(<\?xml[^>]*>\s*)?<(playlist|asx|MPD|smil)\b|v=0\s", re.IGNORECASE
)
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


def sniff(file: BinaryIO, size: int) -> Kind:
    """The kind of a file of `size` bytes from its first ones; text, playlists and known non-audio raise DecodeError."""
    if size == 0:
        raise DecodeError("empty", "zero bytes")
    head = read(file, 0, HEAD_BYTES)
    _refuse_text(head)
    start = layout.sound_start(file, size)
    body = head
    if start > 0:
        if not (body := read(file, start, HEAD_BYTES)):
            raise DecodeError("truncated", "the file ends inside its tag")
        _refuse_text(body)
    for pattern, kind in _MAGIC:
        if pattern.match(body):
            return kind
    if _follows(body, adts_frame):
        return Kind("adts", "aac")
    if mpeg_frame(body[:7]) and (start > 0 or _follows(body, mpeg_frame)):
        return Kind("mpeg-audio", "mp3", sndfile=True)
    for pattern, what in _NOT_AUDIO:
        if pattern.match(body):
            raise DecodeError("no audio stream", f"this is {what}")
    return UNKNOWN


def is_text(head: bytes) -> bool:
    """Whether a file with this head is text or a playlist, as in `sniff`."""
    try:
        _refuse_text(head)
    except DecodeError:
        return True
    return False


def _refuse_text(head: bytes) -> None:
    """DecodeError for text: audio soon has a control byte, and text has none."""
    text = head
    for bom, encoding in ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")):
        if head.startswith(bom):
            decoded = head[len(bom) :].decode(encoding, "replace")
            if encoding == "utf-8" or "\ufffd" not in decoded[:-1]:
                text = decoded.encode("utf-8", "replace")
            break
    if _PLAYLIST.match(text.lstrip()):
        raise DecodeError("playlist", "a list of other files, not audio")
    if not _CONTROL.search(text):
        raise DecodeError("text", "the file contains text, not audio")


def _follows(body: bytes, frame: FrameParser) -> bool:
    """Whether a second frame, or the end of a very short file, follows the first."""
    first = frame(body[:7])
    return first is not None and (len(body) <= first[0] or frame(body[first[0] : first[0] + 7]) is not None)


# Formats whose zeros at the end may be sound. If they declare the end of the sound, it is checked.
_MAY_END_IN_SILENCE = frozenset("wav w64 aiff au caf ircam nist iff sox voc mp4 unknown".split())


def inspect(kind: Kind, file: BinaryIO, size: int, max_seconds: float, sums_checked: bool = False) -> Layout:
    """Walk the container; sizes beyond the end, bad checksums (unless `sums_checked` before) and cut frames raise DecodeError."""
    if kind.name not in _MAY_END_IN_SILENCE:
        refuse_zeros(file, 0, size)
    if walk := _RAW_WALKS.get(kind.name):
        found = walk(file, size, max_seconds)
        return replace(found, pieces=()) if found.pieces == ((0, size),) else found
    start = layout.sound_start(file, size)
    # What looks like a tag may be sound, if the container declares the end of the sound.
    end = size if kind.name in _MAY_END_IN_SILENCE and kind.name != "mp4" else layout.sound_end(file, start, size)
    part = layout.Part(file, start, end)
    if kind.name in ("ac3", "flac"):
        end = layout.padding_start(file, start, end)
    if kind.name == "ogg":
        found = walk_ogg(part, end - start, sums_checked)
    else:
        walk = _WALKS.get(kind.name)
        found = walk(part, end - start, max_seconds) if walk else Layout(sndfile=kind.sndfile)
        # A container that does not know where its sound ends.
        if found.streamed and walk and not found.pieces and (end := layout.sound_end(file, start, size)) < size:
            found = walk(layout.Part(file, start, end), end - start, max_seconds)
    if found.pieces:  # the walk found padding
        end = start + found.pieces[0][1]
    return replace(found, pieces=((start, end),) if (start, end) != (0, size) else ())


_BOX = re.compile(b"ftyp|moov|mdat|free|skip|wide|uuid|moof|mfra|sidx|styp|meta|udta|pnot|emsg")  # no text that follows them
MOST_OF_INDEX = 1 << 26  # bytes of it that are searched for edits


def walk_mp4(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    position = 0
    indexed, seconds = False, None
    for _ in range(layout.MAX_CHUNKS):
        if position + 8 > size:
            return Layout(sndfile=False, seconds=seconds)
        length, name = struct.unpack(">I4s", read(file, position, 8))
        if length == 1:
            wide = file.read(8)
            if len(wide) < 8:
                raise DecodeError("truncated", "the file ends inside a box header")
            length = int.from_bytes(wide, "big")
        is_box = _BOX.match(name) if position + length > size else all(32 <= byte < 127 for byte in name)
        if 0 < length < 8 or not is_box:
            refuse_joined(file, position, size, b".{4}(ftyp|moov|mdat)")
            return Layout(sndfile=False, seconds=seconds)  # not a box; ffmpeg decides
        if length == 0:  # to the end of the file
            return Layout(sndfile=False, seconds=seconds)
        if position + length > size:
            raise truncated(position + length, size, f"box {name.decode('latin-1')!r}")
        if name == b"moov" and indexed:
            raise DecodeError("corrupt", f"a second index at byte {position}; files joined?")
        if name == b"moov":
            indexed = True
            seconds = _movie_seconds(read(file, position + 8, min(length - 8, MOST_OF_INDEX)))
        position += length
    raise too_many_parts()


def _movie_seconds(content: bytes) -> float | None:
    """Duration in the movie header, if that is the first box in `content` (ISO 14496-12, 8.2.2).

    DecodeError if the first sound has an empty edit (8.6.6) after another: ffmpeg repeats the sound's start instead.
    """
    if len(content) < 40 or content[4:8] != b"mvhd":
        return None
    scale, duration = struct.unpack(">IQ" if content[8] else ">II", content[28:40] if content[8] else content[20:28])
    sound = re.search(rb"hdlr.{8}soun", content, re.DOTALL)
    track = content[: sound.start() if sound else 0].rpartition(b"trak")[2].partition(b"elst")[2]
    form = struct.Struct(">QqI" if track[:1] == b"\1" else ">IiI")
    edits = track[8 : 8 + form.size * int.from_bytes(track[4:8], "big")]
    at = 0
    for length, start, _ in form.iter_unpack(edits[: len(edits) // form.size * form.size]):
        if start == -1 and at and scale:
            raise DecodeError("gap", f"the edit list leaves {length / scale:.3f} s out at {at / scale:.3f} s")
        at += length
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


_JOINED = b"\x1aE\xdf\xa3.{1,60}(webm|matroska)"
_SEGMENT, _TIMESTAMP_SCALE, _DURATION = b"\x18\x53\x80\x67", b"\x2a\xd7\xb1", b"\x44\x89"


def _matroska_seconds(content: bytes) -> float | None:
    """Duration in the segment's information (RFC 9559), searched by its element ids: it is an estimate anyway."""
    scale, at = 1_000_000, content.find(_TIMESTAMP_SCALE)
    if at >= 0 and (element := _vint(content[at + 3 : at + 4])):
        scale = int.from_bytes(content[at + 4 : at + 4 + element[0]], "big")
    at = content.find(_DURATION, max(at, 0))
    width = content[at + 2 : at + 3] if at >= 0 else b""
    form = {b"\x84": ">f", b"\x88": ">d"}.get(width)
    if form is None or len(content) < at + 11:
        return None
    seconds = struct.unpack_from(form, content, at + 3)[0] * scale / 1e9
    return seconds if math.isfinite(seconds) and seconds > 0 else None


def walk_matroska(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    position = 0
    seconds: float | None = None
    for _ in range(layout.MAX_CHUNKS):
        if position >= size:
            return Layout(sndfile=False, seconds=seconds)
        head = read(file, position, 16)
        id_length = 9 - head[0].bit_length() if head[0] else 0
        parsed = _vint(head[id_length:]) if 1 <= id_length <= 4 else None
        if position:
            layout.refuse_header(file, position, position + 1 if parsed and parsed[0] >= 0 else size, _JOINED)
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
    for _ in range(layout.MAX_FRAMES):
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
        known = not (flags & 1 or layout.is_unknown_size(declared))  # the flag marks a broadcast
        if known and declared > size:
            raise truncated(declared, size, "the file by its header")
        if known:
            refuse_joined(file, declared, size, re.escape(head[:16]))
            return Layout(sndfile=False, seconds=duration / 1e7)
    return Layout(sndfile=False)


_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def ogg_checksum(page: bytes) -> int:
    """CRC-32 of an Ogg page (RFC 3533): zlib's polynomial, but neither reflected nor inverted, so bits are reversed here."""
    turned = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{turned:032b}"[::-1], 2)


# First bytes of a codec's first packet → where that has rate and channels.
_HEADS = {b"OpusHead": slice(9, 10), b"\x01vorbis": slice(11, 16), b"\x7fFLAC": slice(27, 30), b"Speex": slice(36, 52)}
LARGEST_JITTER = 2400  # samples, 50 ms at 48 kHz
FULL_OPUS_RATES = range(24_001, 2**31)  # declared; at others, libsndfile decodes at a lower rate than Opus's 48 kHz


def walk_ogg(file: BinaryIO, size: int, sums_checked: bool) -> Layout:
    """Checksums of the pages, their order and end, and their granule positions."""
    position = 0
    codecs: list[bytes] = []
    forms: dict[bytes, bytes] = {}
    open_streams: set[int] = set()
    next_page: dict[int, int] = {}
    times: dict[int, _Times | None] = {}
    pages = 0
    while position < size:
        pages += 1
        if pages > layout.MAX_FRAMES:
            raise too_many_parts()
        header = read(file, position, 27)
        if header[:4] != b"OggS":
            if not open_streams and codecs:  # tags or padding after the last page
                if size - position > layout.MAX_PADDING:
                    raise DecodeError("corrupt", f"{size - position} bytes after the last Ogg page, at byte {position}")
                refuse_joined(file, position, size, b"OggS\0")
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
            codec = next((magic for magic in _HEADS if content.startswith(magic)), content[:8])
            form = content[_HEADS.get(codec, slice(0))]
            if not open_streams and (forms.setdefault(codec, form) != form or (codecs and codec not in codecs)):
                raise DecodeError("corrupt", f"the codec, rate or number of channels changes at {position}; cut the file there")
            codecs.append(codec)
            open_streams.add(serial)
            times[serial] = _times(codec, content)
        elif number != next_page.get(serial, number):
            raise DecodeError("corrupt", f"pages are missing before byte {position}")
        next_page[serial] = number + 1
        if number > 1 and (timed := times.get(serial)):  # after the header and tags
            timed.add(flags, struct.unpack("<q", header[6:14])[0], lengths, content)
        if flags & 4:
            open_streams.discard(serial)
        position = end
    if not codecs:
        raise DecodeError("corrupt", "no Ogg stream begins")
    # libsndfile fails if granule positions differ from the samples in packets. ffmpeg writes such streams for input with gaps or
    # overlaps, and decodes them.
    remark = "no end-of-stream flag: it may be cut short" if open_streams else ""
    sndfile = len(codecs) == 1 and all(timed and timed.agree for timed in times.values())
    return Layout(sndfile=sndfile, remark=remark, pieces=((0, position),))


def _times(codec: bytes, head: bytes) -> _Times | None:
    """For a codec that libsndfile decodes as it should, with its channels in the usual order, and FLAC, whose length it does not
    know."""
    if codec in (b"OpusHead", b"\x01vorbis") and head[_HEADS[codec]][:1] > b"\2":
        return None
    if codec == b"OpusHead" and int.from_bytes(head[12:16], "little") in FULL_OPUS_RATES:
        return _Times(opus_samples, exact=True)
    if codec == b"\x01vorbis" and len(head) > 28:
        longest = (1 << (head[28] >> 4)) // 2
        return _Times(lambda packet: longest, exact=False)
    if codec == b"\x7fFLAC" and len(head) > 20:  # ffmpeg takes its first page to start at 0
        most = int.from_bytes(head[19:21], "big")
        return _Times(lambda packet: most, exact=False, last=0, agree=False)
    return None


class _Times:
    """Whether the granule positions of a stream agree with its packets (RFC 7845, 4), each of `samples`: `exact`, or at most."""

    def __init__(self, samples: Callable[[bytes], int], exact: bool, last: int | None = None, agree: bool = True) -> None:
        self.agree = agree
        self._samples_of, self._exact = samples, exact
        self._samples = 0  # since the last position
        self._last = last  # unknown at the start of recordings of broadcasts
        self._begun = b""  # first bytes of a packet that continues on the next page

    def add(self, flags: int, position: int, lengths: bytes, content: bytes) -> None:
        at = 0
        self.agree &= not (self._exact and flags & 1)  # libsndfile fails at Opus packets that continue on another page
        for length in lengths:
            self._begun += content[at : at + 2 - len(self._begun)]
            at += length
            if length < 255:
                self._samples += self._samples_of(self._begun)
                self._begun = b""
        if position == -1:  # no packet ends on this page
            return
        if self._last is None:
            self._last = 0 if flags & 4 else max(0, position - self._samples)
        declared = position - self._last
        if not self._exact and declared > self._samples + LARGEST_JITTER:  # where in the page is unknown
            raise DecodeError("gap", f"the timestamps leave {declared - self._samples} samples out before sample {position}")
        # The last page may declare less; the rest is trimmed.
        self.agree &= declared == self._samples if self._exact and not flags & 4 else 0 <= declared <= self._samples
        self._last, self._samples = position, 0


def opus_samples(packet: bytes) -> int:
    """Samples at 48 kHz of an Opus packet, by its first two bytes (RFC 6716, 3.1)."""
    if not packet:
        return 0
    config, code = packet[0] >> 3, packet[0] & 3
    frames = (480, 960, 1920, 2880) if config < 12 else (480, 960) if config < 16 else (120, 240, 480, 960)
    return frames[config % len(frames)] * ((1, 2, 2)[code] if code < 3 else packet[1] & 63 if len(packet) > 1 else 0)


# Tags may be anywhere between their frames.
_RAW_WALKS: dict[str, Callable[[BinaryIO, int, float], Layout]] = {
    "mpeg-audio": frames.walk_mpeg_audio,
    "adts": frames.walk_adts,
    "wavpack": frames.walk_wavpack,
}
_WALKS: dict[str, Callable[[BinaryIO, int, float], Layout]] = {
    "wav": chunks.walk_wav,
    "w64": chunks.walk_wav,
    "aiff": chunks.walk_aiff,
    "au": chunks.walk_au,
    "caf": chunks.walk_caf,
    "flac": frames.walk_flac,
    "amr": frames.walk_amr,
    "mlp": frames.walk_mlp,
    "truehd": frames.walk_mlp,
    "tta": frames.walk_tta,
    "nist": chunks.walk_nist,
    "voc": chunks.walk_voc,
    "mp4": walk_mp4,
    "matroska": walk_matroska,
    "avi": chunks.walk_avi,
    "flv": walk_flv,
    "asf": walk_asf,
}
