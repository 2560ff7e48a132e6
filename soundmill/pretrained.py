"""Published weight files: source, digest, licence, download. Every file is verified before use."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from soundmill import disk
from soundmill.errors import UserError

VARIABLE = "SOUNDMILL_WEIGHTS"  # names the directory of all weights; default: the user's cache
BLOCK = 1 << 16  # bytes per read; a broken connection loses at most one


@dataclass(frozen=True)
class Weights:
    """One published file, pinned by its SHA-256 or its id in the publisher's git repository.

    If neither is published, by the SHA-256 that the user confirmed: two files can be made that have one MD5. `name` is its name in
    `soundmill weights`; `md5` is checked at every download.
    """

    name: str
    file: str
    url: str
    licence: str
    source: str
    num_bytes: int | None = None  # None: unknown, so an interrupted download starts again
    sha256: str | None = None
    git_blob: str | None = None
    md5: str | None = None

    @property
    def pin(self) -> tuple[str, str]:
        """Name and value of the digest that identifies the file."""
        digests = {"git blob": self.git_blob, "sha256": self.sha256 or self.confirmed, "md5": self.md5}
        return next((kind, digest) for kind, digest in digests.items() if digest)

    @property
    def confirmed(self) -> str:
        """The SHA-256 that the user gave for a file without a published one; empty if none."""
        path = directory() / f"{self.file}.sha256"
        return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


VGGISH = Weights(  # used by an embedder and by a family's discriminators
    name="vggish",
    file="vggish-10086976.pth",
    url="https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth",
    num_bytes=288_567_937,
    sha256="10086976245803799d9194e9a73d9b6c1549c71d1b80106f5cade5608a561f4b",
    licence="Apache-2.0",
    source="Hershey et al. 2017, arXiv:1609.09430; ported by github.com/harritaylor/torchvggish",
)


def directory() -> Path:
    """The directory of all weights: `$SOUNDMILL_WEIGHTS`, else the user's cache."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    import pooch

    return Path(pooch.os_cache("soundmill"))


def unavailable(weights: Weights) -> str | None:
    """Why these weights cannot be used, with a remedy; None if a file of that name exists."""
    place = directory()
    if (place / weights.file).is_file():
        return None
    where = f"the directory ${VARIABLE}, {place}" if os.environ.get(VARIABLE) else f"{place} (${VARIABLE} names another directory)"
    size = "" if weights.num_bytes is None else f"{weights.num_bytes:,} bytes "
    return (
        f"{weights.file} is not in {where}; run `soundmill weights fetch {weights.name}`, or put the file there, "
        f"{size}from {weights.url}"
    )


def path(weights: Weights, fully: bool = False) -> Path:
    """The file of these weights, verified; a missing file or one with another digest raises UserError."""
    reason = unavailable(weights)
    if reason:
        raise UserError(f"{weights.name}: {reason}")
    _check_is_pinned(weights)
    file = directory() / weights.file
    _check_digests(file, weights, f"fetch it again: `soundmill weights fetch {weights.name}`", fully)
    return file


def _digest(kind: str, path: Path) -> str:
    """Digest of a file, computed once per process unless the file changes."""
    status = path.stat()
    return _cached_digest(kind, str(path), status.st_mtime_ns, status.st_size)


@cache
def _cached_digest(kind: str, path: str, modified: int, size: int) -> str:
    with open(path, "rb") as file:
        if kind != "git blob":
            return hashlib.file_digest(file, kind).hexdigest()
        named = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)  # as git names the content of a file
        return hashlib.file_digest(file, lambda: named).hexdigest()


def _check_is_pinned(weights: Weights) -> None:
    if weights.pin[0] == "md5":
        raise UserError(
            f"{weights.name}: only an MD5 of {weights.file} is published, and files with equal MD5s can be made; if you know its "
            f"SHA-256 from a source you trust, run `soundmill weights fetch {weights.name} --sha256 DIGEST`"
        )


