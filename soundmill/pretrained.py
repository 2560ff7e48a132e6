"""Published weights of embedders: source, checksum and licence of each file, and its download. Unverified files are never used."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from soundmill import disk
from soundmill.errors import UserError
from soundmill.params import did_you_mean

VARIABLE = "SOUNDMILL_WEIGHTS"  # their directory; default: the user's cache
BLOCK = 1 << 16  # bytes read at once: a broken connection loses at most these


@dataclass(frozen=True)
class Weights:
    """One published file, identified by its `sha256`; `md5` is the checksum that its publisher gives, if any."""

    file: str
    url: str
    num_bytes: int
    sha256: str
    licence: str
    source: str
    md5: str | None = None


_ZENODO = "https://zenodo.org/records/3987831/files"

REGISTRY = {
    "vggish": Weights(
        file="vggish-10086976.pth",
        url="https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth",
        num_bytes=288_567_937,
        sha256="10086976245803799d9194e9a73d9b6c1549c71d1b80106f5cade5608a561f4b",
        licence="Apache-2.0",
        source="Hershey et al. 2017, arXiv:1609.09430; ported by github.com/harritaylor/torchvggish",
    ),
    "panns_cnn14_16k": Weights(
        file="Cnn14_16k_mAP=0.438.pth",
        url=f"{_ZENODO}/Cnn14_16k_mAP%3D0.438.pth?download=1",
        num_bytes=358_668_570,
        sha256="e2ee543a27919542c2ea03eabaa70b24dcd4e6c8e05621de6b67a94e4c5058e6",
        licence="CC-BY-4.0",
        source="Kong et al. 2020, arXiv:1912.10211; doi:10.5281/zenodo.3987831",
        md5="362fc5ff18f1d6ad2f6d464b45893f2c",
    ),
    "panns_cnn14_32k": Weights(
        file="Cnn14_mAP=0.431.pth",
        url=f"{_ZENODO}/Cnn14_mAP%3D0.431.pth?download=1",
        num_bytes=327_428_481,
        sha256="0dc499e40e9761ef5ea061ffc77697697f277f6a960894903df3ada000e34b31",
        licence="CC-BY-4.0",
        source="Kong et al. 2020, arXiv:1912.10211; doi:10.5281/zenodo.3987831",
        md5="541141fa2ee191a88f24a3219fff024e",
    ),
    "yamnet": Weights(
        file="yamnet.tflite",
        url="https://tfhub.dev/google/lite-model/yamnet/classification/tflite/1?lite-format=tflite",
        num_bytes=4_126_810,
        sha256="10c95ea3eb9a7bb4cb8bddf6feb023250381008177ac162ce169694d05c317de",
        licence="Apache-2.0",
        source="github.com/tensorflow/models, research/audioset/yamnet",
    ),
}


def entry(name: str) -> Weights:
    """The registry's entry; UserError for an unknown name."""
    if name not in REGISTRY:
        raise UserError(f"unknown weights {name!r}{did_you_mean(name, list(REGISTRY))}; known: {', '.join(REGISTRY)}")
    return REGISTRY[name]


def directory() -> Path:
    """Where weights are stored: `$SOUNDMILL_WEIGHTS`, or the user's cache."""
    configured = os.environ.get(VARIABLE)
    if configured:
        return Path(configured)
    import pooch

    return Path(pooch.os_cache("soundmill"))


def unavailable(name: str) -> str | None:
    """Why these weights cannot be used, what to do about it and which embedders work without them; None if the file exists."""
    weights, place = entry(name), directory()
    if (place / weights.file).is_file():
        return None
    where = f"the directory ${VARIABLE}, {place}" if os.environ.get(VARIABLE) else f"{place} (${VARIABLE} sets another directory)"
    others = [other for other in REGISTRY if (place / REGISTRY[other].file).is_file()]
    return (
        f"{weights.file} is not in {where}; run `soundmill weights fetch {name}`, or put the file there "
        f"({weights.num_bytes:,} bytes, from {weights.url}). Available without it: {', '.join(['tagger', *others])}"
    )


def path(name: str) -> Path:
    """The verified file of these weights; UserError if it is missing or its SHA-256 differs."""
    reason = unavailable(name)
    if reason:
        raise UserError(f"{name}: {reason}")
    file = directory() / entry(name).file
    _check(file, "sha256", sha256(file), entry(name).sha256, f"download it again: `soundmill weights fetch {name}`")
    return file


