"""What kind of file this is and whether it is whole, told from its own bytes before any decoder sees it.

Decoders resynchronise, fill gaps and end early without a word (a cut mp3 or ogg decodes with exit code 0), and some "audio"
is a text list that makes ffmpeg read other files. So the type is sniffed here, text is refused, and the containers whose
decoders hide damage are walked: declared sizes against the file's end, checksums of Ogg pages, frames of MPEG audio.
"""

from __future__ import annotations

import math
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

HEAD_BYTES = 65_536  # looked at to tell the type
MAX_CHUNKS = 100_000  # top-level parts of a file; a crafted one could hold millions of empty ones
MAX_FRAMES = 5_000_000  # a day of 20 ms packets
MAX_PADDING = 1 << 20  # bytes that are no sound and no tag, in one place

MAX_CHANNELS = 1024  # libsndfile's own limit
MAX_SAMPLES_PER_SECOND = 8 * 192_000  # of all channels: with `max_seconds`, what a bomb may expand to
MIN_SAMPLES = 2  # one sample is no sound
LENGTH_TOLERANCE_SECONDS = 0.05  # decoded against declared: WMA of 5 s comes 34 ms short

STREAMED_SIZES = (0, 0xFFFFFFFF, 0x80000000)  # WAV data sizes of writers that could not seek back; the last is arecord's
SOX_STREAMED_SIZE = 0x7FFFF000  # SoX's, rounded down to whole frames
# PCM, MS ADPCM, float, A-law, µ-law, IMA ADPCM, GSM 6.10, extensible; of MP3 in WAV libsndfile only estimates the length.
PLAIN_WAV_CODECS = (1, 3, 6, 7, 0xFFFE)  # whose frames are of one sample of each channel
SNDFILE_WAV_CODECS = (1, 2, 3, 6, 7, 0x11, 0x31, 0xFFFE)


