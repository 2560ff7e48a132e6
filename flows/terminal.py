"""The output of a running pipeline: one line per stage, with a progress bar on a terminal; all lines go to a log file."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

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
    print(line, flush=True)


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


class Screen:
    """The terminal and the log of one pipeline."""

    def __init__(self, log: TextIO):
        self.log = log
        self._bar: tuple[Progress, TaskID] | None = None
        self._head = ""  # of the unfinished line
        self._announced = False
        self._start = 0.0

    @contextmanager
    def stage(self, head: str) -> Iterator[None]:
        """Show a stage while it works; `ended` completes its line."""
        self._head, self._announced, self._start = head, False, time.monotonic()
        self.write(head.rstrip())
        if not sys.stdout.isatty():
            print(head, end="  ", flush=True)
            yield
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[left]}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, transient=True) as bar:
            self._bar = bar, bar.add_task(head, total=None, left="")
            try:
                yield
            finally:
                self._bar = None

    def ended(self, how: str) -> None:
        """Complete the stage's line."""
        self.write(f"    {how}")
        tell(f"{self._head}  {how}" if sys.stdout.isatty() else how)
        self._head = ""

    def line(self, line: str) -> None:
        """Process a line that a stage printed: write it to the log, and show progress and warnings."""
        if WARNING.match(line):
            self.notice(line)
            return
        self.write(f"    {line}")
        if resumed := RESUMED.search(line):
            self._remark(resumed[1])
        done, left = progress(line)
        if done is None:
            return
        if self._bar:
            bar, task = self._bar
            bar.update(task, total=1.0, completed=done, left=f"{duration(left)} left" if left is not None else "")
        elif not self._announced and left is not None and left > LONG_SECONDS:
            # With the time so far, as the line will show the stage's whole duration.
            self._remark(f"takes about {duration(time.monotonic() - self._start + left)}")
            self._announced = True

    def _remark(self, what: str) -> None:
        """Print a few words in the stage's line, or above the bar."""
        if self._bar:
            self._bar[0].console.print(f"{self._head.rstrip()}  {what}", markup=False, highlight=False)
        else:
            print(f"{what} …", end="  ", flush=True)

    def notice(self, line: str) -> None:
        """Show and log a line that needs attention."""
        self.write(line)
        if self._bar:
            self._bar[0].console.print(line, markup=False, highlight=False)
        else:
            tell(f"\n{line}" if self._head else line)

    def write(self, line: str) -> None:
        with suppress(OSError):  # if the disk is full, the stage fails and reports it
            self.log.write(line + "\n")
            self.log.flush()


def progress(line: str) -> tuple[float | None, int | None]:
    """The completed share and the seconds left, where a stage's line has them."""
    if step := STEP.search(line):
        return int(step[1]) / int(step[2]), 60 * int(step[3]) + int(step[4])
    if share := SHARE.search(line):
        return int(share[1]) / 100, None
    return None, None
