"""A published directory: a list of all its files with their SHA-256, and what the terms refuse."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from soundmill.attribution import Credit
from soundmill.errors import UserError

SUMS = "SHA256SUMS"
NAMED = 5  # recordings in an error
SUM = re.compile(r"([0-9a-f]{64})  (.+)")


def check_allowed(name: str, found: Iterable[Credit], remedy: str) -> None:
    """UserError that names the recordings whose creators refuse the use for generative AI."""
    refused = [credit.recording for credit in found if credit.ai_terms == "refused"]
    if refused:
        raise UserError(
            f"{name}: of its recordings, {named(refused)} may not be used: their creators refuse generative AI. {remedy}"
        )


def named(recordings: Sequence[str]) -> str:
    """Their number and the first of them."""
    more = f" and {len(recordings) - NAMED} more" if len(recordings) > NAMED else ""
    return f"{len(recordings)} ({', '.join(recordings[:NAMED])}{more})"


def files_below(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def write_sums(directory: Path) -> None:
    """In the format of `sha256sum`."""
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(directory).as_posix()}"
        for path in files_below(directory)
    ]
    (directory / SUMS).write_text("\n".join([*lines, ""]), encoding="utf-8")


def read_sums(directory: Path) -> dict[str, str]:
    path = directory / SUMS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path}: cannot be read, so this is no published model; `soundmill publish` writes one") from None
    sums = {}
    for number, line in enumerate(lines, 1):
        match = SUM.fullmatch(line)
        inside = Path(match[2]) if match else Path("..")
        if inside.is_absolute() or ".." in inside.parts or str(inside) == SUMS:
            raise UserError(f"{path}, line {number}: not the SHA-256 and the path of a file of the model; download it again")
        sums[match[2]] = match[1]
    return sums