class DecodeError(Exception):
    """One file cannot become clips: `reason` is short and stable (it is counted), `detail` says more to a person."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason} ({self.detail})" if self.detail else self.reason


def check_bound(num_frames: int, sample_rate: int, channels: int, max_seconds: float) -> None:
    """Raise for sound beyond what one file may give, declared or decoded."""
    if num_frames > max_seconds * sample_rate:
        raise DecodeError("too long", f"more than {max_seconds:g} s")
    if num_frames * channels > max_seconds * MAX_SAMPLES_PER_SECOND:
        raise DecodeError("too long", f"{channels} channels at {sample_rate} Hz expand beyond what {max_seconds:g} s may")


def check_length(found: int, declared: float, sample_rate: int, slack: int) -> None:
    """Hold the decoder to the length in the header, both in samples; `slack` is what the format may lose at its ends."""
    if abs(found - declared) > LENGTH_TOLERANCE_SECONDS * sample_rate + slack:
        reason = "truncated" if found < declared else "corrupt"
        raise DecodeError(reason, f"{found / sample_rate:.3f} s of sound, {declared / sample_rate:.3f} s declared")


@dataclass(frozen=True)
class Kind:
    """A sniffed type: `demuxer` is what ffmpeg is forced to (None: it may choose among harmless ones)."""

    name: str
    demuxer: str | None
    sndfile: bool = False  # libsndfile reads it, so ffmpeg is the second choice


@dataclass(frozen=True)
class Layout:
    """What the walk through a whole container found."""

    sndfile: bool  # libsndfile may be trusted with this one
    exact: bool = True  # the length that libsndfile tells is exact, not an estimate
    at_least: int = 0  # samples that were counted on the walk: an estimate below this would cut the sound
    streamed: bool = False  # no length is declared: the last packet may be a short one
    seconds: float | None = None  # what the header says it lasts: to plan with, not to rely on
    md5: bytes | None = None  # of the decoded samples (FLAC)
    bits: int = 0  # per sample, where `md5` is given


UNKNOWN = Kind("unknown", None)

# (offset, bytes there, kind); the first that matches wins.
_MAGIC: list[tuple[int, bytes, Kind]] = [
    (0, b"fLaC", Kind("flac", "flac", sndfile=True)),
    (0, b"OggS", Kind("ogg", "ogg", sndfile=True)),
    (0, b".snd", Kind("au", "au", sndfile=True)),
    (0, b"dns.", Kind("au", None, sndfile=True)),
    (0, b"caff", Kind("caf", "caf", sndfile=True)),
    (0, b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00", Kind("w64", "w64", sndfile=True)),
    (0, b"\x64\xa3\x01\x00", Kind("ircam", "ircam", sndfile=True)),
    (0, b"\x00\x01\xa3\x64", Kind("ircam", "ircam", sndfile=True)),
    (0, b"NIST_1A\n", Kind("nist", "nistsphere", sndfile=True)),
    (0, b"\x1a\x45\xdf\xa3", Kind("matroska", "matroska")),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", Kind("asf", "asf")),
    (0, b"FLV\x01", Kind("flv", "flv")),
    (0, b"#!AMR", Kind("amr", "amr")),
    (0, b"wvpk", Kind("wavpack", "wv")),
    (0, b"MAC ", Kind("ape", "ape")),
    (0, b"TTA1", Kind("tta", "tta")),
    (0, b"tBaK", Kind("tak", "tak")),
    (0, b"ajkg", Kind("shorten", "shn")),
    (0, b"MPCK", Kind("musepack", "mpc8")),
    (0, b"MP+", Kind("musepack", "mpc")),
    (0, b"DSD ", Kind("dsf", "dsf")),
    (0, b"FRM8", Kind("dsdiff", "iff")),
    (0, b".RMF", Kind("realmedia", "rm")),
    (0, b".ra\xfd", Kind("realmedia", "rm")),
    (0, b"Creative Voice File\x1a", Kind("voc", "voc")),
    (0, b".SoX", Kind("sox", "sox")),
    (0, b"XoS.", Kind("sox", "sox")),
    (0, b"qoaf", Kind("qoa", "qoa")),
    (0, b"\x0b\x77", Kind("ac3", None)),  # AC-3 or E-AC-3
    (0, b"\x7f\xfe\x80\x01", Kind("dts", "dts")),
    (0, b"\x00\x00\x01\xba", Kind("mpeg-ps", "mpeg")),
    (0, b"\x06\x0e\x2b\x34\x02\x05\x01\x01", Kind("mxf", "mxf")),
    (4, b"\xf8\x72\x6f\xba", Kind("truehd", "truehd")),
    (4, b"\xf8\x72\x6f\xbb", Kind("mlp", "mlp")),
]

_RIFF_FORMS = {
    b"WAVE": Kind("wav", "wav", sndfile=True),
    b"AVI ": Kind("avi", "avi"),
    b"AVIX": Kind("avi", "avi"),
    b"AMV ": Kind("avi", "avi"),
    b"XWMA": Kind("xwma", "xwma"),
    b"QLCM": Kind("qcp", "qcp"),
}

_NOT_AUDIO = [
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"BM", "a BMP picture"),
    (b"II*\x00", "a TIFF picture"),
    (b"MM\x00*", "a TIFF picture"),
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x7fELF", "a program"),
    (b"PAR1", "a Parquet table"),
    (b"SQLite format 3", "an SQLite database"),
    (b"MThd", "MIDI notes"),
]

_PLAYLIST = re.compile(
    rb"#EXT(M3U|-X-|INF)|ffconcat|\[playlist\]|\[Reference\]|(<\?xml[^>]*>\s*)?<(playlist|asx|MPD|smil)\b|v=0\s", re.IGNORECASE
)
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


def sniff(file: BinaryIO, size: int) -> Kind:
    """The kind of a file of `size` bytes from its first ones; text, playlists and known non-audio raise DecodeError."""
    if size == 0:
        raise DecodeError("empty", "zero bytes")
    head = _read(file, 0, HEAD_BYTES)
    _refuse_text(head)
    start = tag_end(head)
    body = head
    if start > 0:
        body = _read(file, start, HEAD_BYTES)
        if not body:
            raise DecodeError("truncated", "the file ends inside its tag")
        _refuse_text(body)
    if body[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and body[8:12] in _RIFF_FORMS:
        return _RIFF_FORMS[body[8:12]]
    if body[:4] == b"FORM" and body[8:12] in (b"AIFF", b"AIFC"):
        return Kind("aiff", "aiff", sndfile=True)
    if body[:4] == b"FORM" and body[8:12] in (b"8SVX", b"16SV", b"MAUD"):
        return Kind("iff", "iff")
    for offset, magic, kind in _MAGIC:
        if body.startswith(magic, offset):
            return kind
    if body[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"):
        return Kind("mp4", "mov")
    if _is_transport_stream(body):
        return Kind("mpeg-ts", "mpegts")
    if len(body) >= 4 and adts_frame(body[:7]) and _follows(body, adts_frame):
        return Kind("adts", "aac")
    if len(body) >= 4 and mpeg_frame(body[:7]) and (start > 0 or _follows(body, mpeg_frame)):
        return Kind("mpeg-audio", "mp3", sndfile=True)
    for magic, what in _NOT_AUDIO:
        if body.startswith(magic):
            raise DecodeError("no audio stream", f"this is {what}")
    if start > 0:
        return Kind("tagged", None)
    return UNKNOWN


def is_text(head: bytes) -> bool:
    """Whether a file that begins so is a text or a playlist, by the rule of `sniff`."""
    try:
        _refuse_text(head)
    except DecodeError:
        return True
    return False


def _refuse_text(head: bytes) -> None:
    """Raise for text of any kind: no audio file goes on for long without a control byte, and no text has one."""
    text = head
    for bom, encoding in ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")):
        if head.startswith(bom):
            decoded = head[len(bom) :].decode(encoding, "replace")
            if encoding == "utf-8" or "\ufffd" not in decoded[:-1]:
                text = decoded.encode("utf-8", "replace")
            break
    if _PLAYLIST.match(text.lstrip()):
        raise DecodeError("playlist", "a list that points to other files, not audio itself")
    if not _CONTROL.search(text):
        raise DecodeError("text", "the file holds text, not audio")


def tag_end(head: bytes) -> int:
    """Where the audio starts behind ID3v2 tags (0 without one)."""
    position = 0
    while head[position : position + 3] == b"ID3" and len(head) >= position + 10:
        a, b, c, d = head[position + 6 : position + 10]
        if (a | b | c | d) & 0x80:
            break
        footer = 10 if head[position + 5] & 0x10 else 0
        position += 10 + (a << 21 | b << 14 | c << 7 | d) + footer
    return position


def _is_transport_stream(body: bytes) -> bool:
    for step, first in ((188, 0), (192, 4), (204, 0)):
        marks = body[first : first + 4 * step : step]
        if len(marks) >= 3 and set(marks) == {0x47}:
            return True
    return False


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


def _follows(body: bytes, frame: FrameParser) -> bool:
    """Whether a second frame, or the end of a very short file, stands where the first one ends."""
    found = frame(body[:7])
    return found is not None and (len(body) <= found[0] or frame(body[found[0] : found[0] + 7]) is not None)


def inspect(kind: Kind, file: BinaryIO, size: int, max_seconds: float, sums_checked: bool = False) -> Layout:
    """Walk the container; declared sizes beyond the end, bad checksums and cut frames raise DecodeError.

    `sums_checked`: an earlier walk through the same bytes found the checksums of its pages to be right, so they are not made again.
    """
    if kind.name not in _MAY_END_IN_SILENCE:
        _refuse_zeros(file, 0, size)
    if kind.name == "ogg":
        return _walk_ogg(file, size, sums_checked)
    walk = _WALKS.get(kind.name)
    return walk(file, size, max_seconds) if walk else Layout(sndfile=kind.sndfile)


# Samples as they are, or a part of the file: zeros at its end may be sound. Those that declare where it ends are held to that.
_MAY_END_IN_SILENCE = frozenset("wav w64 aiff au caf ircam nist iff sox voc mp4 unknown tagged".split())


def _refuse_zeros(file: BinaryIO, start: int, size: int) -> None:
    """Raise where more zeros than padding end the file from `start` on: a download that was given its size and never ended."""
    if size - start > MAX_PADDING:
        if not any(_read(file, size - 64, 64)) and not _read(file, size - MAX_PADDING, MAX_PADDING).strip(b"\0"):
            raise DecodeError("corrupt", f"it ends in more than {MAX_PADDING} zeros")


def _too_many_parts() -> DecodeError:
    return DecodeError("corrupt", "no sound has that many parts")


def _read(file: BinaryIO, position: int, count: int) -> bytes:
    file.seek(position)
    return file.read(count)


def _truncated(declared: int, size: int, what: str) -> DecodeError:
    return DecodeError("truncated", f"{what} ends at byte {declared}, the file at {size}")


def _chunks(
    file: BinaryIO, start: int, size: int, header: struct.Struct, align: int, counts_itself: int = 0, most: int = MAX_CHUNKS
) -> Iterator[tuple[bytes, int, int]]:
    """(id, where its data starts, declared data size) of the chunks of an IFF-like file.

    `align`: what chunks are padded to; `counts_itself`: how much of the header the declared size includes.
    """
    position = start
    for _ in range(most):
        if position + header.size > size:
            return
        name, declared = header.unpack(_read(file, position, header.size))
        declared -= counts_itself
        yield name, position + header.size, declared
        if declared < 0:
            return
        position += header.size + declared + (-declared) % align
    raise _too_many_parts()


def _walk_wav(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    start = tag_end(_read(file, 0, HEAD_BYTES))
    form = _read(file, start, 4)
    header = struct.Struct(">4sI" if form == b"RIFX" else "<4sI")
    data_size_64: int | None = None
    codec, frame_bytes, channels, rate = 0, 1, 0, 0
    for name, at, declared in _chunks(file, start + 12, size, header, align=2):
        if name == b"ds64" and form in (b"RF64", b"BW64"):
            sizes = _read(file, at, 16)
            data_size_64 = struct.unpack("<QQ", sizes)[1] if len(sizes) == 16 else None
        elif name == b"fmt ":
            fields = _read(file, at, 16)
            if len(fields) == 16:
                codec, channels, rate, _, frame_bytes, _ = struct.unpack(header.format[0] + "HHIIHH", fields)
                if channels == 0 or rate == 0:
                    raise DecodeError("corrupt", f"the header declares {channels} channels at {rate} Hz")
        elif name == b"data":
            if form in (b"RF64", b"BW64") and declared == 0xFFFFFFFF and data_size_64 is not None:
                declared = data_size_64 if data_size_64 < 2**63 else 0
            streamed = declared in STREAMED_SIZES or 0 <= SOX_STREAMED_SIZE - declared < max(frame_bytes, 1)
            if at + declared > size and not streamed:
                raise _truncated(at + declared, size, "the sound data")
            # Sizes of 32 bits: what a writer put behind its mark for `unknown`, or counted round, no reader would look for.
            if declared and ((streamed and declared < size - at) or size - at - declared >= 2**32):
                raise DecodeError("corrupt", f"{size - at} bytes of sound, more than WAV can count ({declared} declared)")
            if declared == 0:
                # libsndfile takes a size of nothing at its word; what follows is sound unless it is a chunk that fits.
                follow = _read(file, at, 8)
                if at == size or (len(follow) == 8 and _fits(follow, header, size - at)):
                    raise DecodeError("too short", "no samples")
            sound = size - at if streamed else declared
            if codec in PLAIN_WAV_CODECS and frame_bytes:
                check_bound(sound // frame_bytes, rate, channels, max_seconds)
            _refuse_zeros(file, at + sound, size)
            readable = start == 0 and declared != 0 and codec in SNDFILE_WAV_CODECS
            return Layout(sndfile=readable, streamed=streamed)
        elif at + declared > size:
            raise _truncated(at + declared, size, f"chunk {name.decode('latin-1')!r}")
    raise DecodeError("truncated", "the file ends before its sound data")


def _fits(follow: bytes, header: struct.Struct, room: int) -> bool:
    name, declared = header.unpack(follow)
    return name in (b"LIST", b"id3 ", b"ID3 ", b"bext", b"fact", b"cue ", b"smpl", b"JUNK", b"PEAK") and 8 + declared <= room


def _walk_w64(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    for name, at, declared in _chunks(file, 40, size, struct.Struct("<16sQ"), align=8, counts_itself=24):
        if name[:4] == b"data":
            streamed = declared >= 2**62
            if at + declared > size and not streamed:
                raise _truncated(at + declared, size, "the sound data")
            if not streamed:
                _refuse_zeros(file, at + declared, size)
            return Layout(sndfile=True, streamed=streamed)
    raise DecodeError("truncated", "the file ends before its sound data")


def _walk_aiff(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    seen = set()
    for name, at, declared in _chunks(file, 12, size, struct.Struct(">4sI"), align=2):
        seen.add(name)
        if name == b"SSND" and declared in STREAMED_SIZES:
            return Layout(sndfile=True, streamed=True)
        if at + declared > size:
            raise _truncated(at + declared, size, f"chunk {name.decode('latin-1')!r}")
        if {b"COMM", b"SSND"} <= seen:  # what follows is not needed
            _refuse_zeros(file, at + declared, size)
            return Layout(sndfile=True)
    if b"COMM" in seen:  # allowed when there is no sound at all
        raise DecodeError("too short", "no samples")
    raise DecodeError("truncated", "the file ends before its sound data")


def _walk_au(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    head = _read(file, 0, 24)
    if len(head) < 24:
        raise DecodeError("truncated", "the file ends inside its header")
    start, declared = struct.unpack(">II" if head[:4] == b".snd" else "<II", head[4:12])
    if declared != 0xFFFFFFFF:
        if start + declared > size:
            raise _truncated(start + declared, size, "the sound data")
        _refuse_zeros(file, start + declared, size)
    return Layout(sndfile=True)


def _walk_caf(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    for name, at, declared in _chunks(file, 8, size, struct.Struct(">4sq"), align=1):
        if name == b"data" and declared == -1:
            return Layout(sndfile=True, streamed=True)
        if at + declared > size and name in (b"data", b"pakt", b"desc", b"kuki"):
            raise _truncated(at + declared, size, f"chunk {name.decode('latin-1')!r}")
    return Layout(sndfile=True)


def _walk_flac(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    start = tag_end(_read(file, 0, HEAD_BYTES))
    info = _read(file, start + 4, 38)
    if len(info) < 38 or info[0] & 0x7F != 0:
        raise DecodeError("truncated" if len(info) < 38 else "corrupt", "no stream information at the start")
    bits = ((info[16] & 1) << 4 | info[17] >> 4) + 1
    total = (info[17] & 15) << 32 | int.from_bytes(info[18:22], "big")
    # A streamed FLAC declares no length; libsndfile cannot read it, ffmpeg can.
    return Layout(sndfile=start == 0 and total > 0, md5=info[22:38] if any(info[22:38]) else None, bits=bits)


_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def ogg_checksum(page: bytes) -> int:
    """CRC-32 of an Ogg page (RFC 3533): zlib's polynomial, but neither reflected nor inverted, hence the turned bits."""
    turned = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{turned:032b}"[::-1], 2)


