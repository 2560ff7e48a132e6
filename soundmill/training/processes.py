"""The processes of one training: this one and, for several devices, child processes that end with it."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import patch_environment
from accelerate.utils.other import get_free_port

from soundmill import lifetime
from soundmill.errors import UserError
from soundmill.training.device import pick_device
from soundmill.training.params import HardwareParams


def together(devices: int, here: Callable[[], None], elsewhere: Callable[[], None]) -> None:
    """Run `here` in this process and `elsewhere` (pickled) in `devices` − 1 others; returns when all have ended."""
    if devices == 1:
        here()
        return
    place = {"world_size": devices, "local_world_size": devices, "master_addr": "127.0.0.1", "master_port": get_free_port()}
    # Without it, accelerate would use all cores; the number of threads is a parameter.
    place["omp_num_threads"] = os.environ.get("OMP_NUM_THREADS", "1")
    spawn = multiprocessing.get_context("spawn")  # not forked: a fork of a process that has run torch's threads can hang
    others = [spawn.Process(target=_elsewhere, args=(os.getpid(), place | _rank(rank), elsewhere)) for rank in range(1, devices)]
    for other in others:
        other.start()
    try:
        with patch_environment(**place, **_rank(0)):
            here()
        for other in others:
            other.join()
    except RuntimeError as error:  # torch's error for a process that died
        for other in others:
            other.join(1.0)
        if not any(other.exitcode for other in others):
            raise
        raise UserError(
            f"another process of this training ended ({str(error).partition(chr(10))[0]}); its error is above. Run it again: it "
            "resumes from its last checkpoint"
        ) from None
    finally:
        for other in others:
            other.kill()
            other.join()


def _rank(rank: int) -> dict[str, int]:
    return {"rank": rank, "local_rank": rank}


def _elsewhere(parent: int, place: dict[str, str | int], run: Callable[[], None]) -> None:
    lifetime.die_with_parent(parent)
    try:
        with patch_environment(**place):
            run()
    except UserError as error:
        sys.exit(str(error))
    except RuntimeError as error:
        if "Connection closed by peer" not in str(error):
            raise
        sys.exit(1)  # another process ended, and reports why


@contextmanager
def accelerated(hardware: HardwareParams, precision: str, accumulate: int) -> Iterator[Accelerator]:
    """An Accelerator for one training in this process."""
    accelerator = Accelerator(
        cpu=pick_device(hardware.accelerator).type == "cpu",
        mixed_precision={"32": "no", "bf16": "bf16", "fp16": "fp16"}[precision],
        gradient_accumulation_steps=accumulate,
    )
    try:
        yield accelerator
    finally:
        accelerator.end_training()
        # accelerate keeps global state without a public way to reset it; the next training in this process may use other devices
        # or another precision.
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
