"""Errors for users: the message names the key, path or id at fault and the remedy, and is shown without a traceback."""

import codecs
import errno
import os
import shutil
import sys
import traceback
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from soundmill import terminal

PLAIN = str.maketrans(  # what no decomposition spells
    {"…": "...", "→": "->", "−": "-", "–": "-", "—": "-", "×": "x", "≤": "<=", "≥": ">=", "‘": "'", "’": "'", "“": '"', "”": '"'}
    | {"•": "*", "ł": "l", "ø": "o", "ß": "ss"}
)
LONGEST_REASON = 300  # characters; a message may quote a whole caption


class UserError(Exception):
    """Something that the user can fix; the message says what and how."""


def first_of(names: Sequence[str], most: int = 20, between: str = ", ") -> str:
    """The first of the names, and how many more there are."""
    return between.join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def fault_of_disk(error: OSError, where: Path) -> str:
    """What an OSError says to a user: the fault, the file, or `where` if the error has none, and the remedy."""
    if isinstance(error, shutil.Error):  # of a copied directory: of each file, where it is, its copy and why
        *_, path, why = error.args[0][0] if isinstance(error.args[0], list) else (where, error)
        return f"{path}: {why}; fix it and run again"
    name = error.filename2 or error.filename or where  # of a copy, the second is the one that was written
    path = Path(os.fsdecode(name)).resolve()
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left for {path}; free some and run again"
    return f"{os.strerror(error.errno) if error.errno else error} ({path}); fix it and run again"


def reason(error: BaseException) -> str:
    """An error's message on one line; if it is not a UserError, with its type and the line that raised it."""
    message = " ".join(str(error).split())
    message = message if len(message) <= LONGEST_REASON else message[: LONGEST_REASON - 1] + "…"
    if isinstance(error, UserError):
        return message
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {message}{where}"


def show_what_the_terminal_can() -> None:
    """Let this process print any text to a terminal of any character set: what that lacks is spelt in plain letters, or `?`."""
    codecs.register_error("soundmill.plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="soundmill.plain")


def _plain(error: UnicodeError) -> tuple[str, int]:
    """A handler of `codecs`, for the part of a text that an encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = unicodedata.normalize("NFKD", error.object[error.start : error.end].translate(PLAIN))
    letters = "".join(letter for letter in text if not unicodedata.combining(letter))
    return letters.encode("ascii", "replace").decode(), error.end


@contextmanager
def report_failure(what: str) -> Iterator[list[str]]:
    """Print a failure of the block on one line, also in the yielded list, instead of raising it: for optional pictures."""
    failures: list[str] = []
    try:
        yield failures
    except Exception as error:
        failures.append(f"{what} could not be made: {reason(error)}")
        terminal.say(failures[0], error=True)