def _walk_ogg(file: BinaryIO, size: int, sums_checked: bool) -> Layout:
    position = 0
    codecs: list[bytes] = []
    open_streams: set[int] = set()
    next_page: dict[int, int] = {}
    opus = _OpusTimes()
    pages = 0
    while position < size:
        pages += 1
        if pages > MAX_FRAMES:
            raise _too_many_parts()
        header = _read(file, position, 27)
        if header[:4] != b"OggS":
            if not open_streams and codecs:  # tags or padding behind the last page
                if size - position > MAX_PADDING:
                    raise DecodeError("corrupt", f"{size - position} bytes behind the last Ogg page, at byte {position}")
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
            raise _truncated(end, size, "the last Ogg page")
        if not sums_checked and ogg_checksum(header[:22] + b"\0\0\0\0" + header[26:] + lengths + content) != checksum:
            raise DecodeError("corrupt", f"wrong checksum of the Ogg page at byte {position}")
        if flags & 2:
            codecs.append(content[:8])
            open_streams.add(serial)
        elif number != next_page.get(serial, number):
            raise DecodeError("corrupt", f"pages are missing before byte {position}")
        next_page[serial] = number + 1
        if codecs == [b"OpusHead"] and number > 1:  # the stream's head and its tags come before
            opus.add(flags, struct.unpack("<q", header[6:14])[0], lengths, content)
        if flags & 4:
            open_streams.discard(serial)
        position = end
    if open_streams:
        raise DecodeError("truncated", "the Ogg stream has no end")
    simple = len(codecs) == 1 and (codecs[0].startswith(b"\x01vorbis") or codecs[0] == b"OpusHead")
    # libsndfile fails in the middle of a stream whose pages count other samples than their packets have. ffmpeg writes such ones
    # where it encodes a stream with gaps or overlaps, and plays them, as others do.
    return Layout(sndfile=simple and opus.agree)


