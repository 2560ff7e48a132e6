"""Tags inside sound files: creator, copyright, licence, address; title, genre, description. The sound itself is not decoded."""

import io
import json
import re
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import BinaryIO

from soundmill.corpora.statements import MAX_CELL, NOTHING, clean
from soundmill.decoding.containers import layout
from soundmill.decoding.containers.chunks import chunks

VERSION = "tags 5"  # of what `read` returns, in the cache
FOUND = "its tags"  # as terms_found
MAX_BYTES = 8 << 20  # read of one file
MAX_READS = 20_000
MAX_ZEROS = 50_000  # bytes: each value ends with one, or has some in its length; tinytag compares it with those before it
MAX_CHUNKS = 1000  # of a WAV
# Of RIFF; https://exiftool.org/TagNames/RIFF.html.
_INFO = {
    b"IART": "artist",
    b"ICOP": "copyright",
    b"INAM": "title",
    b"IGNR": "genre",
    b"ISBJ": "description",
    b"ICMT": "description",
}
BEYOND = "beyond the bounds"  # as a tag: the file has more than is read, so its licence is unclear
_LINKS = ("woaf", "woas", "url", "contact")  # fields of ID3 and of Vorbis comments that may be the sound's address
_DESCRIPTIONS = ("comment", "_comment", "description")  # beside the first comment; ffmpeg writes the second into MP3
# Comments that describe no sound: an address, SoX's default, those of generated FLACs (audio/tags.py).
_NO_DESCRIPTION = re.compile(r"https?://\S+|processed by sox|digital source type: \S+", re.IGNORECASE)


class _TooMany(Exception):
    pass


class _Bounded(io.RawIOBase):
    """A file of which at most MAX_BYTES with at most MAX_ZEROS are read, in at most MAX_READS steps; _TooMany beyond."""

    def __init__(self, file: BinaryIO):
        self._file, self._bytes, self._reads, self._zeros = file, MAX_BYTES, MAX_READS, MAX_ZEROS

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            raise OSError("a negative size")
        self._bytes, self._reads = self._bytes - size, self._reads - 1
        if self._bytes < 0 or self._reads < 0:
            raise _TooMany
        data = self._file.read(size)
        self._zeros -= data.count(0)
        if self._zeros < 0:
            raise _TooMany
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def seekable(self) -> bool:
        return True


def read(file: BinaryIO) -> str:
    """The tags as JSON, names as in statements.NAMES and manifest.FILE_TAGS.

    Empty if there are none, or the file is no WAV, MP3, FLAC, Ogg, MP4 or AIFF. Damaged tags count as none; of a WAV, those before
    them are kept. A file with more than the bounds has the tag BEYOND, and no other but an unclear licence.
    """
    bounded = _Bounded(file)
    try:
        file.seek(0)
        head = file.read(12)
        is_wav = head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and head[8:] == b"WAVE"
        tags = _of_wav(bounded, head[:4]) if is_wav else _of_other(bounded)
    except (OSError, layout.DecodeError, struct.error):
        return ""
    except _TooMany:
        tags = {"license": "other", BEYOND: "yes"}
    return json.dumps(tags, ensure_ascii=True, sort_keys=True) if tags else ""


def _of_wav(file: _Bounded, form: bytes) -> dict[str, str]:
    """Tags of the chunks `LIST` (`INFO`), in UTF-8 or Windows-1252, and `id3 `."""
    size = file.seek(0, io.SEEK_END)
    header = struct.Struct(">4sI" if form == b"RIFX" else "<4sI")
    tags: dict[str, str] = {}
    with suppress(OSError, layout.DecodeError, struct.error):  # a damaged chunk ends the tags; those before it are valid
        for name, at, declared in _some(chunks(file, 12, size, header, align=2)):
            if name == b"LIST" and layout.read(file, at, 4) == b"INFO":
                for field, start, length in _some(chunks(file, at + 4, min(at + declared, size), header, align=2)):
                    if field in _INFO and (text := _text(layout.read(file, start, min(max(length, 0), 4 * MAX_CELL)))):
                        if _INFO[field] != "description" or _describes(text):
                            tags.setdefault(_INFO[field], text)
            elif name in (b"id3 ", b"ID3 ") and declared > 0:
                tags = _of_other(_Bounded(io.BytesIO(layout.read(file, at, declared)))) | tags
    return tags


def _some(parts: Iterable[tuple[bytes, int, int]]) -> Iterator[tuple[bytes, int, int]]:
    """The first MAX_CHUNKS, up to zeros that fill the file; _TooMany beyond."""
    for number, part in enumerate(parts):
        if part[0] == bytes(4):
            return
        if number == MAX_CHUNKS:
            raise _TooMany
        yield part


def _text(data: bytes) -> str:
    data = data.partition(b"\0")[0]
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


def _describes(text: str) -> bool:
    return clean(text).lower() not in NOTHING and not _NO_DESCRIPTION.fullmatch(clean(text))


def _of_other(file: _Bounded) -> dict[str, str]:
    from tinytag import TinyTag, TinyTagException

    file.seek(0)
    try:
        found = TinyTag.get(file_obj=file, duration=False)
    except TinyTagException as error:
        if isinstance(error.__cause__, _TooMany):
            raise _TooMany from None
        return {}
    several = {name: found.other.get(name, []) for name in ("copyright", "license", *_LINKS)}
    artists = [artist for artist in (found.artist, *found.other.get("artist", [])) if artist]
    links = (link for name in _LINKS for link in several[name] if link.startswith(("http://", "https://")))
    tags = {"artist": "; ".join(artists), "copyright": " / ".join(several["copyright"]), "license": " / ".join(several["license"])}
    tags["url"] = next(links, "")
    others = [text for name in _DESCRIPTIONS for text in found.other.get(name, [])]
    tags["description"] = next(filter(_describes, [found.comment or "", *others]), "")
    tags["title"] = found.title or ""
    tags["genre"] = ", ".join(genre for genre in (found.genre, *found.other.get("genre", [])) if genre)
    return {name: text[: MAX_CELL + 1] for name, text in tags.items() if text.strip()}
