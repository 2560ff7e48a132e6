"""The line between the stage of a training on several machines and its first process, which an elastic agent starts anew.

The process reports the points of curves and asks for samples and scores; the stage tracks, draws and measures them.
"""

from __future__ import annotations

import pickle
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any

import torch

from soundmill import disk, terminal
from soundmill.errors import UserError
from soundmill.training import adapters, state
from soundmill.training.device import pick_device
from soundmill.training.module import TrainingModule
from soundmill.training.parts import Report, Sampling, Training
from soundmill.training.scoring import Scoring

SAMPLED = "sampled.ckpt"
WAITING_SECONDS = 30.0  # between messages that machines are missing
RESTARTS = 5  # without a later checkpoint; then the training fails


class StageEnd:
    """Serves the first process, from a thread of the stage: sends points of curves to tracking, draws samples and scores them."""

    def __init__(self, training: Training, sampling: Sampling | None, scoring: Scoring | None, report: Report):
        key = secrets.token_bytes(32)
        self._listener = Listener(("127.0.0.1", 0), authkey=key)
        self.address = self._listener.address, key
        self.error: BaseException | None = None
        self.training, self.sampling, self.scoring, self.report = training, sampling, scoring, report
        self._connected, self._ended, self._closed = threading.Event(), threading.Event(), threading.Event()
        self._step, self._restarts = -1, 0  # of the latest checkpoint that the processes resumed from, and then

    @contextmanager
    def open(self, waiting: str) -> Iterator[None]:
        """Serve in the block; prints `waiting`, if given, while there is nobody to serve."""
        threads = [
            threading.Thread(target=self._serve, daemon=True),
            threading.Thread(target=self._remind, args=(waiting,), daemon=True),
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._ended.set(), self._closed.set()
            with suppress(OSError):
                socket.create_connection(self.address[0]).close()  # ends its wait for a connection
            for thread in threads:
                thread.join()
            self._listener.close()

    def _remind(self, waiting: str) -> None:
        while not self._ended.wait(WAITING_SECONDS):
            if waiting and not self._connected.is_set():
                terminal.say(waiting)

    def _serve(self) -> None:
        while not self._closed.is_set():
            # A process may die at any time, also in the middle of a message.
            with suppress(EOFError, OSError, ValueError, pickle.PickleError, AuthenticationError), self._listener.accept() as line:
                self._connected.set()
                while not self._closed.is_set():
                    line.send(self._answer(*line.recv()))
            self._connected.clear()

    def _answer(self, what: str, *values: Any) -> tuple[str, Any]:
        """Why the training must end ("": it must not), and what was asked for."""
        answers = {"started": self._started, "report": self.report, "ended": self._ended.set}
        answers |= {"sample": self._sample, "score": self._score}
        try:
            return "", answers[what](*values)
        except Exception as error:
            self.error = error
            return "the stage failed", None

    def _started(self, step: int, restarts: int) -> None:
        if step > self._step:
            self._step, self._restarts = step, restarts
        elif restarts - self._restarts >= RESTARTS:
            raise UserError(
                f"its processes ended {RESTARTS} times after step {step}, before the next checkpoint; their errors are above. Out "
                "of memory? Machines that come and go? Then set checkpoint_seconds lower"
            )

    def _sample(self, step: int) -> None:
        with self._current() as module:
            self.sampling.show(module, step)

    def _score(self, step: int) -> tuple[dict[str, float], int]:
        with self._current() as module:
            return self.scoring.values(module, step)

    @contextmanager
    def _current(self) -> Iterator[TrainingModule]:
        """The module with the weights that the process has sent, on this machine's device."""
        module = self.training.module
        module.device = pick_device(self.training.hardware.accelerator)
        values = state.load(self.training.scratch / SAMPLED)
        adapters.restore(module, values["module"])
        module.ema.load_state_dict(values["ema"])
        module.to(module.device)
        module.ema.to(module.device)
        yield module
        module.cpu(), module.ema.to("cpu")
        module.device = torch.device("cpu")


@dataclass(frozen=True)
class ProcessEnd:
    """The first process's connection to its stage."""

    connection: Any
    scratch: Path

    def report(self, values: dict[str, float], step: int) -> None:
        self.call("report", values, step)

    def sample(self, module: TrainingModule, step: int) -> None:
        self._send(module)
        self.call("sample", step)

    def score(self, module: TrainingModule, step: int) -> tuple[dict[str, float], int]:
        self._send(module)
        return self.call("score", step)

    def _send(self, module: TrainingModule) -> None:
        values = {"module": adapters.changing(module), "ema": module.ema.state_dict()}
        disk.write_atomically(self.scratch / SAMPLED, lambda temporary: torch.save(values, temporary))

    def call(self, *message: Any) -> Any:
        self.connection.send(message)
        refusal, answer = self.connection.recv()
        if refusal:
            raise UserError(refusal)
        return answer
