"""Child processes end with their parent, however it ends: an orphan could write beside a rerun, or keep a port.

Stages ask for it before they import anything, so nothing heavy is imported here.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

POLL_SECONDS = 0.2
LOCKS = Path(".dvc/tmp/rwlock")  # where DVC notes, for every path that a stage works on, which `dvc` runs it

_libc = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when its parent dies. (To be exact: when the thread of it that started this one ends.)"""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call above
        os._exit(1)


def with_this_process() -> Callable[[], None]:
    """`preexec_fn` of a child process that must not outlive this one."""
    return partial(die_with_parent, os.getpid())


# ---------------------------------------------------------------------------------------------------------------------
# A stage and the `dvc` that runs it. There may be a shell between them, which lives on when `dvc` is killed.

_line: list[int] | None = None  # from this process's parent up to `dvc`


def die_with_dvc() -> None:
    """End this process when the `dvc` that started it is killed, or has been; one that was started by hand outlives its shell."""
    global _line
    if "DVC_ROOT" not in os.environ or _line is not None:
        return
    parent = os.getppid()
    die_with_parent(parent)
    running = {info["pid"] for root in (Path.cwd(), Path(os.environ["DVC_ROOT"])) for info in dvc_locks(root)}
    line = [parent]
    while line[-1] not in running:
        if line[-1] <= 1:
            sys.exit("the `dvc` that started this stage was killed; run it again. (Started by hand? Then unset DVC_ROOT)")
        line.append(_parent(line[-1]))
    _line = line
    die_if_dvc_did()
    threading.Thread(target=_watch, daemon=True).start()


def dvc_locks(root: Path) -> list[dict[str, Any]]:
    """`pid` and `cmd` of every `dvc` that runs stages of the project at `root`, as often as it holds paths; some may be dead."""
    for _ in range(25):
        try:
            document = json.loads((root / LOCKS).read_text(encoding="utf-8"))
        except OSError:
            return []
        except ValueError:  # another `dvc` rewrites it, in place
            time.sleep(0.02)
        else:
            write, read = document.get("write") or {}, document.get("read") or {}
            return [*(info for info in write.values() if info), *(info for infos in read.values() for info in infos)]
    return []


def die_if_dvc_did() -> None:
    """End this process now if the `dvc` that started it was killed: before an output is put in place."""
    if _line and not _stands(_line):
        os.kill(os.getpid(), signal.SIGKILL)


def _watch() -> None:
    while True:
        time.sleep(POLL_SECONDS)
        die_if_dvc_did()


def _stands(line: list[int]) -> bool:
    return os.getppid() == line[0] and all(_parent(child) == parent for child, parent in pairwise(line))


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0
