"""The format of a file from its first bytes; text, playlists and files other than audio are rejected."""

import re
from dataclasses import dataclass
from typing import BinaryIO

from soundmill.decoding.containers.frames import FrameParser, adts_frame, mpeg_frame
from soundmill.decoding.containers.layout import HEAD_BYTES, DecodeError, read, sound_start


@dataclass(frozen=True)
class Kind:
    """A sniffed type; `demuxer`: forced for ffmpeg (None: it may choose a harmless one)."""

    name: str
    demuxer: str | None
    sndfile: bool = False  # libsndfile reads it, ffmpeg is the fallback


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
    head = read(file, 0, HEAD_BYTES)
    _refuse_text(head)
    start = sound_start(file, size)
    body = head
    if start > 0:
        body = read(file, start, HEAD_BYTES)
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
    for step, first in ((188, 0), (192, 4), (204, 0)):
        marks = body[first : first + 4 * step : step]
        if len(marks) >= 3 and set(marks) == {0x47}:
            return Kind("mpeg-ts", "mpegts")
    if len(body) >= 4 and adts_frame(body[:7]) and _follows(body, adts_frame):
        return Kind("adts", "aac")
    if len(body) >= 4 and mpeg_frame(body[:7]) and (start > 0 or _follows(body, mpeg_frame)):
        return Kind("mpeg-audio", "mp3", sndfile=True)
    for magic, what in _NOT_AUDIO:
        if body.startswith(magic):
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