class _OpusTimes:
    """Whether the positions that the pages of an Opus stream tell are those of their packets (RFC 7845, 4)."""

    def __init__(self) -> None:
        self.agree = True
        self._samples = 0  # at 48 kHz, of all packets that have ended
        self._offset: int | None = None  # the stream's own beginning: a recording of a broadcast starts somewhere
        self._begun = b""  # the first bytes of a packet that goes on in the next page

    def add(self, flags: int, position: int, lengths: bytes, content: bytes) -> None:
        at = 0
        for length in lengths:
            self._begun += content[at : at + 2 - len(self._begun)]
            at += length
            if length < 255:
                self._samples += opus_samples(self._begun)
                self._begun = b""
        if position == -1:  # no packet ends on this page
            return
        if self._offset is None:
            self._offset = max(0, position - self._samples) if not flags & 4 else 0
        told = position - self._offset
        # The last page may tell less: what is beyond is cut off.
        self.agree &= told <= self._samples if flags & 4 else told == self._samples


def opus_samples(packet: bytes) -> int:
    """Samples at 48 kHz of an Opus packet, by its first two bytes (RFC 6716, 3.1)."""
    if not packet:
        return 0
    config, code = packet[0] >> 3, packet[0] & 3
    if config < 12:
        frame = (480, 960, 1920, 2880)[config % 4]
    elif config < 16:
        frame = (480, 960)[config % 2]
    else:
        frame = (120, 240, 480, 960)[config % 4]
    return frame * ((1, 2, 2)[code] if code < 3 else packet[1] & 63 if len(packet) > 1 else 0)