def _check_digests(path: Path, weights: Weights, remedy: str, fully: bool = True) -> None:
    """UserError if a file has not the digest that identifies it or, checked `fully`, the publisher's MD5."""
    for kind, expected in (weights.pin, *([("md5", weights.md5)] if fully and weights.md5 else [])):
        computed = _digest(kind, path)
        if computed != expected:
            raise UserError(f"{path}: not the published weights ({kind} {computed}, expected {expected}); {remedy}")


def verify(weights: Weights) -> Path:
    """`path`, after computing all known digests of the file again."""
    _cached_digest.cache_clear()
    return path(weights, fully=True)


def fetch(weights: Weights, mirror: Path | None = None, progress: Any = False, sha256: str = "") -> Path:
    """Download the weights, or copy them from the directory `mirror`; they appear in `directory()` verified, or not at all.

    An interrupted download is resumed. `sha256`, for a file without a published one, is kept beside the file. `progress`: pooch's
    `progressbar`. UserError if there is no connection, the digest differs, the disk is full, or the mirror does not have the file.
    """
    target = directory() / weights.file
    if sha256 and weights.pin[0] != "md5" and weights.pin[1] != sha256:
        raise UserError(f"--sha256 {sha256}: {weights.name} is checked by its {' '.join(weights.pin)}; leave --sha256 out")
    if sha256 and weights.pin[0] == "md5":
        confirmed = target.with_name(f"{target.name}.sha256")
        fetch(replace(weights, sha256=sha256), mirror, progress)
        disk.write_text(confirmed, f"{sha256}\n")
        return target
    _check_is_pinned(weights)
    if target.is_file() and _digest(weights.pin[0], target) == weights.pin[1]:
        return target
    if mirror is not None and not (mirror / weights.file).is_file():
        raise UserError(f"{mirror / weights.file}: no such file; a mirror is a directory with {weights.file} in it")
    part = target.with_name(f".{weights.file}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(part) as file:
            if mirror is None:
                _download(weights, file, progress)
            else:
                file.truncate(0)
                with (mirror / weights.file).open("rb") as original:
                    shutil.copyfileobj(original, file, BLOCK)
                    file.flush()
            disk.sync_file(part)
            remedy = "the download was deleted; fetch it again, or get the file elsewhere and use `--from DIRECTORY`"
            try:
                _check_digests(part, weights, remedy)
            except UserError:
                part.unlink()
                raise
            os.replace(part, target)
            disk.sync_directory(target.parent)
    except OSError as error:  # also raised by requests
        size = part.stat().st_size if part.is_file() else 0
        reason = " ".join(str(error).split())[:300]
        left = f"the next `soundmill weights fetch {weights.name}` {'resumes' if weights.num_bytes else 'starts again'}"
        if weights.num_bytes:
            left = f"{size:,} of {weights.num_bytes:,} bytes are here, and {left}"
        raise UserError(
            f"{weights.name}: {weights.file} could not be fetched from {mirror or weights.url} ({reason}); {left}. "
            f"Without a connection, put the file into {target.parent}, or name a directory that has it with `--from`"
        ) from None
    return target


@contextlib.contextmanager
def _locked(part: Path) -> Iterator[BinaryIO]:
    """The partial file, opened to append and locked; UserError if another process has locked it."""
    with part.open("ab") as file:
        try:  # another process may have moved it into place since it was opened
            locked = disk.try_lock(file) and os.path.samestat(os.fstat(file.fileno()), part.stat())
        except FileNotFoundError:
            locked = False
        if not locked:
            raise UserError(f"{part}: another process is fetching this file; wait for it")
        yield file


def _download(weights: Weights, file: BinaryIO, progress: Any) -> None:
    import pooch

    start = file.tell()
    if weights.num_bytes is None or start > weights.num_bytes:
        start = file.truncate(0)
    if start == weights.num_bytes:
        return

    def restart(response: Any, **_: Any) -> None:
        if response.status_code == 200:  # not 206: the server ignores the range and sends the whole file
            file.truncate(0)

    get = pooch.HTTPDownloader(
        progressbar=progress,
        chunk_size=BLOCK,
        timeout=(5, 30),  # seconds to connect, few as there may be no network, and between blocks
        headers={"Range": f"bytes={start}-", "Accept-Encoding": "identity"},
        hooks={"response": restart},
    )
    get(weights.url, file, None)
