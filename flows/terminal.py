"""The output of a running pipeline: one line per stage, with a progress bar on a terminal; all lines go to a log file."""

from __future__ import annotations

import re
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from soundmill import terminal

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LOG = Path("data/pipeline.log")  # of the last pipeline that ran stages
LONG_SECONDS = 60  # without a bar, the expected time of longer stages is printed

# Progress as stages print it: "resample: 21%", "train/tango: step 40 of 300, loss 0.93, 1.20 steps/s, 3 min 37 s left".
SHARE = re.compile(r": (\d+)%$")
STEP = re.compile(r": step (\d+) of (\d+),.* (\d+) min (\d+) s left$")
WARNING = re.compile(r"^[\w/@-]+: warning: ")
RESUMED = re.compile(r": (resuming at step \d+ of \d+)$")


def tell(line: str) -> None:
    terminal.say(line)


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


class Screen:
    """The terminal and the log of one pipeline; `several`: of stages that run at the same time."""

    def __init__(self, log: TextIO, several: bool = False):
        self.log = log
        self.several = several

    def start(self, head: str, stage: str) -> Row:
        """Show a stage while it works, until its row has `ended`."""
        self.write(head.rstrip())
        return Row(self, head, f"    {stage}: " if self.several else "    ")

    def write(self, line: str) -> None:
        with suppress(OSError):  # if the disk is full, the stage fails and reports it
            self.log.write(line + "\n")
            self.log.flush()


class Row:
    """A stage on the screen."""

    def __init__(self, screen: Screen, head: str, indent: str):
        self._screen, self._head, self._indent = screen, head, indent
        self._announced, self._start = False, time.monotonic()
        self._bar = _add_bar(head) if sys.stdout.isatty() else None
        self._open = not self._bar and not screen.several  # whether its line is begun
        if self._open:
            terminal.say(head, end="  ")

    def ended(self, how: str) -> None:
        """Complete the stage's line."""
        self.close()
        self._screen.write(f"{self._indent}{how}")
        tell(how if self._open else f"{self._head}  {how}")
        self._open = False

    def close(self) -> None:
        """Remove its bar."""
        if self._bar:
            _remove_bar(self._bar[1])
            self._bar = None

    def line(self, line: str) -> None:
        """Process a line that a stage printed: write it to the log, and show progress and warnings."""
        if WARNING.match(line):
            self.notice(line)
            return
        self._screen.write(f"{self._indent}{line}")
        if resumed := RESUMED.search(line):
            self._remark(resumed[1])
        done, left = progress(line)
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
        self._screen.write(line)
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


def _remove_bar(task: TaskID) -> None:
    global _bars
    with _guard:
        _bars.remove_task(task)
        if not _bars.task_ids:
            _bars.stop()
            _bars = None


def progress(line: str) -> tuple[float | None, int | None]:
    """The completed share and the seconds left, where a stage's line has them."""
    if step := STEP.search(line):
        return int(step[1]) / int(step[2]), 60 * int(step[3]) + int(step[4])
    if share := SHARE.search(line):
        return int(share[1]) / 100, None
    return None, None