def _walk_frames(file: BinaryIO, position: int, size: int, frame: FrameParser, max_seconds: float) -> tuple[int, int, float]:
    """(frames, samples, seconds) from `position` to the end; what stands between frames and is no tag raises DecodeError, and
    so does another rate or number of channels: libmpg123 ends there without a word, and ffmpeg begins to count anew.
    """
    count, total, seconds, steps = 0, 0, 0.0, 0
    form: tuple[int, int] | None = None
    free = True  # no frame since the beginning, or a tag
    zeros = False  # since the last frame or tag
    while position < size:
        steps += 1
        if steps > MAX_FRAMES:
            raise _too_many_parts()
        header = _read(file, position, 10)
        found = frame(header)
        if found is None:
            tag = _tag_end_at(file, position, size, header)
            if tag is not None:
                position, free, zeros = tag, True, False
                continue
            after = _zeros_end(file, position, size)
            if after == size or (free and count and after == position):  # behind a tag comes sound or nothing
                break
            if count and size - position <= FILLED_BYTES and not _read(file, position, FILLED_BYTES).strip(FILLING):
                break
            if after == position:
                reason = "truncated" if size - position < 10 else "corrupt"
                raise DecodeError(reason, f"no frame where one should start, at byte {position}")
            position, zeros = after, True
            continue
        if zeros and not free:  # before the first frame and around tags they are padding, between frames a hole
            raise DecodeError("corrupt", f"zeros between frames, up to byte {position}")
        length, samples, rate, channels = found
        if position + length > size:
            raise _truncated(position + length, size, "the last frame")
        if count == 1:  # the first may be an encoder's note
            form = rate, channels
        elif form is not None and form != (rate, channels):
            raise DecodeError("corrupt", f"from byte {position} on another rate or number of channels; cut the file there")
        position += length
        free = zeros = False
        count += 1
        total += samples
        seconds += samples / rate
        if seconds > max_seconds:
            raise DecodeError("too long", f"more than {max_seconds:g} s")
    return count, total, seconds


