"""The command that takes part in another machine's trainings: waits without torch, and joins each in a fresh process."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from multiprocessing import get_context
from pathlib import Path

from soundmill import lifetime, terminal
from soundmill.errors import UserError

CONNECT_SECONDS = 10.0
POLL_SECONDS = 1.0


def join(host: str, port: int, root: Path) -> None:
    """Take part in every training at `host`:`port`, one after the other, until interrupted; UserError if one cannot be joined.

    `root` is this machine's checkout.
    """
    reached = waiting = False
    while True:
        is_open = _is_open(host, port, reached)
        reached = True
        if not is_open and not waiting:
            terminal.say(f"waits for a training at {host}:{port}; Ctrl-C ends it")
        waiting = not is_open
        if is_open:
            child = get_context("spawn").Process(target=_take_part, args=(host, port, root, os.getpid()))
            child.start()
            try:
                child.join()
            finally:
                child.terminate()
            if child.exitcode > 0:
                raise UserError(f"did not join the training at {host}:{port}; the reason is above")
            if child.exitcode == -signal.SIGALRM:
                raise UserError(
                    f"{host}:{port} does not answer as a training does; give the machine that runs `dvc repro` and its port"
                )
            if child.exitcode < 0:
                terminal.say(f"the processes here were killed (signal {-child.exitcode}); joins again")
        time.sleep(POLL_SECONDS)


def _is_open(host: str, port: int, reached: bool) -> bool:
    """Whether anything listens; UserError if the machine cannot be reached, unless it was before: it may be starting anew."""
    try:
        socket.create_connection((host, port), CONNECT_SECONDS).close()
        return True
    except ConnectionRefusedError:
        return False
    except OSError as error:
        if reached:
            return False
        raise UserError(
            f"{host}:{port} cannot be reached ({error.strerror or error}): give the name or address of the machine that runs "
            "`dvc repro`, as this machine knows it, and open the port in its firewall"
        ) from None


def _take_part(host: str, port: int, root: Path, parent: int) -> None:
    """In a fresh process, which runs the code of today."""
    lifetime.die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else torch prints a stack when the head is gone
    from soundmill.training import nodes

    try:
        nodes.take_part(host, port, root)
    except UserError as error:
        sys.exit(str(error))
