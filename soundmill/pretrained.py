"""Published weights of embedders: each file's source, digest and licence, and how it is fetched. None is used unverified."""

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

VARIABLE = "SOUNDMILL_WEIGHTS"  # the directory of all of them; else the user's cache
BLOCK = 1 << 16  # bytes read at once: what a broken connection loses of what came


@dataclass(frozen=True)
class Weights:
    """One published file. `sha256` decides whether a file is this one; `md5` is there where the publisher tells it himself."""

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
    """What is known of the weights of that name; an unknown one raises UserError."""
    if name not in REGISTRY:
        raise UserError(f"unknown weights {name!r}{did_you_mean(name, list(REGISTRY))}; there are {', '.join(REGISTRY)}")
    return REGISTRY[name]


def directory() -> Path:
    """Where weights are looked for, and fetched to: `$SOUNDMILL_WEIGHTS`, else the user's cache."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    import pooch

    return Path(pooch.os_cache("soundmill"))


def unavailable(name: str) -> str | None:
    """Why these weights cannot be used here, what to do and what works without them; None: a file of that name is there."""
    wanted, place = entry(name), directory()
    if (place / wanted.file).is_file():
        return None
    where = f"the directory ${VARIABLE}, {place}" if os.environ.get(VARIABLE) else f"{place} (${VARIABLE} names another directory)"
    others = [other for other in REGISTRY if (place / REGISTRY[other].file).is_file()]
    return (
        f"{wanted.file} is not in {where}; run `soundmill weights fetch {name}`, or put the file there, "
        f"{wanted.num_bytes:,} bytes from {wanted.url}. Without it there are still {' and '.join(['tagger', *others])}"
    )


def path(name: str) -> Path:
    """The file of these weights, its content verified; missing or another file raises UserError."""
    reason = unavailable(name)
    if reason:
        raise UserError(f"{name}: {reason}")
    file = directory() / entry(name).file
    _check_digest(file, "sha256", digest(file), entry(name).sha256, f"fetch it again: `soundmill weights fetch {name}`")
    return file


def digest(path: Path) -> str:
    """sha256 of a file, computed once per process as long as the file does not change."""
    status = path.stat()
    return _digest(str(path), status.st_mtime_ns, status.st_size)


@cache
def _digest(path: str, modified: int, size: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_digest(path: Path, algorithm: str, computed: str, wanted: str, remedy: str) -> None:
    if computed != wanted:
        raise UserError(f"{path}: not the weights this project scores with ({algorithm} {computed}, wanted {wanted}); {remedy}")


def verify(name: str) -> Path:
    """`path`, with all digests that are known of the file, computed anew."""
    _digest.cache_clear()
    file = path(name)
    _check_publisher(file, entry(name), f"fetch it again: `soundmill weights fetch {name}`")
    return file


def _check_publisher(path: Path, wanted: Weights, remedy: str) -> None:
    if wanted.md5 is not None:
        with path.open("rb") as file:
            _check_digest(path, "md5", hashlib.file_digest(file, "md5").hexdigest(), wanted.md5, remedy)


def fetch(name: str, mirror: Path | None = None, progress: Any = False) -> Path:
    """Download the weights, or copy them from the directory `mirror`; they appear in `directory()` verified, or not at all.

    What a broken download left is continued by the next. `progress`: what pooch takes as a progress bar. UserError says what went
    wrong: no connection, another file, no room, no such file in the mirror.
    """
    wanted = entry(name)
    target = directory() / wanted.file
    if target.is_file() and digest(target) == wanted.sha256:
        return target
    if mirror is not None and not (mirror / wanted.file).is_file():
        raise UserError(f"{mirror / wanted.file}: no such file; a mirror is a directory with {wanted.file} in it")
    part = target.with_name(f".{wanted.file}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(part) as file:
            if mirror is None:
                _download(wanted, file, progress)
            else:
                _copy(wanted, mirror, file)
            disk.sync_file(part)
            remedy = "what came is thrown away; fetch again, or get the file elsewhere and use `--from DIRECTORY`"
            try:
                _check_digest(part, "sha256", digest(part), wanted.sha256, remedy)
                _check_publisher(part, wanted, remedy)
            except UserError:
                part.unlink()
                raise
            os.replace(part, target)
            disk.sync_directory(target.parent)
    except OSError as error:  # of the disk, and of requests
        came = part.stat().st_size if part.is_file() else 0
        raise UserError(
            f"{name}: {wanted.file} could not be fetched from {mirror or wanted.url} ({' '.join(str(error).split())[:300]}); "
            f"{came:,} of {wanted.num_bytes:,} bytes are here, and the next `soundmill weights fetch {name}` goes on from there. "
            f"Without a connection, put the file into {target.parent}, or name a directory that has it by `--from`"
        ) from None
    return target


@contextlib.contextmanager
def _alone(part: Path) -> Iterator[BinaryIO]:
    """The unfinished file, to append to; nobody else may at the same time."""
    with part.open("ab") as file:
        try:  # the other may have put it in place meanwhile
            alone = disk.try_lock(file) and os.path.samestat(os.fstat(file.fileno()), part.stat())
        except FileNotFoundError:
            alone = False
        if not alone:
            raise UserError(f"{part}: another process is fetching this file; wait for it")
        yield file


def _download(wanted: Weights, file: BinaryIO, progress: Any) -> None:
    import pooch

    start = file.tell()
    if start > wanted.num_bytes:
        start = file.truncate(0)
    if start == wanted.num_bytes:
        return

    def begin_anew(response: Any, **_: Any) -> None:
        if response.status_code == 200:  # not 206: the server sends all of it
            file.truncate(0)

    get = pooch.HTTPDownloader(
        progressbar=progress,
        chunk_size=BLOCK,
        headers={"Range": f"bytes={start}-", "Accept-Encoding": "identity"},
        hooks={"response": begin_anew},
    )
    get(wanted.url, file, None)


def _copy(wanted: Weights, mirror: Path, file: BinaryIO) -> None:
    file.truncate(0)
    with (mirror / wanted.file).open("rb") as original:
        shutil.copyfileobj(original, file, BLOCK)
        file.flush()
