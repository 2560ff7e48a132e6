"""Recordings in object stores, addressed as `s3://bucket/prefix`, `gs://…` or `az://…` and read through fsspec.

Credentials come from the environment of each store's own library, never from a URL or a parameter. What cannot be read after
ATTEMPTS is a UserError that names the object; an object that is gone or forbidden is an OSError, as with files.
"""

import errno
import functools
import hashlib
import io
import itertools
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, TypeVar

from soundmill import hashing, terminal
from soundmill.errors import UserError
from soundmill.manifest import escape_path, path_text
from soundmill.params import check_urls

SCHEMES = ("s3", "gs", "az")  # each with an extra of that name in pyproject.toml
ATTEMPTS = 6
FIRST_PAUSE = 0.25  # seconds before the second attempt; each later pause is twice as long
AT_ONCE = 16  # requests of one process
AHEAD = 32  # objects on disk before their turn, in one process
BLOCK_BYTES = 8 << 20  # read at once
TAG_BYTES = 1 << 18  # read at once for tags
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)

T = TypeVar("T")


@dataclass(frozen=True)
class Bucket:
    """A bucket, or the objects below a prefix in it; `url` has no slash at its end."""

    url: str

    def __str__(self) -> str:
        return self.url

    def __bytes__(self) -> bytes:
        return self.url.encode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class Object:
    """An object below a bucket's prefix; `raw_path` is relative to it, and another `tag` means another content."""

    raw_path: bytes
    size: int
    tag: str


def is_url(path: bytes | str) -> bool:
    """Whether a path is that of an object, or looks like one."""
    return bool(_URL.match(path if isinstance(path, str) else path_text(path)))


def root_of(path: str, home: Path) -> Path | Bucket:
    """The bucket at a URL, or the directory at a path, which if relative starts at `home`; UserError if a URL is not usable."""
    check_urls(path, "corpus.path")
    if not (match := _URL.match(path)):
        return (home / path).resolve()
    scheme, rest = match[1], match[2].rstrip("/")
    if scheme not in SCHEMES:
        raise UserError(f"corpus.path: {scheme}://: unknown; buckets are {', '.join(f'{name}://' for name in SCHEMES)}")
    if not re.match(r"[A-Za-z0-9]", rest) or re.search(r"[?#\0]|(^|/)\.{0,2}(/|$)", rest):
        raise UserError(f"corpus.path: {scheme}://{rest}: not a bucket; write {scheme}://BUCKET/PREFIX, without ? # // and dots")
    return Bucket(f"{scheme}://{rest}")


def objects(bucket: Bucket) -> list[Object]:
    """All objects below the prefix, sorted by path; UserError if the listing cannot be completed, or there is no such bucket."""
    store, path = _find(bytes(bucket))
    name, _, prefix = path.partition("/")
    prefix = prefix and prefix + "/"
    try:
        if bucket.url.startswith("s3://"):
            found = _list_s3(bucket, store, name, prefix)
        else:
            listed = _retried(str(bucket), lambda: store.find(path, detail=True))
            found = ((info["name"].removeprefix(f"{name}/"), info["size"], _tag(info)) for info in listed.values())
        return sorted((Object(key[len(prefix) :].encode(), size, tag) for key, size, tag in found), key=lambda one: one.raw_path)
    except FileNotFoundError:
        raise UserError(f"corpus.path: {bucket}: no such bucket or prefix; check its name and the endpoint") from None
    except OSError as error:
        raise UserError(f"corpus.path: {bucket}: cannot be listed: {error.strerror or error}; check your rights") from None


def _list_s3(bucket: Bucket, store: Any, name: str, prefix: str) -> Iterator[tuple[str, int, str]]:
    """(key, size, tag) of all objects. The listing ends at an empty page and every page states its length, so that pages and keys
    lost on the way are noticed; flags and tokens of pages are not relied on."""
    after = ""

    def page() -> list[dict[str, Any]]:
        answer = store.call_s3("list_objects_v2", Bucket=name, Prefix=prefix, StartAfter=after)
        entries = answer.get("Contents", [])
        if answer.get("KeyCount", len(entries)) != len(entries) or (answer.get("IsTruncated") and not entries):
            raise OSError(errno.EIO, f"{len(entries)} objects on a page of {answer.get('KeyCount')}")
        return entries

    while entries := _retried(f"{bucket} (listing after {after!r})", page):
        if entries[0]["Key"].encode() <= after.encode():
            raise UserError(f"corpus.path: {bucket}: this server does not list objects in the order of their keys")
        yield from ((entry["Key"], entry["Size"], _tag(entry)) for entry in entries)
        after = entries[-1]["Key"]


