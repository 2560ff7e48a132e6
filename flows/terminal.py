"""The output of a running pipeline: one line per stage, with a progress bar on a terminal; all lines go to a log file."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from soundmill import terminal

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LOG = Path("data/pipeline.log")  # of the last pipeline that ran stages
LONG_SECONDS = 60  # without a bar, the expected time of longer stages is printed
tell = terminal.say


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


class Row:
    """A stage on the terminal and in the pipeline's log until it has `ended`; `several`: others are shown at the same time."""

    def __init__(self, log: TextIO, head: str, several: bool = False):
        self._log, self._head = log, head
        self._announced, self._start = False, time.monotonic()
        self._bar = _add_bar(head) if sys.stdout.isatty() else None
        self._open = not self._bar and not several  # whether its line is begun
        self._write(head.rstrip())
        if self._open:
            terminal.say(head, end="  ")

    def _write(self, line: str) -> None:
        with suppress(OSError):  # if the disk is full, the stage fails and reports it
            self._log.write(line + "\n")
            self._log.flush()

    def ended(self, how: str) -> None:
        self.close()
        self._write(f"    {how}")
        tell(how if self._open else f"{self._head}  {how}")
        self._open = False

    def close(self) -> None:
        global _bars
        if self._bar:
            with _guard:
                _bars.remove_task(self._bar[1])
                if not _bars.task_ids:
                    _bars.stop()
                    _bars = None
            self._bar = None

    def line(self, line: str) -> None:
        self._write(f"    {line}")

    def note(self, facts: dict[str, Any]) -> None:
        """Show what the stage reports: `done` (a share), seconds `left`, a `remark`, a `warning`."""
        if warning := facts.get("warning"):
            self._print(f"\n{warning}" if self._open else warning)
        if remark := facts.get("remark"):
            self._remark(remark)
        done, left = facts.get("done"), facts.get("left")
        if done is None:
            return
        if bar := self._bar:
            bar[0].update(bar[1], total=1.0, completed=done, left=f"{duration(left)} left" if left is not None else "")
        elif not self._announced and left is not None and left > LONG_SECONDS:
            # With the time so far, as the line will show the stage's whole duration.
            self._remark(f"takes about {duration(time.monotonic() - self._start + left)}")
            self._announced = True

    def _remark(self, what: str) -> None:
        """Print a few words in the stage's line, or above the bars."""
        if self._open:
            terminal.say(f"{what} …", end="  ")
        else:
            self._print(f"{self._head.rstrip()}  {what}")

    def notice(self, line: str) -> None:
        """Show and log a line that needs attention."""
        self._write(line)
        self._print(f"\n{line}" if self._open else line)

    def _print(self, line: str) -> None:
        if bar := self._bar:
            bar[0].console.print(terminal.plain(line), markup=False, highlight=False)
        else:
            tell(line)


_bars: Progress | None = None  # of all running stages: a terminal has one place for them
_guard = threading.Lock()


def _add_bar(head: str) -> tuple[Progress, TaskID]:
    global _bars
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    with _guard:
        if _bars is None:
            left = TextColumn("{task.fields[left]}")
            _bars = Progress(TextColumn("{task.description}", markup=False), BarColumn(), left, TimeElapsedColumn(), transient=True)
            _bars.start()
        return _bars, _bars.add_task(head, total=None, left="")
