"""A published directory: a list of all its files with their SHA-256, by which it is copied, and what the terms refuse."""

import hashlib
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from soundmill import params
from soundmill.attribution import UNCLEAR, UNKNOWN, Credit
from soundmill.corpora.terms import TermsParams
from soundmill.errors import UserError
from soundmill.exports import new_directory

SUMS = "SHA256SUMS"
CHECKPOINT, CROISSANT = "checkpoint", "croissant.json"  # one is in a published model, the other in published data
NAMED = 5  # recordings in an error
TRAINED_ELSEWHERE = "Train that part here, or set `corpus.terms.unknown` to `keep`"
AS_IN_RECORDINGS = {UNKNOWN: None, UNCLEAR: UNKNOWN}  # a licence in a table of credits → in manifest.RECORDINGS
SUM = re.compile(r"([0-9a-f]{64})  (.+)")


def terms_of(root: Path) -> TermsParams | None:
    """`corpus.terms` of a project; None with an embedded corpus, which has no such section."""
    corpus = params.section(params.read_yaml(root / "params.yaml"), "corpus", "params.yaml")
    return params.parse(TermsParams, corpus["terms"], "params.yaml: corpus.terms") if "terms" in corpus else None


def check_allowed(name: str, found: Iterable[Credit], terms: TermsParams | None, remedy: str) -> None:
    """UserError that names the recordings whose creators refuse the use for generative AI, and those that break `terms`."""
    refused: dict[str, list[str]] = defaultdict(list)
    for credit in found:
        licence = AS_IN_RECORDINGS.get(credit.licence, credit.licence)
        row = {"licence": licence, "ai_terms": credit.ai_terms, "terms_found": credit.used_for}
        if credit.ai_terms == "refused":
            refused["their creators refuse generative AI"].append(credit.recording)
        elif terms and (why := terms.broken_by(row)):
            if not credit.recording:
                raise UserError(
                    f"{name}: what its part `{credit.used_for}` was trained on is not known: {why}. {TRAINED_ELSEWHERE}"
                )
            refused[why].append(credit.recording)
    if refused:
        whys = (f"{named(some)} may not be used: {why}" for why, some in refused.items())
        raise UserError(f"{name}: of its recordings, {'; '.join(whys)}. {remedy}")


def named(recordings: Sequence[str]) -> str:
    """Their number and the first of them."""
    more = f" and {len(recordings) - NAMED} more" if len(recordings) > NAMED else ""
    return f"{len(recordings)} ({', '.join(recordings[:NAMED])}{more})"


def files_below(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def is_data(directory: Path) -> bool:
    """Whether published clips are in a directory, not a model; UserError if neither is."""
    sums = read_sums(directory)
    if CROISSANT not in sums and f"{CHECKPOINT}/config.json" not in sums:
        raise UserError(f"{directory / SUMS}: lists neither a model nor clips; `soundmill publish` writes either")
    return CROISSANT in sums


def is_component(checkpoint: Path) -> bool:
    """Whether a published checkpoint is a codec or vocoder, not a family's."""
    return "family" not in params.read_json(checkpoint / "config.json", "download it again")


def pull(directory: Path, output: Path) -> list[Path]:
    """Copy what was published to a new or empty directory, checking every file against its SHA-256; returns the files.

    UserError if a file is missing or differs, if its name leaves the directory, or if nothing was published there.
    """
    is_data(directory)
    with new_directory(output) as (partial, _):
        for name, expected in read_sums(directory).items():
            copy = partial / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            _check_file(directory, name)
            try:
                shutil.copyfile(directory / name, copy)
            except OSError as error:
                raise UserError(f"{directory / name}: {error.strerror}; download it again") from None
            if _sha256(copy) != expected:
                raise UserError(f"{directory / name}: is not the file that was published; download it again")
        shutil.copyfile(directory / SUMS, partial / SUMS)
    return files_below(output)


def _check_file(directory: Path, name: str) -> None:
    """UserError if a published file is a link, or below one, or a device: it could be any file of this machine, or endless."""
    path = directory / name
    inside = [path, *(parent for parent in path.parents if parent != directory and parent.is_relative_to(directory))]
    if any(one.is_symlink() for one in inside) or (path.exists() and not path.is_file()):
        raise UserError(f"{path}: is a link or no regular file; download it again (`hf download … --local-dir`)")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(directory: Path) -> None:
    """In the format of `sha256sum`."""
    lines = [f"{_sha256(path)}  {path.relative_to(directory).as_posix()}" for path in files_below(directory)]
    (directory / SUMS).write_text("\n".join([*lines, ""]), encoding="utf-8")


def read_sums(directory: Path) -> dict[str, str]:
    path = directory / SUMS
    _check_file(directory, SUMS)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path}: cannot be read, so nothing is published here; `soundmill publish` writes it") from None
    sums = {}
    for number, line in enumerate(lines, 1):
        match = SUM.fullmatch(line)
        inside = Path(match[2]) if match else Path("..")
        if inside.is_absolute() or ".." in inside.parts or str(inside) == SUMS:
            raise UserError(f"{path}, line {number}: not the SHA-256 and the path of a published file; download it again")
        sums[match[2]] = match[1]
    return sums