def digests(
    bucket: Bucket, wanted: Sequence[Object], cache: Path | None = None, about: tuple[str, Callable[[BinaryIO], str]] | None = None
) -> Iterator[str | OSError]:
    """`hashing.file_digest` of every object, in order; the OSError of one that cannot be read or changed after it was listed.

    Objects are streamed; with a `cache`, only those with a new tag or size. `about` as in hashing.file_digests, by ranges.
    """

    def read_digest(number: int) -> str | OSError:
        one = wanted[number]
        url, state, text = join(bucket, one.raw_path), hashlib.sha256(usedforsecurity=False), ""
        try:
            if one.size < BLOCK_BYTES:  # one answer has one content; a byte more would show that it has grown
                state.update(data := read(url, 0, one.size + 1))
                unchanged = len(data) == one.size
                text = about[1](io.BytesIO(data)) if about else ""
            else:
                for start in range(0, one.size, BLOCK_BYTES):
                    state.update(read(url, start, min(one.size, start + BLOCK_BYTES)))
                text = about[1](open_file(url, TAG_BYTES)) if about else ""
                unchanged = facts(url) == (one.size, one.tag)
        except OSError as error:
            return error
        digest = state.hexdigest()[:32] + (f"\n{text}" if text else "")
        return digest if unchanged else OSError(errno.ESTALE, "it changed while the bucket was read")

    suffix = b"\0" + about[0].encode() if about else b""
    rows = [(join(bucket, one.raw_path) + suffix, f"{one.size} {one.tag}") for one in wanted]
    return hashing.cached_values(rows, read_digest, cache, AT_ONCE)


def join(bucket: Bucket, raw_path: bytes) -> bytes:
    return bytes(bucket) + b"/" + raw_path


def facts(url: bytes) -> tuple[int, str]:
    """(size, tag) of an object, as it is now."""
    store, path = _find(url)

    def info() -> dict[str, Any]:
        store.invalidate_cache()
        return store.info(path)

    answer = _retried(escape_path(url), info)
    return answer["size"], _tag(answer)


def read(url: bytes, start: int, end: int) -> bytes:
    """The bytes of an object from `start` to `end`, or to its end if it is shorter."""
    store, path = _find(url)
    return _retried(escape_path(url), lambda: store.cat_file(path, start=start, end=end)) if end > start else b""


def read_all(urls: Sequence[bytes], count: int) -> list[bytes]:
    """The first `count` bytes of several objects, of which none is empty."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda url: read(url, 0, count), urls))


def open_file(path: bytes, at_once: int = BLOCK_BYTES) -> BinaryIO:
    """Open a file, or an object that is then read by ranges of `at_once` bytes."""
    return io.BufferedReader(_Ranges(path), at_once) if is_url(path) else open(path, "rb")


class _Ranges(io.RawIOBase):
    """An object as a file."""

    def __init__(self, url: bytes):
        self._url, self._at = url, 0
        self._size, _ = facts(url)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = read(self._url, self._at, min(self._at + len(buffer), self._size))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def fetch(url: bytes, path: Path) -> None:
    store, remote = _find(url)
    _retried(escape_path(url), lambda: store.get_file(remote, str(path)))


def fetch_ahead(urls: Iterable[bytes], scratch: Path) -> Iterator[Callable[[], Path]]:
    """For every object, in order, a function that waits for its copy below `scratch`, or raises what `fetch` does.

    At most AHEAD copies are made before they are asked for. The caller removes each; those left go at the end.
    """
    with TemporaryDirectory(prefix="objects-", dir=scratch) as place, ThreadPoolExecutor(AT_ONCE) as pool:
        numbered = enumerate(urls)

        def start(number: int, url: bytes) -> Callable[[], Path]:
            path = Path(place) / str(number)
            copied = pool.submit(fetch, url, path)
            return lambda: copied.result() or path

        waiting = deque(start(*item) for item in itertools.islice(numbered, AHEAD))
        try:
            while waiting:
                yield waiting.popleft()
                waiting.extend(start(*item) for item in itertools.islice(numbered, 1))
        finally:
            pool.shutdown(cancel_futures=True)


def _find(url: bytes) -> tuple[Any, str]:
    """(file system in this process, bucket and key)."""
    match = _URL.match(path_text(url))
    return _store(match[1], os.getpid()), match[2]


def _tag(info: dict[str, Any]) -> str:
    """What a store calls a content; ETag, or etag."""
    return str(info.get("ETag") or info.get("etag") or "").strip('"')


@functools.cache
def _store(scheme: str, process: int) -> Any:
    """The file system of a scheme in this process; UserError if its package is missing, or it finds no credentials."""
    import fsspec

    # Retries are ours: they are then reported.
    options = {"config_kwargs": {"retries": {"total_max_attempts": 1}}} if scheme == "s3" else {}
    try:
        store = fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True, **options)
        if scheme == "s3":
            store.connect()  # otherwise each of the first requests would
        return store
    except ImportError as error:
        raise UserError(f"corpus.path: {scheme}:// needs `pip install 'soundmill[{scheme}]'` ({error})") from None


def _retried(what: str, call: Callable[[], T]) -> T:
    """`call()`, repeated if the store fails; each failure is printed."""
    for attempt in itertools.count(1):
        try:
            return call()
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, "no such object") from None
        except PermissionError as error:
            raise PermissionError(errno.EACCES, error.strerror or str(error)) from None
        except UserError:
            raise
        except Exception as error:  # each store's library has its own
            if isinstance(error, OSError) and error.errno == errno.EINVAL:  # e.g. a range past the end
                raise
            reason = " ".join((str(error) or type(error).__name__).split())[:200]
            if "Credential" in type(error).__name__:
                raise UserError(
                    f"{what}: {reason}; set the store's credentials in the environment (docs/corpora.md#buckets)"
                ) from None
            if attempt == ATTEMPTS:
                raise UserError(f"{what}: failed {ATTEMPTS} times, lastly: {reason}; check the store, and run it again") from None
            terminal.say(f"{what}: failed {attempt} of {ATTEMPTS} times: {reason}", error=True)
            time.sleep(FIRST_PAUSE * 2 ** (attempt - 1))