def sha256(path: Path) -> str:
    """SHA-256 of a file, read once per process unless its size or time changes."""
    status = path.stat()
    return _sha256(str(path), status.st_mtime_ns, status.st_size)


@cache
def _sha256(path: str, modified: int, size: int) -> str:
    return _checksum(Path(path), "sha256")


def _checksum(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _check(path: Path, algorithm: str, actual: str, expected: str, remedy: str) -> None:
    if actual != expected:
        raise UserError(f"{path}: not the published weights ({algorithm} is {actual}, expected {expected}); {remedy}")


def verify(name: str) -> Path:
    """Like `path`, but reads the file again and checks the publisher's checksum, too."""
    _sha256.cache_clear()
    file = path(name)
    _check_publisher(file, entry(name), f"download it again: `soundmill weights fetch {name}`")
    return file


def _check_publisher(path: Path, weights: Weights, remedy: str) -> None:
    if weights.md5 is not None:
        _check(path, "md5", _checksum(path, "md5"), weights.md5, remedy)


def fetch(name: str, mirror: Path | None = None, progress: Any = False) -> Path:
    """Download weights, or copy them from the directory `mirror`, into `directory()`; only a verified file appears there.

    An interrupted download is resumed by the next call. `progress` is passed to pooch. UserError if the connection fails, the file
    differs, the disk is full, or the mirror lacks the file.
    """
    weights = entry(name)
    target = directory() / weights.file
    if target.is_file() and sha256(target) == weights.sha256:
        return target
    if mirror is not None and not (mirror / weights.file).is_file():
        raise UserError(f"{mirror / weights.file}: no such file; `--from` must be a directory that contains {weights.file}")
    part = target.with_name(f".{weights.file}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _exclusively(part) as file:
            if mirror is None:
                _download(weights, file, progress)
            else:
                _copy(weights, mirror, file)
            disk.sync_file(part)
            remedy = "the download is deleted; try again, or get the file elsewhere and use `--from DIRECTORY`"
            try:
                _check(part, "sha256", sha256(part), weights.sha256, remedy)
                _check_publisher(part, weights, remedy)
            except UserError:
                part.unlink()
                raise
            os.replace(part, target)
            disk.sync_directory(target.parent)
    except OSError as error:  # of the disk, and of requests
        received = part.stat().st_size if part.is_file() else 0
        raise UserError(
            f"{name}: cannot fetch {weights.file} from {mirror or weights.url} ({' '.join(str(error).split())[:300]}); "
            f"{received:,} of {weights.num_bytes:,} bytes are kept, and the next `soundmill weights fetch {name}` resumes there. "
            f"Without a connection, put the file into {target.parent}, or use `--from` with a directory that contains it"
        ) from None
    return target


@contextlib.contextmanager
def _exclusively(part: Path) -> Iterator[BinaryIO]:
    """The partial file, opened to append; UserError if another process has it open."""
    with part.open("ab") as file:
        try:  # the other process may have moved it into place in the meantime
            locked = disk.try_lock(file) and os.path.samestat(os.fstat(file.fileno()), part.stat())
        except FileNotFoundError:
            locked = False
        if not locked:
            raise UserError(f"{part}: another process is downloading this file; wait for it to finish")
        yield file


def _download(weights: Weights, file: BinaryIO, progress: Any) -> None:
    import pooch

    start = file.tell()
    if start > weights.num_bytes:
        start = file.truncate(0)
    if start == weights.num_bytes:
        return

    def restart(response: Any, **_: Any) -> None:
        if response.status_code == 200:  # not 206: the server sends the whole file
            file.truncate(0)

    get = pooch.HTTPDownloader(
        progressbar=progress,
        chunk_size=BLOCK,
        headers={"Range": f"bytes={start}-", "Accept-Encoding": "identity"},
        hooks={"response": restart},
    )
    get(weights.url, file, None)


def _copy(weights: Weights, mirror: Path, file: BinaryIO) -> None:
    file.truncate(0)
    with (mirror / weights.file).open("rb") as original:
        shutil.copyfileobj(original, file, BLOCK)
        file.flush()
