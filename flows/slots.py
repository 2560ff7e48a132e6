"""The CPU threads and GPUs that stages share when several run at the same time (`execution.slots`)."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from soundmill.errors import UserError
from soundmill.evaluation import embedders
from soundmill.params import ExecutionParams, SlotsParams

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Share:
    """What a stage takes: CPU threads or GPUs. `gpu` None: all GPUs that are free, at least one."""

    cpu: int = 0
    gpu: int | None = 0


@dataclass(frozen=True)
class Taken:
    """What a running stage has taken, and `work`, which identifies its result."""

    work: str
    cpu: int
    gpus: tuple[str, ...]

    @property
    def environment(self) -> dict[str, str]:
        """Variables that show a stage its own GPUs only. One without GPUs sees all: its parameters decide whether it uses any."""
        return {VISIBLE: ",".join(self.gpus)} if self.gpus else {}


class Slots:
    """What is free. All pipelines of one flow share it, each in its own thread."""

    def __init__(self, params: SlotsParams):
        names = os.environ.get(VISIBLE, "").split(",") if os.environ.get(VISIBLE) else list(map(str, range(params.gpu)))
        if len(names) < params.gpu:
            raise UserError(f"execution.slots.gpu is {params.gpu}, but {VISIBLE} names only {len(names)} ({','.join(names)})")
        self.params = params
        self.stopped = False
        self.changes = 0  # how often something was given back, or something else ended
        self._cpu = params.cpu
        self._gpus = names[: params.gpu]
        self._running: set[str] = set()
        self._condition = threading.Condition()

    @property
    def several(self) -> bool:
        """Whether stages may run at the same time."""
        return self.params.cpu + self.params.gpu > 1

    def take(self, work: str, share: Share) -> Taken | None:
        """Take a share, or all there is if that is less; None while it is not free, or while the same work runs elsewhere.

        The same work runs twice at once if two points of a sweep need one stage; the second then finds its result in DVC's cache.
        """
        with self._condition:
            gpu = max(1, len(self._gpus)) if share.gpu is None else min(share.gpu, self.params.gpu)
            cpu = min(share.cpu, self.params.cpu)
            if self.stopped or work in self._running or cpu > self._cpu or gpu > len(self._gpus):
                return None
            taken = Taken(work, cpu, tuple(self._gpus[:gpu]))
            self._cpu -= cpu
            self._gpus = self._gpus[gpu:]
            self._running.add(work)
            return taken

    def give_back(self, taken: Taken) -> None:
        with self._condition:
            self._cpu += taken.cpu
            self._gpus += taken.gpus
            self._running.remove(taken.work)
        self.tell()

    def stop(self) -> None:
        """Let nothing more be taken."""
        self.stopped = True
        self.tell()

    def wait(self, changes: int) -> None:
        """Wait until there have been more than this many changes."""
        with self._condition:
            self._condition.wait_for(lambda: self.changes > changes)

    def tell(self) -> None:
        """Wake those who wait."""
        with self._condition:
            self.changes += 1
            self._condition.notify_all()


def share_of(section: Mapping[str, Any], execution: ExecutionParams) -> Share:
    """What a stage takes, from its section of the parameters.

    A training takes its `hardware`: `devices` GPUs if it may use them and there are slots for them, else `threads` for each device.
    `generate` and `latents`, which have an `accelerator` too, do so with `execution.devices`, and so do `zero_shot` and `evaluate`
    if an embedder of theirs uses GPUs; `evaluate` takes `execution.workers`, too. Others take the `threads` of their section or
    `execution.workers`.
    """
    workers = execution.workers or os.cpu_count() or 1
    several = section.get("embedders")
    named = several or [section.get("embedder")]
    if execution.slots.gpu and any(name and embedders.find(name).gpu for name in named):
        return Share(cpu=workers if several else 0, gpu=execution.devices)
    hardware = section.get("hardware", section)
    if "accelerator" not in hardware:
        return Share(cpu=hardware.get("threads", workers))
    devices = hardware.get("devices", execution.devices)
    if execution.slots.gpu and hardware["accelerator"] != "cpu":
        return Share(gpu=devices)
    return Share(cpu=hardware["threads"] * (devices or 1) if "threads" in hardware else workers)


current: ContextVar[Slots | None] = ContextVar("slots", default=None)  # those of a sweep or bake-off, for its pipelines
