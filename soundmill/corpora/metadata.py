"""Reading the metadata files of an inventory: text, JSON and JSON lines; `csv_tables` reads csv."""

import codecs
import gzip
import itertools
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from ruamel.yaml import YAMLError

from soundmill.corpora import buckets
from soundmill.corpora.inventory import Inventory
from soundmill.errors import UserError
from soundmill.manifest import escape_path
from soundmill.params import TooDeepError, parse_json, parse_yaml

HEAD_BYTES = 1 << 16  # from which formats are detected
KEPT_BYTES = 64 << 20  # of heads in memory; small files are then opened only once
READ_AHEAD = 256  # small objects of a bucket read together: one by one, each would take a round trip
# Byte order marks; UTF-32's begins with UTF-16's.
_WIDE = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
MAX_TEXT_BYTES = 1 << 20  # of a caption file or a JSON line
MAX_MANIFEST_BYTES = 512 << 20  # of a csv or JSON file, which takes several times as much memory as rows
BROKEN = "texts with a line break and without quotes, whose pieces are left out"
NOT_UTF_8 = "lines that are not UTF-8, read as Windows-1252"
# Bytes of words in codes of other alphabets. Windows-1252 has no four different letters beyond ASCII in a row; other signs may be.
_LETTERS = re.compile(rb"[^\0-\x7f\x84\x85\x91-\x97\xa0\xab\xbb]{4,}")
LINE_END = re.compile(r"\r\n|\r|\n")
_DECODER = json.JSONDecoder()
_BLANK = re.compile(r"\s*")
_LIST = re.compile(r'(?:\[|\{[^\[{]*"data"\s*:\s*\[)\s*(?=\{)')  # the beginning of a list of entries
_KEY = re.compile(r'(?<!\\)("(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*")\s*:')
_TIMES = re.compile(r"\s*-?\d[\d.]*(?:\s*$|[\s,;]+-?\d[\d.]*(?:[\s,;]|$))")  # of an event, or a number alone
_FIRST_TIME = re.compile(r"\s*-?(?:0\b|\d+\.\d|\d+\s*$)")  # otherwise it may be `808 909 drum loop`


def _read_at_most(inventory: Inventory, name: bytes, count: int) -> bytes:
    inventory.opened.add(name)
    if (whole := _whole(inventory, name)) is not None:
        return whole
    with _open_packed(inventory.metadata[name], name) as file:
        return file.read(count)


