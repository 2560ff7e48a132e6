"""The section `corpus` of params.yaml for external recordings: directories and formats."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from soundmill.corpora import buckets, registry, union
from soundmill.corpora.buckets import Bucket
from soundmill.corpora.sources import PART_NAME
from soundmill.corpora.terms import TermsParams
from soundmill.errors import UserError
from soundmill.params import Seconds, StageParams


class PartParams(StageParams):
    """One corpus of a union."""

    format: Literal[registry.NAMES]
    path: str
    weight: float = Field(gt=0, le=1000, description="expected number of draws of each of its clips per epoch of training")


class ScanParams(StageParams):
    format: Literal[(*registry.NAMES, union.NAME)]
    path: str | None = Field(description="the corpus directory or bucket; a relative one starts at the checkout; null for a union")
    parts: dict[Annotated[str, Field(pattern=rf"^{PART_NAME.pattern}$")], PartParams] = Field(description="corpora of a union")
    embedded: list[str] = Field(max_length=0)
    external: list[str] = Field(min_length=1, max_length=1)
    shards: int = Field(ge=1, le=4096)
    follow_links: bool = Field(description="follow links that leave the corpus; else they are quarantined")
    max_seconds: Seconds = Field(gt=0, description="a large file with a longer duration in its header is quarantined unread")
    terms: TermsParams


@dataclass(frozen=True)
class Directory:
    """A corpus, or a part of a union; `name` is empty without a union."""

    name: str
    format: str
    weight: float
    root: Path | Bucket
    follow_links: bool


def directories(params: ScanParams, home: Path) -> list[Directory]:
    """The corpus, or the parts of a union in the order of their names; relative paths start at `home`."""
    if params.format != union.NAME:
        if params.parts:
            raise UserError("params.yaml: corpus.parts is for a union only; set corpus.format to union, or corpus.parts to {}")
        return [Directory("", params.format, 1.0, _existing(params.path, home), params.follow_links)]
    if params.path is not None or not params.parts:
        raise UserError(
            "params.yaml: a union has its directories in corpus.parts, and corpus.path is null; "
            "set corpus.parts to {name: {format: auto, path: DIR, weight: 1.0}, …} (docs/corpora.md)"
        )
    directories = []
    for name, part in sorted(params.parts.items()):
        with named(name):
            directories.append(Directory(name, part.format, part.weight, _existing(part.path, home), params.follow_links))
    return directories


@contextmanager
def named(part: str) -> Iterator[None]:
    """Prefix errors with the part of the union that they are about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"corpus.parts.{part}: {error}" if part else str(error)) from None


def _existing(path: str | None, home: Path) -> Path | Bucket:
    """The directory or bucket at corpus.path; UserError if it is none. A bucket is not looked up."""
    remedy = "set it to the directory of your recordings: `make run CORPUS=DIR`, or `soundmill params corpus=auto corpus.path=DIR`"
    if not path:
        raise UserError(f"params.yaml: corpus.path is not set; {remedy}")
    if buckets.is_url(path):
        return buckets.root_of(path, home)
    root = home / path
    try:
        root.stat()
    except OSError as error:
        what = "no such directory" if isinstance(error, FileNotFoundError) else error.strerror
        raise UserError(f"corpus.path: {root}: {what}; {remedy}") from None
    if not root.is_dir():
        raise UserError(f"corpus.path: {root} is a file, not a directory; {remedy}")
    return root.resolve()
