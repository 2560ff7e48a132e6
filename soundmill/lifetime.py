"""Child processes end with their parent, however it ends: an orphan could write while the stage is rerun, or keep a port.

Stages call this before other imports, so nothing heavy is imported here.
"""

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
LOCKS = Path(".dvc/tmp/rwlock")  # where DVC records which `dvc` process holds each path

_libc = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent dies (precisely: when the thread that started it ends)."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before prctl was called
        os._exit(1)


def with_this_process() -> Callable[[], None]:
    """A `preexec_fn` for a child process that must not outlive this one."""
    return partial(die_with_parent, os.getpid())


# ---------------------------------------------------------------------------------------------------------------------
# A stage and the `dvc` process that runs it. A shell between them survives when `dvc` is killed.

_ancestors: list[int] | None = None  # pids, from this process's parent up to `dvc`


def die_with_dvc() -> None:
    """End this process when the `dvc` that started it is killed, or was; a stage started by hand outlives its shell."""
    global _ancestors
    if "DVC_ROOT" not in os.environ or _ancestors is not None:
        return
    parent = os.getppid()
    die_with_parent(parent)
    running = {info["pid"] for root in (Path.cwd(), Path(os.environ["DVC_ROOT"])) for info in dvc_locks(root)}
    ancestors = [parent]
    while ancestors[-1] not in running:
        if ancestors[-1] <= 1:
            sys.exit("the `dvc` that started this stage was killed; run it again (if you started it by hand, unset DVC_ROOT)")
        ancestors.append(parent_of(ancestors[-1]))
    _ancestors = ancestors
    die_if_dvc_did()
    threading.Thread(target=_watch, daemon=True).start()


def dvc_locks(root: Path) -> list[dict[str, Any]]:
    """`pid` and `cmd` of each `dvc` that runs stages of the project at `root`, once per path that it holds; some may be dead."""
    for _ in range(25):
        try:
            document = json.loads((root / LOCKS).read_text(encoding="utf-8"))
        except OSError:
            return []
        except ValueError:  # another `dvc` is rewriting it in place
            time.sleep(0.02)
        else:
            write, read = document.get("write") or {}, document.get("read") or {}
            return [*(info for info in write.values() if info), *(info for infos in read.values() for info in infos)]
    return []


def die_if_dvc_did() -> None:
    """End this process now if the `dvc` that started it was killed; called before an output is published."""
    if _ancestors and not (
        os.getppid() == _ancestors[0] and all(parent_of(child) == parent for child, parent in pairwise(_ancestors))
    ):
        os.kill(os.getpid(), signal.SIGKILL)


def _watch() -> None:
    while True:
        time.sleep(POLL_SECONDS)
        die_if_dvc_did()


def parent_of(pid: int) -> int:
    """The pid of a process's parent; 0 if it does not run."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0
