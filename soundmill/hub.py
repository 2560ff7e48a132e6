"""Pretrained models: from a local directory, or from a repository of the Hugging Face hub at one commit."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from soundmill import hashing, terminal
from soundmill.errors import UserError

_COMMIT = re.compile(r"[0-9a-f]{40}")


def find(
    name: str, revision: str | None, home: Path, files: Sequence[str], missing: Callable[[Path], str | None], remedies: str
) -> tuple[Path, str | None]:
    """The directory of a model, and its commit. `name` is a directory (relative to `home`; commit None) or an id of the hub.

    Only files that match the patterns `files` are taken from the hub's cache or downloaded. `missing(directory)` names what the
    directory lacks, or returns None. If the model cannot be found, a UserError ends with `remedies`.
    """
    directory = home / Path(name).expanduser()
    if directory.is_dir():
        revision = None
    elif name.startswith(("/", ".", "~")):
        raise UserError(f"{name}: no such directory ({directory}); {remedies}")
    else:
        directory = _fetch(name, revision, files, missing, remedies)
    if lacking := missing(directory):
        raise UserError(f"{name}: {directory} has no {lacking}, so it cannot be loaded; {remedies}")
    return directory, revision


def is_directory(name: str, home: Path) -> bool:
    """Whether `find` takes the name for a directory, not for an id of the hub."""
    return name.startswith(("/", ".", "~")) or (home / name).is_dir()


def digest(directory: Path, files: Sequence[str], cache: Path | None = None) -> str:
    """Digest of the names and contents of the files that match the patterns; `cache` as in hashing.file_digests."""
    return hashing.files_digest(directory, sorted({path for pattern in files for path in directory.glob(pattern)}), cache)


def _fetch(name: str, revision: str | None, files: Sequence[str], missing: Callable[[Path], str | None], remedies: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if revision is None or not _COMMIT.fullmatch(revision):
        raise UserError(
            f"{name}: revision {revision!r} must be a commit of its repository on the hub (40 hex digits), "
            "because a branch may move to another model"
        )
    options = {"revision": revision, "allow_patterns": list(files)}
    try:
        try:
            cached = Path(snapshot_download(name, **options, local_files_only=True))
            if not missing(cached):
                return cached
        except LocalEntryNotFoundError:
            pass
        terminal.say(f"{name}: downloading from the Hugging Face hub")
        return Path(snapshot_download(name, **options))
    except HFValidationError:
        raise UserError(f"{name}: neither a directory nor a model id of the Hugging Face hub; {remedies}") from None
    except GatedRepoError as error:
        raise UserError(
            f"{name}: accept its licence on the hub with the account of `hf auth login` ({error.server_message}); {remedies}"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{name} at {revision}: not in the cache, and the download failed ({reason}); {remedies}") from None