FILLED_BYTES, FILLING = 4096, b"\0\xff \r\n\t"  # what tools leave at the end of a stream
AVI_PADDING = 4096  # zeros: writers fill up to a sector or a page
LYRICS_BYTES = 1 << 20  # in which the end of a Lyrics3 tag is looked for


def _tag_end_at(file: BinaryIO, position: int, size: int, header: bytes) -> int | None:
    """Where a tag ends that begins at `position`; None where none does. Sound may follow: files are joined by `cat`."""
    if header.startswith(b"ID3"):
        return position + max(tag_end(header), 10)
    if header.startswith(b"3DI"):
        return position + 10
    if header.startswith(b"TAG+"):
        return position + 227
    if header.startswith(b"TAG"):
        return position + 128
    if header.startswith(b"APETAGEX"):
        head = _read(file, position, 32)
        counted, flags = struct.unpack("<I4xI", head[12:24]) if len(head) == 32 else (0, 0)
        return position + 32 + (counted if flags & 1 << 29 else 0)  # a header; else the footer of a tag that has none
    if header.startswith(b"LYRICSBEG"):
        text = _read(file, position, LYRICS_BYTES)
        ends = [text.find(mark) for mark in (b"LYRICS200", b"LYRICSEND")]
        return position + min((end + 9 for end in ends if end >= 0), default=size - position)
    return None


