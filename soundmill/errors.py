"""The error for users: its message names the key, path or id at fault and the remedy, and is shown without a traceback."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LONGEST_REASON = 300  # letters: a message may quote a whole caption


class UserError(Exception):
    """Something that the user can mend; the message says what and how."""


def reason(error: BaseException) -> str:
    """An error's message in one line; of one that is not a UserError also its type and where it was raised."""
    message = " ".join(str(error).split())
    message = message if len(message) <= LONGEST_REASON else message[: LONGEST_REASON - 1] + "…"
    if isinstance(error, UserError):
        return message
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {message}{where}"


@contextmanager
def report_failure(what: str) -> Iterator[list[str]]:
    """Report any failure of the block in one line instead of raising: for pictures and pages, without which the work is whole.

    The list that it yields has the line afterwards.
    """
    failures: list[str] = []
    try:
        yield failures
    except Exception as error:
        failures.append(f"{what} could not be made: {reason(error)}")
        print(failures[0], file=sys.stderr, flush=True)
