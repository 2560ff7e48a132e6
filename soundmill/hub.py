"""Pretrained models: in a directory of this machine, or a repository of the Hugging Face hub at one commit."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from soundmill import hashing
from soundmill.errors import UserError

_COMMIT = re.compile(r"[0-9a-f]{40}")


def find(
    name: str, revision: str | None, home: Path, files: Sequence[str], lacks: Callable[[Path], str | None], remedies: str
) -> tuple[Path, str | None]:
    """Where the model called `name` lies, and its commit: a directory (relative: from `home`; no commit), else an id of the hub.

    Of the hub's files only those that match the patterns `files` are taken, from its cache or by download. `lacks` says what a
    directory is missing to be such a model, None: nothing. One that is not to be had is a UserError that ends with `remedies`.
    """
    directory = home / Path(name).expanduser()
    if directory.is_dir():
        revision = None
    elif name.startswith(("/", ".", "~")):
        raise UserError(f"{name}: no such directory (looked for {directory}); {remedies}")
    else:
        directory = _fetch(name, revision, files, lacks, remedies)
    missing = lacks(directory)
    if missing:
        raise UserError(f"{name}: {directory} has no {missing}, so it cannot be loaded; {remedies}")
    return directory, revision


def digest(directory: Path, files: Sequence[str], cache: Path | None = None) -> str:
    """Digest of the names and contents of the files that match the patterns; `cache` as in hashing.file_digests."""
    return hashing.files_digest(directory, sorted({path for pattern in files for path in directory.glob(pattern)}), cache)


def _fetch(name: str, revision: str | None, files: Sequence[str], lacks: Callable[[Path], str | None], remedies: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if revision is None or not _COMMIT.fullmatch(revision):
        raise UserError(
            f"{name}: revision {revision!r} must be a commit of its repository on the hub (40 hex digits): "
            f"a branch may move, and {name!r} would not be the same model any more"
        )
    wanted = {"revision": revision, "allow_patterns": list(files)}
    try:
        try:
            cached = Path(snapshot_download(name, **wanted, local_files_only=True))
            if not lacks(cached):
                return cached
        except LocalEntryNotFoundError:
            pass
        print(f"{name}: not in the cache of the Hugging Face hub; downloading it", flush=True)
        return Path(snapshot_download(name, **wanted))
    except HFValidationError:
        raise UserError(f"{name}: neither a directory nor an id of the Hugging Face hub; {remedies}") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{name} at {revision}: not on this machine and not to be had ({reason}); {remedies}") from None
