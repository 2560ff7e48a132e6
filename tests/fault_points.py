"""Runs an operation again and again, failing the 1st, 2nd, 3rd … call that changes a file; run by tests/test_fault_points.py.

    python -m tests.fault_points OPERATION DIRECTORY [--sample SEED COUNT]

Prints one JSON line for each attempt. Every attempt is a fork of this process, which has run the operation once and so imported
what it needs. The calls fail in tests/fault_points.c, a library that LD_PRELOAD loads into this process and all that it starts.
"""

import argparse
import contextlib
import errno
import faulthandler
import gc
import json
import mmap
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
ERRORS = (errno.EIO, errno.ENOSPC, errno.EINTR)
PATIENCE_SECONDS = 300
_STATE = struct.Struct("lll4096s16s4096s")  # `struct state`
_FAIL_AT = struct.Struct("lll")


@dataclass(frozen=True)
class Operation:
    """What is tried in a directory, like a command: it ends well, or raises SystemExit with a message."""

    prepare: Callable[[Path], None]
    run: Callable[[Path], object]
    results: Callable[[Path], dict[str, str]]  # what must be the same afterwards, as digests by name
    errors_in_turn: bool = False  # for a long one: a call fails with one of the errors, the next with another
    warm: Callable[[Path], object] | None = None  # instead of `run`, to import what it imports before the first fork


@dataclass(frozen=True)
class Attempt:
    """One call that failed, and what came of it."""

    operation: str
    number: int
    error: str
    call: str  # empty: the operation ended before its call of this number
    path: str  # below the directory
    status: int
    said: str
    differs: list[str]  # names of results that are not those of an unbroken run
    status_again: int  # of the next run, in which nothing fails; there is none if all was as in an unbroken run
    said_again: str
    differs_again: list[str]


def library(directory: Path) -> Path | None:
    """The library of SOURCE, compiled; None without a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        return None
    made = directory / "fault_points.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", made, SOURCE, "-ldl"], check=True)
    return made


class Faults:
    """The state that all processes share with the library."""

    def __init__(self, file: Path):
        with file.open("r+b") as opened:
            self._map = mmap.mmap(opened.fileno(), _STATE.size)

    def arm(self, number: int, error: int, below: Path) -> None:
        self._map[: _STATE.size] = _STATE.pack(0, number, error, os.fsencode(below), b"", b"")

    def disarm(self) -> tuple[int, str, str]:
        """Fail nothing from now on; returns how many calls there were, and the call that failed and its path."""
        count, _, _, _, call, path = _STATE.unpack(self._map[: _STATE.size])
        self._map[: _FAIL_AT.size] = _FAIL_AT.pack(0, 0, 0)
        return count, call.split(b"\0")[0].decode(), os.fsdecode(path.split(b"\0")[0])


def attempts(name: str, operation: Operation, directory: Path, sample: tuple[int, int] | None = None) -> Iterator[Attempt]:
    """Try every call, or only `sample`: a seed and the number of faults that it chooses."""
    faults = Faults(Path(os.environ["FAULT_POINTS"]))
    here, template, said = directory / "here", directory / "template", directory / "said.txt"
    project = here / "a project"
    project.mkdir(parents=True)
    (here / "tmp").mkdir()
    os.environ["TMPDIR"] = tempfile.tempdir = str(here / "tmp")
    status, text = _in_a_fork(lambda: operation.prepare(project), project, said)
    assert status == 0, text
    shutil.copytree(project, template, symlinks=True)
    with contextlib.chdir(project), contextlib.redirect_stdout(sys.stderr):
        (operation.warm or operation.run)(project)
    gc.freeze()  # or every fork would search, and so copy, all that was imported

    def run(number: int = -1, error: int = 0) -> tuple[int, str]:
        faults.arm(number, error, here)
        return _in_a_fork(lambda: operation.run(project), project, said)

    def restore() -> None:
        shutil.rmtree(here)
        (here / "tmp").mkdir(parents=True)
        shutil.copytree(template, project, symlinks=True)

    def differing(unbroken: dict[str, str]) -> list[str]:
        found = operation.results(project)
        return sorted(key for key in unbroken.keys() | found.keys() if unbroken.get(key) != found.get(key))

    restore()
    status, text = run()
    count, *_ = faults.disarm()
    assert status == 0, text
    unbroken = operation.results(project)
    assert unbroken
    print(f"{name}: {count} calls", file=sys.stderr, flush=True)
    every = [(number, error) for number in range(1, count + 1) for error in ERRORS]
    if sample:
        seed, size = sample
        pairs = random.Random(seed).sample(every, min(size, len(every)))
    else:
        in_turn = [(number, ERRORS[number % len(ERRORS)]) for number in range(1, count + 1)]
        pairs = in_turn if operation.errors_in_turn else every
        pairs.append((count + 1, errno.EIO))  # beyond the last call, nothing fails
    for number, error in pairs:
        restore()
        status, text = run(number, error)
        _, call, path = faults.disarm()
        differs = differing(unbroken)
        status_again, again = run() if status or differs else (0, "")
        faults.disarm()
        path = path and str(Path(path).relative_to(here))
        yield Attempt(
            name, number, errno.errorcode[error], call, path, status, text, differs, status_again, again, differing(unbroken)
        )


def _in_a_fork(run: Callable[[], object], where: Path, said: Path) -> tuple[int, str]:
    """Its exit status, as Python would end with it, and what it said; of a process that was killed, the negative signal."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(output, stream)
        faulthandler.dump_traceback_later(PATIENCE_SECONDS, exit=True, file=output)
        os.chdir(where)
        status = 1
        try:
            run()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(status)
    _, ended = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(ended), said.read_text(encoding="utf-8", errors="replace")


def main() -> None:
    from tests import fault_operations

    parser = argparse.ArgumentParser()
    parser.add_argument("operation", choices=fault_operations.OPERATIONS)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--sample", type=int, nargs=2)
    args = parser.parse_args()
    operation = fault_operations.OPERATIONS[args.operation]
    fault_operations.work_alone()
    for attempt in attempts(args.operation, operation, args.directory.resolve(), args.sample):
        print(json.dumps(asdict(attempt)), flush=True)


if __name__ == "__main__":
    main()
