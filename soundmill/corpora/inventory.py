"""The files of a corpus directory: possible recordings, metadata, and files that must not be opened."""

import bisect
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from soundmill import hashing
from soundmill.corpora import buckets, sound_tags
from soundmill.corpora.buckets import Bucket
from soundmill.decoding import decode
from soundmill.decoding.containers import is_text
from soundmill.decoding.containers.layout import HEAD_BYTES
from soundmill.errors import UserError
from soundmill.manifest import escape_path, path_text
from soundmill.params import read_yaml

MEDIA, METADATA = map(frozenset, read_yaml(Path(__file__).with_name("extensions.yaml")).values())
METADATA_NAMES = re.compile(
    rb"(licen[cs]e|readme|copying|citation|changelog|changes|authors|credits|notice|makefile)([-_].*)?", re.IGNORECASE
)
# Soft hyphen, space, marks of direction, joiner, byte order mark.
_NO_WIDTH = dict.fromkeys(map(ord, "\u00ad\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff"))
LICENCES = b"licences.csv"  # at the root: the terms of the recordings; see terms.py
_TABLE = re.compile(
    rb"\.((csv|tsv|json|jsonl|ndjson)(\.gz)?|txt|lab|lrc|srt|parquet|arrow|ya?ml|xlsx?|ods|scp|data)$|(^|/)text$", re.IGNORECASE
)
_KINDS = {stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket", stat.S_IFCHR: "character device", stat.S_IFBLK: "block device"}
LARGE_BYTES = 64 << 20  # recordings from this size on have their header checked before they are digested
MAX_RECORDING_BYTES = 64 << 30  # two hours of eight channels of float32 at 192 kHz are 44 GB


def composed(text: str) -> str:
    """Composed Unicode (NFC), since some file systems and programs write `é` as two characters; without characters of no width."""
    return text if text.isascii() else unicodedata.normalize("NFC", text.translate(_NO_WIDTH))


def composed_path(path: bytes) -> bytes:
    return path if path.isascii() else composed(path_text(path)).encode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class AudioFile:
    """A regular, non-empty file that may hold a recording; `raw_path` is relative to the corpus."""

    raw_path: bytes
    size: int
    digest: str  # of its bytes; empty in an inventory without digests
    tags: str = ""  # as JSON; see sound_tags.read

    @property
    def path(self) -> str:
        return escape_path(self.raw_path)

    @property
    def shard_key(self) -> bytes:
        """Its hash gives the shard."""
        return self.raw_path

    @property
    def folders(self) -> list[bytes]:
        """The names of its folders, composed."""
        return composed_path(self.raw_path).split(b"/")[:-1]

    @property
    def name(self) -> bytes:
        return os.path.basename(self.raw_path)

    @property
    def stem(self) -> str:
        """Name without extension; undecodable bytes become surrogates."""
        return path_text(os.path.splitext(self.name)[0])


@dataclass
class Inventory:
    """The files of one corpus, sorted by raw path."""

    root: Path | Bucket
    audio: list[AudioFile] = field(default_factory=list)
    metadata: dict[bytes, bytes] = field(default_factory=dict)  # path relative to the corpus → absolute path or URL
    objects: dict[bytes, buckets.Object] = field(default_factory=dict)  # of a bucket: its metadata
    ignored: Counter[str] = field(default_factory=Counter)  # extension or name → count
    rejected: list[dict[str, str]] = field(default_factory=list)  # rows of manifest.QUARANTINE
    remarks: dict[tuple[bytes, str], str] = field(default_factory=dict)  # (metadata file, problem) → sentence for reports
    recoded: dict[str, None] = field(default_factory=dict)  # paths of small texts that are not UTF-8
    opened: set[bytes] = field(default_factory=set)  # metadata files read, at least in part
    heads: dict[bytes, bytes] = field(default_factory=dict)  # first HEAD_BYTES of metadata files; see metadata.read_head
    columns: dict[bytes, list[str]] = field(default_factory=dict)  # headers of csv files; see csv_tables.csv_columns
    kept_bytes: int = 0  # of `heads`
    num_files: int = 0
    digests: bool = True  # whether the files were digested
    cache: Path | None = None  # of digests; see hashing.file_digests
    _names: list[bytes] = field(default_factory=list)  # of `objects`
    _alike: dict[bytes, bytes] = field(default_factory=dict)  # see `beside`

    def remark(self, name: bytes, what: str, places: Collection[str]) -> None:
        """Note a problem of these places of a metadata file, or of the corpus (empty name), that did not prevent reading it."""
        if places:
            where = f"{escape_path(name)}: " if name else ""
            self.remarks[name, what] = f"{where}{len(places)} {what} (first: {next(iter(places))})"

    def reject(self, raw_path: bytes, reason: str, detail: str = "") -> None:
        self.rejected.append({"path": escape_path(raw_path), "reason": reason, "detail": detail})

    def lacks(self, what: str, remedy: str) -> UserError:
        """The error for a format whose metadata is missing."""
        return UserError(f"corpus.path: no {what} below {escape_path(bytes(self.root))}; {remedy}, or choose another corpus.format")

    def check_not_empty(self) -> None:
        """UserError, naming the folder and its contents, if it has no possible recording."""
        if self.audio or any(name.lower().endswith(b".parquet") for name in self.metadata):
            return
        ignored = ", ".join(f"{count} {kind}" for kind, count in sorted(self.ignored.items())[:8])
        rejected = "; ".join(f"{row['path']}: {row['reason']}" for row in self.rejected[:5])
        raise UserError(
            f"no recording in {escape_path(bytes(self.root))} ("
            + (f"{self.num_files} files" if self.num_files else "no files")
            + (f"; ignored: {ignored}" if ignored else "")
            + (f"; rejected: {rejected}" if rejected else "")
            + "".join(f"; {remark}" for remark in self.remarks.values())
            + ("); unpack its archives" if self.ignored.keys() & {".tar", ".zip", ".7z", ".rar", ".gz"} else ")")
            + "; give the directory of the audio files (`corpus.path`)"
        )

    def beside(self, raw_path: bytes, extension: bytes) -> bytes | None:
        """The metadata file with this path and extension; the first may differ in its Unicode form, the second in case."""
        if raw_path + extension in self.metadata:
            return raw_path + extension
        if not self._alike:
            for name in self.metadata:
                stem, own = os.path.splitext(name)
                self._alike.setdefault(composed_path(stem) + own.lower(), name)
        return self._alike.get(composed_path(raw_path) + extension)

    def following(self, name: bytes, count: int) -> list[bytes]:
        """At most `count` of the `objects`, from this one on."""
        if not self._names:
            self._names = list(self.objects)
        first = bisect.bisect_left(self._names, name)
        return self._names[first : first + count]

    def metadata_digests(self, workers: int) -> list[str]:
        """What identifies the content of each metadata file, in the order of their names: a digest, or an object's tag."""
        names = sorted(self.metadata)
        if self.objects:
            return [f"{self.objects[name].size} {self.objects[name].tag}" for name in names]
        return [str(value) for value in hashing.file_digests([self.metadata[name] for name in names], self.cache, workers)]

    def cached(self, name: bytes, what: str, make: Callable[[], str]) -> str:
        """`make()`, a text that depends on a metadata file, from the cache if the file has not changed."""
        if name not in self.objects:
            return hashing.cached_value(self.metadata[name], what, make, self.cache)
        one = self.objects[name]
        row = (self.metadata[name] + b"\0" + what.encode(), f"{one.size} {one.tag}")
        (text,) = hashing.cached_values([row], lambda _: make(), self.cache)
        return text

    def unread(self) -> list[bytes]:
        """The tables that were not opened, without those of which a remark says why."""
        told = {name for name, _ in self.remarks} | self.opened | {LICENCES}
        unread = (name for name in self.metadata if _TABLE.search(name) and name not in told)
        return [name for name in unread if not is_about_corpus(name)]

    def csv_files(self) -> list[bytes]:
        return [name for name in self.metadata if name.lower().endswith(b".csv") and name != LICENCES]


def is_about_corpus(name: bytes) -> bool:
    """Whether a text is a readme, licence or similar (`README.txt`, `UrbanSound8K_README.txt`)."""
    stem, extension = os.path.splitext(os.path.basename(name))
    return extension.lower() == b".txt" and any(METADATA_NAMES.fullmatch(word) for word in re.split(rb"[^A-Za-z]+", stem))


def list_files(
    root: Path | Bucket,
    workers: int = 1,
    digests: bool = True,
    cache: Path | None = None,
    follow_links: bool = False,
    max_seconds: float = decode.MAX_SECONDS,
    progress: Callable[[int], None] = lambda n: None,
) -> Inventory:
    """List the files of a corpus. Everything that reads a corpus opens only files of its inventory.

    Only regular files are opened; with `digests=False`, only those with unknown extensions. docs/corpora.md says which links are
    followed and what is ignored. A large file is quarantined before it is digested if its header is unusable or declares more than
    `max_seconds`. `cache` as in hashing.file_digests. Objects of a bucket are treated as files; large ones too are digested.
    """
    inventory = Inventory(root, digests=digests, cache=cache)
    top = bytes(root)
    candidates: list[tuple[bytes, int]] = []
    if isinstance(root, Bucket):
        listed = _objects(root, inventory)
        entries = ((path, one.size) for path, one in listed.items())
        has_text = _texts(root, listed).__contains__
    else:
        listed, entries = {}, _walk(top, inventory, follow_links)

        def has_text(raw_path: bytes) -> bool:
            with suppress(OSError), open(os.path.join(top, raw_path), "rb") as file:
                return is_text(file.read(HEAD_BYTES))
            return False

    for raw_path, size in entries:
        inventory.num_files += 1
        name = os.path.basename(raw_path)
        extension = os.path.splitext(name)[1].lower()
        if _is_metadata(name, extension) or (size and path_text(extension) not in MEDIA and has_text(raw_path)):
            inventory.metadata[raw_path] = os.path.join(top, raw_path)
            if raw_path in listed:
                inventory.objects[raw_path] = listed[raw_path]
            if raw_path != LICENCES:
                inventory.ignored[escape_path(extension or name)] += 1
        elif size == 0:
            inventory.reject(raw_path, "empty", "zero bytes")
        elif size > MAX_RECORDING_BYTES:
            inventory.reject(raw_path, "too large", f"{size} bytes, more than {MAX_RECORDING_BYTES}")
        else:
            candidates.append((raw_path, size))
    if not digests:
        inventory.audio = [AudioFile(raw_path, size, "") for raw_path, size in candidates]
        return inventory

    def check(path: bytes) -> decode.DecodeError | None:
        try:
            if os.path.getsize(path) >= LARGE_BYTES:
                decode.check_header(path, max_seconds)
        except decode.DecodeError as error:
            return error
        return None

    about = sound_tags.VERSION, sound_tags.read
    if isinstance(root, Bucket):
        results = buckets.digests(root, [listed[path] for path, _ in candidates], cache, about)
    else:
        paths = [os.path.join(top, path) for path, _ in candidates]
        results = hashing.file_digests(paths, cache, workers, check=check, about=about)
    for (raw_path, size), result in zip(candidates, results, strict=True):
        progress(1)
        if isinstance(result, OSError):
            inventory.reject(raw_path, "unreadable", result.strerror or str(result))
        elif isinstance(result, decode.DecodeError):
            inventory.reject(raw_path, result.reason, result.detail)
        else:
            digest, _, tags = result.partition("\n")
            inventory.audio.append(AudioFile(raw_path, size, digest, tags))
    return inventory


def read_tags(inventory: Inventory, progress: Callable[[int], None] = lambda n: None) -> list[bytes]:
    """Add the tags of its files to an inventory without digests; returns the paths of those that cannot be read."""
    top = bytes(inventory.root)

    def tags(file: AudioFile) -> str | None:
        try:
            with buckets.open_file(os.path.join(top, file.raw_path), buckets.TAG_BYTES) as sound:
                return sound_tags.read(sound)
        except OSError:
            return None

    unreadable = []
    with ThreadPoolExecutor(buckets.AT_ONCE) as pool:
        for number, text in enumerate(pool.map(tags, inventory.audio)):
            if text is None:
                unreadable.append(inventory.audio[number].raw_path)
            inventory.audio[number] = replace(inventory.audio[number], tags=text or "")
            progress(1)
    return unreadable


def _is_metadata(name: bytes, extension: bytes) -> bool:
    return path_text(extension) in METADATA or extension.endswith(b"~") or bool(not extension and METADATA_NAMES.fullmatch(name))


def _texts(bucket: Bucket, listed: Mapping[bytes, buckets.Object]) -> set[bytes]:
    """Objects whose first bytes show that they are texts, which their name does not."""
    unknown = []
    for path, one in listed.items():
        extension = os.path.splitext(path)[1].lower()
        if one.size and path_text(extension) not in MEDIA and not _is_metadata(os.path.basename(path), extension):
            unknown.append(path)
    heads = buckets.read_all([buckets.join(bucket, path) for path in unknown], HEAD_BYTES)
    return {path for path, head in zip(unknown, heads, strict=True) if is_text(head)}


def _objects(bucket: Bucket, inventory: Inventory) -> dict[bytes, buckets.Object]:
    """Objects by path, sorted; those that would be no regular file, or hidden, are quarantined or ignored."""
    files = {}
    hidden = set()
    for one in buckets.objects(bucket):
        parts = one.raw_path.split(b"/")
        if dot := next((number for number, part in enumerate(parts, start=1) if part.startswith(b".")), 0):
            hidden.add(b"/".join(parts[:dot]))
        elif not parts[-1] and not one.size:
            inventory.ignored["folder markers"] += 1
        elif b"" in parts or b"\0" in one.raw_path or b"?versionId=" in one.raw_path:
            inventory.reject(one.raw_path, "unreadable", "no file can have this name")
        else:
            files[one.raw_path] = one
    if hidden:
        inventory.ignored["dot files"] += len(hidden)
    return files


def _walk(top: bytes, inventory: Inventory, follow_links: bool) -> Iterator[tuple[bytes, int]]:
    """Regular files below `top` as (relative path, size), sorted by path; others are quarantined or ignored."""
    files: list[tuple[bytes, int]] = []
    real_top = os.path.realpath(top)
    seen = {_identity(os.stat(top))}
    links: list[bytes] = []  # to directories
    leaving: list[bytes] = []  # links out of the corpus
    todo = [b""]
    while todo or links:
        # Real directories first, so that files are listed under their real path.
        if not todo:
            link = links.pop(0)
            if refusal := _refusal(os.path.join(top, link), real_top, seen):
                inventory.reject(link, "directory link", refusal)
                continue
            seen.add(_identity(os.stat(os.path.join(top, link))))
            leaving.append(link)
            todo.append(link)
        where = todo.pop()
        try:
            entries = sorted(os.scandir(os.path.join(top, where)), key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            if not where:
                raise UserError(f"corpus.path: {escape_path(top)}: {error.strerror}") from None
            inventory.reject(where, "unreadable", error.strerror or str(error))
            continue
        for entry in entries:
            raw_path = os.path.join(where, entry.name)
            if entry.name.startswith(b"."):
                inventory.ignored["dot files"] += 1
                continue
            try:
                status = entry.stat()
            except OSError as error:
                reason, detail = "unreadable", error.strerror or str(error)
                if entry.is_symlink() and not isinstance(error, PermissionError):
                    reason, detail = "dangling link", f"leads to {escape_path(os.readlink(entry.path))}: {detail}"
                inventory.reject(raw_path, reason, detail)
                continue
            leaves = entry.is_symlink() and not _is_below(real := os.path.realpath(entry.path), real_top)
            if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
                inventory.reject(raw_path, "not a regular file", _KINDS.get(stat.S_IFMT(status.st_mode), "unknown kind"))
            elif leaves and not follow_links:
                inventory.reject(raw_path, "link_leaves_corpus", f"leads to {escape_path(real)}")
                leaving.append(raw_path)
            elif stat.S_ISREG(status.st_mode):
                files.append((raw_path, status.st_size))
                if leaves:
                    leaving.append(raw_path)
            elif entry.is_symlink():
                links.append(raw_path)
            elif _identity(status) in seen:  # through a link to a folder above it
                inventory.reject(raw_path, "directory link", "already scanned through a link")
            else:
                seen.add(_identity(status))
                todo.append(raw_path)
        links.sort()
    treatment = "followed" if follow_links else "not followed; corpus.follow_links: true follows them"
    inventory.remark(b"", f"links that lead out of the folder and are {treatment}", list(map(escape_path, sorted(leaving))))
    return iter(sorted(files))


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _is_below(path: bytes, top: bytes) -> bool:
    """Whether a path is `top` or below it; both without links."""
    return (path + b"/").startswith(top.rstrip(b"/") + b"/")


def _refusal(link: bytes, real_top: bytes, seen: set[tuple[int, int]]) -> str:
    """Why a link to a directory is not followed; empty if it is."""
    real = os.path.realpath(link)
    if _identity(os.stat(link)) in seen or _is_below(real, real_top):
        return f"leads to {escape_path(real)}, which is already scanned"
    if _is_below(real_top, real):
        return f"leads to {escape_path(real)}, above the corpus"
    return ""