def _zeros_end(file: BinaryIO, position: int, size: int) -> int:
    """Where the zeros end that stand at `position`: there, if there are none. Raises where they are more than padding."""
    start = position
    while position < size:
        if position - start > MAX_PADDING:
            raise DecodeError("corrupt", f"more than {MAX_PADDING} zeros from byte {start} on")
        block = _read(file, position, HEAD_BYTES)
        rest = block.lstrip(b"\0")
        position += len(block) - len(rest)
        if rest:
            break
    return position


def _walk_mpeg_audio(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    start = tag_end(_read(file, 0, HEAD_BYTES))
    header = _read(file, start, 7)
    first = mpeg_frame(header)
    if first is None:
        return Layout(sndfile=False)
    count, total, _ = _walk_frames(file, start, size, mpeg_frame, max_seconds)
    estimated = Layout(sndfile=True, exact=False, at_least=total)
    content = _read(file, start, min(first[0], 256))
    found = re.search(rb"(Xing|Info)\x00\x00\x00.", content, re.DOTALL)
    if found is None or not content[found.end() - 1] & 1:
        return estimated
    declared = int.from_bytes(content[found.end() : found.end() + 4], "big")
    if abs(declared - (count - 1)) > 1:  # the tag's own frame is counted by some encoders
        raise DecodeError("truncated" if declared > count - 1 else "corrupt", f"{declared} frames declared, {count - 1} found")
    return Layout(sndfile=True)


def _walk_adts(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    _, _, seconds = _walk_frames(file, tag_end(_read(file, 0, HEAD_BYTES)), size, adts_frame, max_seconds)
    return Layout(sndfile=False, seconds=seconds)


def _walk_amr(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    head = _read(file, 0, 9)
    if head.startswith(b"#!AMR-WB\n"):
        _walk_frames(file, 9, size, _amr_wb_frame, max_seconds)
    elif head.startswith(b"#!AMR\n"):
        _walk_frames(file, 6, size, _amr_nb_frame, max_seconds)
    return Layout(sndfile=False)


def _walk_mlp(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    _walk_frames(file, 0, size, _mlp_frame, max_seconds)
    return Layout(sndfile=False)


def _walk_mp4(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    position = 0
    seconds: float | None = None
    for _ in range(MAX_CHUNKS):
        if position + 8 > size:
            return Layout(sndfile=False, seconds=seconds)
        length, name = struct.unpack(">I4s", _read(file, position, 8))
        if length == 1:
            wide = file.read(8)
            if len(wide) < 8:
                raise DecodeError("truncated", "the file ends inside a box header")
            length = int.from_bytes(wide, "big")
        if 0 < length < 8 or not all(32 <= byte < 127 for byte in name):
            _refuse_zeros(file, position, size)
            return Layout(sndfile=False, seconds=seconds)  # not a box: what stands here is for ffmpeg to judge
        if length == 0:  # to the end of the file
            return Layout(sndfile=False, seconds=seconds)
        if position + length > size:
            raise _truncated(position + length, size, f"box {name.decode('latin-1')!r}")
        if name == b"moov":
            seconds = _movie_seconds(_read(file, position + 8, 40))
        position += length
    raise _too_many_parts()


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
    """Duration in the segment's information (RFC 9559), looked for by its marks: what is found is an estimate anyway."""
    scale, at = 1_000_000, content.find(_TIMESTAMP_SCALE)
    if at >= 0 and (found := _vint(content[at + 3 : at + 4])):
        scale = int.from_bytes(content[at + 4 : at + 4 + found[0]], "big")
    at = content.find(_DURATION, max(at, 0))
    width = content[at + 2 : at + 3] if at >= 0 else b""
    layout = {b"\x84": ">f", b"\x88": ">d"}.get(width)
    if layout is None or len(content) < at + 11:
        return None
    seconds = struct.unpack_from(layout, content, at + 3)[0] * scale / 1e9
    return seconds if math.isfinite(seconds) and seconds > 0 else None


def _walk_matroska(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    position = 0
    seconds: float | None = None
    for _ in range(MAX_CHUNKS):
        if position >= size:
            return Layout(sndfile=False, seconds=seconds)
        head = _read(file, position, 16)
        id_length = 9 - head[0].bit_length() if head[0] else 0
        found = _vint(head[id_length:]) if 1 <= id_length <= 4 else None
        if head.startswith(_SEGMENT):
            seconds = _matroska_seconds(_read(file, position, 4096))
        if found is None or found[0] < 0:  # not an element; or streamed: the end is not declared
            return Layout(sndfile=False, seconds=seconds)
        length, width = found
        position += id_length + width + length
        if position > size:
            raise _truncated(position, size, "the segment")
    raise _too_many_parts()


def _walk_avi(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    header = struct.Struct("<4sI")
    for name, at, declared in _chunks(file, 0, size, header, align=2):
        if name != b"RIFF":
            break
        if declared in STREAMED_SIZES:
            return Layout(sndfile=False, streamed=True)
        if at + declared > size:
            raise _truncated(at + declared, size, "the RIFF chunk")
        for part, inside, length in _chunks(file, at + 4, at + declared, header, align=2):
            if part == b"LIST" and _read(file, inside, 4) == b"movi":
                # A download that was given its size at the start and never ended has zeros for the rest.
                end = min(inside + length, at + declared)
                for packet, data, _ in _chunks(file, inside + 4, end, header, align=2, most=MAX_FRAMES):
                    if packet == b"\0\0\0\0":
                        if (hole := _zeros_end(file, data, end) - data) > AVI_PADDING:
                            raise DecodeError("corrupt", f"{hole} zeros where a packet should start, at byte {data - header.size}")
                        break  # ffmpeg finds the packets behind a few
    return Layout(sndfile=False)


def _walk_flv(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    position = int.from_bytes(_read(file, 5, 4), "big") + 4
    for _ in range(MAX_FRAMES):
        if position >= size:
            return Layout(sndfile=False)
        header = _read(file, position, 11)
        length = int.from_bytes(header[1:4], "big")
        if len(header) < 11 or position + 11 + length > size:
            raise _truncated(position + 11 + length, size, "the last tag")
        position += 11 + length + 4
    raise _too_many_parts()


_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def _walk_asf(file: BinaryIO, size: int, max_seconds: float) -> Layout:
    head = _read(file, 0, HEAD_BYTES)
    at = head.find(_ASF_FILE_PROPERTIES)
    properties = head[at : at + 104] if at >= 0 else b""
    if len(properties) == 104:
        declared, duration, flags = struct.unpack("<Q16xQ16xI", properties[40:92])
        if not flags & 1 and declared > size:  # the flag marks a broadcast, whose size is not valid
            raise _truncated(declared, size, "the file by its header")
        if not flags & 1:
            return Layout(sndfile=False, seconds=duration / 1e7)
    return Layout(sndfile=False)


_WALKS: dict[str, Callable[[BinaryIO, int, float], Layout]] = {
    "wav": _walk_wav,
    "w64": _walk_w64,
    "aiff": _walk_aiff,
    "au": _walk_au,
    "caf": _walk_caf,
    "flac": _walk_flac,
    "mpeg-audio": _walk_mpeg_audio,
    "adts": _walk_adts,
    "amr": _walk_amr,
    "mlp": _walk_mlp,
    "truehd": _walk_mlp,
    "mp4": _walk_mp4,
    "matroska": _walk_matroska,
    "avi": _walk_avi,
    "flv": _walk_flv,
    "asf": _walk_asf,
}
