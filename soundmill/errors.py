"""The one error a person should read: it names the key, path or id at fault and the remedy, and is shown without a traceback."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LONGEST_REASON = 300  # letters: a message may quote a whole caption


class UserError(Exception):
    """Something the person who runs Soundmill can mend; the message says what and how."""


def reason(error: BaseException) -> str:
    """Why something failed, in one line; of what nobody foresaw also what it was and where."""
    said = " ".join(str(error).split())
    said = said if len(said) <= LONGEST_REASON else said[: LONGEST_REASON - 1] + "…"
    if isinstance(error, UserError):
        return said
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {said}{where}"


@contextmanager
def told(what: str) -> Iterator[list[str]]:
    """For what only shows the work (pictures, pages, sounds to hear): where it fails a line says so, and the work goes on.

    The list given has the line afterwards.
    """
    said: list[str] = []
    try:
        yield said
    except Exception as error:
        said.append(f"{what} could not be made: {reason(error)}")
        print(said[0], file=sys.stderr, flush=True)