def _decoded(raw: bytes, whole: bool = True) -> tuple[str, list[int]]:
    """Text in UTF-8, UTF-16 or UTF-32, and the numbers of its lines that are in none of them and were read as Windows-1252.

    ValueError if it has zeros, as what is no text, or words that are not Latin in another code. `whole`: false if the end is cut
    off, perhaps within a character.
    """
    if encoding := _wide_encoding(raw):
        text = codecs.getincrementaldecoder(encoding)("replace").decode(raw, final=whole)
        if "\0" not in text and (not text or text.strip("\ufffd")):
            return text.removeprefix("\ufeff"), []
    elif (text := raw.rstrip(b"\0")).endswith((b"\n", b"\r", b"\x1a")):
        raw = text.rstrip(b"\x1a")  # zeros of a disk's blocks, the end of a text of DOS
    if b"\0" in raw:
        raise ValueError(f"not UTF-8 text (zero byte at {raw.index(0)})")
    try:
        return codecs.getincrementaldecoder("utf-8-sig")().decode(raw, final=whole), []
    except UnicodeDecodeError:
        pass
    lines, others, foreign = [], [], 0
    for number, line in enumerate(raw.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        try:
            lines.append(line.decode("utf-8"))
        except UnicodeDecodeError:
            others.append(number)
            foreign += any(len(set(letters)) > 2 for letters in _LETTERS.findall(line))
            # Five bytes are undefined in Windows-1252.
            lines.append(line.decode("cp1252", "surrogateescape").encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
    if 2 * foreign > len(others):
        raise ValueError("neither UTF-8 nor Windows-1252 text")
    return "\n".join(lines), others


def _wide_encoding(raw: bytes) -> str | None:
    """The name of UTF-32 or UTF-16, by the byte order mark or, without one, by where the zeros of Latin letters are."""
    for mark, encoding in _WIDE.items():
        if raw.startswith(mark):
            return encoding
    head = raw[:HEAD_BYTES]
    zeros = {encoding: head[at::2].count(0) for encoding, at in (("utf-16-le", 1), ("utf-16-be", 0))}
    return next((encoding for encoding, count in zeros.items() if 4 * count > len(head) and count == sum(zeros.values())), None)


def read_text(inventory: Inventory, name: bytes, strict: bool = False) -> str:
    """Text of a metadata file, unpacked if `.gz`; UserError, naming it, if unreadable. `strict`: only UTF-8, even with zeros."""
    path = escape_path(inventory.metadata[name])
    try:
        raw = _read_at_most(inventory, name, MAX_MANIFEST_BYTES + 1)
        if len(raw) > MAX_MANIFEST_BYTES:
            raise UserError(f"{path}: more than {MAX_MANIFEST_BYTES >> 20} MiB; split it into several files")
        text, others = (raw.decode("utf-8-sig"), []) if strict else _decoded(raw)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None
    except (OSError, EOFError, zlib.error) as error:
        said = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: {said}; make it readable, or remove it from the corpus") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}; save it as UTF-8, or remove it from the corpus") from None
    inventory.remark(name, NOT_UTF_8, [f"line {number}" for number in others])
    return text


def read_sidecar(inventory: Inventory, name: bytes, reject: Callable[[bytes, str, str], None]) -> str | None:
    """The text beside a recording, stripped; None if it cannot be read: it is rejected, and only this recording has no caption."""
    try:
        raw = _read_at_most(inventory, name, MAX_TEXT_BYTES + 1)
        if len(raw) > MAX_TEXT_BYTES:
            return reject(name, "caption too long", f"over {MAX_TEXT_BYTES} bytes")
        text, others = _decoded(raw)
    except OSError as error:
        return reject(name, "unreadable caption", error.strerror or "")
    except ValueError as error:
        return reject(name, "unreadable caption", str(error))
    if others:
        inventory.recoded[escape_path(name)] = None
        inventory.remark(b"", "texts that are not UTF-8, read as Windows-1252", inventory.recoded)
    lines = list(filter(str.strip, text.split("\n")))
    if len(lines) == 1 and (spoken := re.match(r"\s*0 \d+ (?=[^\W\d_])", text)):  # TIMIT's, from the first sample to the last
        return text[spoken.end() :].strip()
    is_table = len(lines) > 1 and min(counts := [line.strip().count("\t") for line in lines]) == max(counts) > 1
    if is_table or (_FIRST_TIME.match(text.partition("\n")[0]) and all(map(_TIMES.match, lines))):
        return reject(name, "times or numbers", "no caption; write captions, or a csv with a column of labels")
    return text.strip()


def head_text(inventory: Inventory, name: bytes) -> str:
    """Text of the first MAX_TEXT_BYTES of a csv or list; UserError, naming it, if it cannot be read."""
    try:
        with buckets.open_file(inventory.metadata[name]) as file:
            return _utf_8(file.read(MAX_TEXT_BYTES)).decode("utf-8", "replace")
    except OSError as error:
        raise UserError(f"{escape_path(name)}: {error.strerror}; make it readable, or remove it from the corpus") from None


def _utf_8(head: bytes) -> bytes:
    """The first bytes of a text in UTF-8 without byte order mark; as they are if it is no text."""
    try:
        return _decoded(head, whole=False)[0].encode()
    except ValueError:
        return head


def head_lines(inventory: Inventory, name: bytes) -> list[str]:
    """The first lines of a list; the last may be cut."""
    return LINE_END.split(head_text(inventory, name))


def read_lines(inventory: Inventory, name: bytes) -> Iterator[tuple[int, str]]:
    """Non-empty lines of a list as (number, text); encodings as for csv."""
    return ((number, line) for number, line in enumerate(LINE_END.split(read_text(inventory, name)), start=1) if line.strip())


def read_head(inventory: Inventory, name: bytes, size: int = HEAD_BYTES) -> bytes:
    """The first bytes of a metadata file in UTF-8, decompressed if its name ends in `.gz`; empty if it cannot be read."""
    return _utf_8(_raw_head(inventory, name, size))


def _raw_head(inventory: Inventory, name: bytes, size: int) -> bytes:
    if (whole := _whole(inventory, name)) is not None:
        return whole[:size]
    if size == HEAD_BYTES and name in inventory.heads:
        return inventory.heads[name]
    try:
        with buckets.open_file(inventory.metadata[name]) as file:
            head = file.read(size)
        if name.lower().endswith(b".gz"):
            head = zlib.decompressobj(wbits=31).decompress(head, size)
    except (OSError, zlib.error):
        return b""
    if size == HEAD_BYTES and inventory.kept_bytes + len(head) <= KEPT_BYTES:
        inventory.heads[name] = head
        inventory.kept_bytes += len(head)
    return head


def _whole(inventory: Inventory, name: bytes) -> bytes | None:
    """All bytes of a file, if `read_head` has kept them."""
    if name in inventory.objects and name not in inventory.heads:
        _read_ahead(inventory, name)
    head = inventory.heads.get(name)
    return head if head is not None and len(head) < HEAD_BYTES and not name.lower().endswith(b".gz") else None


def _read_ahead(inventory: Inventory, name: bytes) -> None:
    """Keep this small object of a bucket and those of its kind that follow it; none if it is not small."""
    extension = os.path.splitext(name)[1]
    following = inventory.following(name, 4 * READ_AHEAD)
    alike = (other for other in following if other.endswith(extension) and 0 < inventory.objects[other].size < HEAD_BYTES)
    names = list(itertools.islice(alike, READ_AHEAD))
    if names[:1] != [name] or extension.lower() == b".gz":
        return
    if inventory.kept_bytes > KEPT_BYTES:
        inventory.heads.clear()
        inventory.kept_bytes = 0
    heads = buckets.read_all([inventory.metadata[other] for other in names], HEAD_BYTES)
    inventory.heads |= zip(names, heads, strict=True)
    inventory.kept_bytes += sum(map(len, heads))


def first_keys(inventory: Inventory, name: bytes) -> set[str]:
    """Keys of the first entry of a JSON file; all keys in its head if it is a list, or the entry is long, broken or too deep."""
    text = read_head(inventory, name).decode("utf-8", "replace").lstrip()
    value: Any = {}
    if not _LIST.match(text):
        with suppress(RecursionError, ValueError):
            value = _DECODER.raw_decode(text)[0]
    return set(value or map(parse_json, _KEY.findall(text))) if isinstance(value, dict) and text.startswith(("{", "[")) else set()


def read_json(inventory: Inventory, name: bytes) -> Any:
    """The value of a JSON file; UserError, naming it, if it is invalid."""
    text = read_text(inventory, name)
    try:
        with _objects(inventory, name) as made:
            return parse_json(text, object_pairs_hook=made)
    except ValueError as error:
        path = escape_path(inventory.metadata[name])
        raise UserError(f"{path}: not readable as JSON: {error}; correct it, or remove it from the corpus") from None


def read_entries(inventory: Inventory, name: bytes) -> Iterator[tuple[int | str, Any]]:
    """Entries (line or index, value) of JSON lines, a list or its `data`, whatever the name; UserError, naming the line."""
    if _has_lines(inventory, name):
        yield from read_json_lines(inventory, name)
        return
    path, text = escape_path(inventory.metadata[name]), read_text(inventory, name)
    at, line = _BLANK.match(text).end(), 1
    line += text.count("\n", 0, at)
    try:
        with _objects(inventory, name) as made:
            decoder = json.JSONDecoder(object_pairs_hook=made)
            while at < len(text):
                value, end = decoder.raw_decode(text, at)
                items = value.get("data") if isinstance(value, dict) else value
                if isinstance(items, list):
                    place = "data" if isinstance(value, dict) else ""
                    yield from ((f"{place}[{number}]", item) for number, item in enumerate(items))
                else:
                    yield line, value
                end = _BLANK.match(text, end).end()
                at, line = end, line + text.count("\n", at, end)
    except (ValueError, RecursionError) as error:
        line, said = getattr(error, "lineno", line), error if isinstance(error, ValueError) else "nested too deeply"
        raise UserError(f"{path}:{line}: not readable as JSON: {said}; correct it, or remove it from the corpus") from None


def read_annotations(inventory: Inventory, name: bytes) -> Iterator[tuple[str, Any]]:
    """Entries of a list in YAML, whose annotations have a sentence and tags each, as in MACS: (place, values)."""
    try:
        listed = parse_yaml(read_text(inventory, name))
        for at, entry in enumerate(listed if isinstance(listed, list) else next(iter(listed.values()))):
            said = entry.pop("annotations", [])
            told = {
                "sentence": [one.get("sentence") for one in said],
                "labels": [tag for one in said for tag in one.get("tags", [])],
            }
            yield f"[{at}]", entry | told
    except (YAMLError, StopIteration, TypeError, AttributeError) as error:
        said = f"{escape_path(inventory.metadata[name])}: no list of files with annotations ({type(error).__name__})"
        raise UserError(f"{said}; correct it, or remove it from the corpus") from None


def _has_lines(inventory: Inventory, name: bytes) -> bool:
    """Whether each line of a file in UTF-8 is a JSON value, by the first that is not empty."""
    head = _raw_head(inventory, name, HEAD_BYTES)
    text = _utf_8(head).decode("utf-8", "replace").lstrip()
    if _wide_encoding(head) or _LIST.match(text) or text.startswith("["):
        return False
    line, end, _ = text.partition("\n")
    try:
        parse_json(line)
    except TooDeepError:
        return True
    except ValueError:
        return not end and len(head) >= HEAD_BYTES  # a long line
    return True


def read_json_lines(inventory: Inventory, name: bytes) -> Iterator[tuple[int, Any]]:
    """Values of a JSON lines file, compressed or not, as (line number, value); UserError, naming the line, if one is invalid."""
    inventory.opened.add(name)
    path = escape_path(inventory.metadata[name])
    number, total = 0, 0
    others: list[str] = []  # lines that are not UTF-8
    try:
        with _objects(inventory, name) as made, _open_packed(inventory.metadata[name], name) as file:
            while line := file.readline(MAX_TEXT_BYTES + 1):
                number, total = number + 1, total + len(line)
                if len(line) > MAX_TEXT_BYTES or total > MAX_MANIFEST_BYTES:
                    raise UserError(f"{path}:{number}: a line over {MAX_TEXT_BYTES} bytes, or too much text; is it JSON lines?")
                text, recoded = _decoded(line)
                others += [f"line {number}"] * bool(recoded)
                if text.strip():
                    yield number, parse_json(text, object_pairs_hook=made)
    except (ValueError, EOFError, zlib.error, OSError) as error:
        raise UserError(f"{path}:{number}: not readable as JSON lines: {error}; correct it, or remove it from the corpus") from None
    inventory.remark(name, NOT_UTF_8, others)


@contextmanager
def _objects(inventory: Inventory, name: bytes) -> Iterator[Callable[[list[tuple[str, Any]]], dict[str, Any]]]:
    """What makes objects of a JSON file from their pairs; those with a repeated key are remarked at the end."""
    repeated: list[str] = []

    def made(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            repeated.append(f"{Counter(key for key, _ in pairs).most_common(1)[0][0]!r:.80}")
        return value

    yield made
    inventory.remark(name, "objects with a repeated key, whose last value is used", repeated)


def _open_packed(path: bytes, name: bytes) -> IO[bytes]:
    file = buckets.open_file(path)
    return gzip.open(file) if name.lower().endswith(b".gz") else file
