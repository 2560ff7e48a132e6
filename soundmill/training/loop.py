"""The training loop, for a single net or several trained in turn, on one or more devices, and its state on disk.

Writes of the state are atomic and the previous one is kept, so it survives a kill at any time.
"""

import os
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, nn

from soundmill import hashing, terminal
from soundmill.disk import write_atomically
from soundmill.errors import UserError
from soundmill.training import adapters, launcher
from soundmill.training.curve import Curve, Progress
from soundmill.training.device import fast_kernels, pick_device, usable_precision, use_threads
from soundmill.training.loader import Batch, Loader
from soundmill.training.module import Ema, TrainingModule
from soundmill.training.monitoring import Kept, Report, Sampling, Scoring, Validation
from soundmill.training.params import HardwareParams
from soundmill.training.seeds import seed_of

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
SHARED_SECONDS = 120.0  # until a file written on one machine is seen by all: NFS caches directories for a minute


@dataclass(frozen=True)
class State:
    """Everything that a training resumes from."""

    module: TrainingModule
    optimisers: Mapping[str, Any]
    loader: Loader
    curve: Curve
    validation: Validation | None
    scoring: Scoring | None = None  # only in the first process
    scaler: Any = None  # of the loss, for fp16

    def values(self) -> dict[str, Any]:
        module = self.module
        return {
            "step": module.step,
            "module": adapters.changing(module),
            "ema": module.ema.state_dict(),
            "more": module.more_state(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers.values()],
            "scaler": self.scaler and self.scaler.state_dict(),
            "loader": self.loader.state_dict(),
            "curve": self.curve.state_dict(),
            "validation": self.validation and self.validation.state_dict(),
            "scoring": self.scoring and self.scoring.state_dict(),
        }

    def restore(self, path: Path) -> None:
        module, values = self.module, load(path)
        module.check_state(values["more"])
        self.loader.load_state_dict(values["loader"])
        adapters.restore(module, values["module"])
        module.step = values["step"]
        module.ema.load_state_dict(values["ema"])
        module.ema.to(module.device)
        for optimiser, state in zip(self.optimisers.values(), values["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        parts = {"scaler": self.scaler, "curve": self.curve, "validation": self.validation, "scoring": self.scoring}
        for name, part in parts.items():
            if part:
                part.load_state_dict(values[name])


def save(values: dict[str, Any], path: Path) -> None:
    """Write a checkpoint and keep the previous one."""
    if path.exists():
        os.replace(path, path.with_name(PREVIOUS))
    try:
        write_atomically(path, lambda temporary: torch.save(values, temporary))
    except RuntimeError as error:  # torch's error for a full disk
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{path}: the checkpoint could not be written ({reason}); free some space and run again. The previous one is kept"
        ) from None


def load(path: Path) -> dict[str, Any]:
    """The values that `save` wrote; runs no code from the file."""
    return torch.load(path, map_location="cpu", weights_only=True)


def resume_point(directory: Path) -> Path | None:
    """The newest undamaged checkpoint in `directory`, or None; damaged ones are reported and skipped."""
    candidates = [path for path in (directory / LAST, directory / PREVIOUS) if path.exists()]
    for path in candidates:
        try:
            with zipfile.ZipFile(path) as archive:  # torch writes checksums but never checks them
                if damaged := archive.testzip():
                    raise ValueError(f"{damaged} is damaged")
            values = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # on damage, zipfile, zlib, pickle and torch each raise their own errors
            terminal.say(f"{path}: damaged ({error}); skipped")
            continue
        if "optimizer_states" not in values:
            return path
        terminal.say(f"{path}: written by an earlier version of Soundmill, which alone can resume it; skipped")
    if candidates:
        terminal.say(f"{directory}: no checkpoint to resume from; training starts from the beginning")
    return None


def identity(path: Path | None) -> str:
    """A digest of the checksums in a checkpoint; "" for none."""
    if path is None:
        return ""
    with zipfile.ZipFile(path) as archive:
        return hashing.digest([[part.filename, part.CRC] for part in archive.infolist()])


def found(directory: Path, wanted: str) -> Path | None:
    """The checkpoint with this `identity`, which another process chose: caches of a shared file system may be stale."""
    until = time.monotonic() + SHARED_SECONDS
    while wanted:
        for path in (directory / LAST, directory / PREVIOUS):
            with suppress(OSError, ValueError, KeyError):
                if identity(path) == wanted:
                    return path
        if time.monotonic() > until:
            raise UserError(f"{directory} lacks the checkpoint that the head resumes from; is it the same directory?")
        time.sleep(1.0)
    return None


def fit(
    module: TrainingModule,
    loader: Loader,
    *,
    hardware: HardwareParams,
    scratch: Path,
    curve: Curve,
    progress: Progress,
    validation: Validation | None = None,
    kept: Kept | None = None,
    sampling: Sampling | None = None,
    scoring: Scoring | None = None,
    report: Report = lambda values, step: None,
) -> dict[str, Any]:
    """Train for `module.steps` steps, resuming from the last checkpoint in `scratch`; leaves the trained `module` on the CPU.

    `loader` has `module.accumulate` batches for each step. Of several processes (launcher.py) only the first uses `report`,
    `progress`, `kept`, `sampling` and `scoring`, and returns; the others end here. `curve`, `validation` and `scoring` hold all
    points at the end. Returns the device type, the number of devices and the precision that were used.
    """
    device = pick_device(hardware.accelerator)
    precision = usable_precision(device, hardware.precision)
    if precision != hardware.precision:
        terminal.say(f"{progress.label}: this processor has no instructions for {hardware.precision}; training in {precision} bits")
    scratch.mkdir(parents=True, exist_ok=True)
    start = None if launcher.rank else resume_point(scratch)
    with (
        launcher.together(loader.order.batch_size, progress.label, identity(start)) as chosen,
        accelerated(hardware, precision, module.accumulate) as accelerator,
        fast_kernels(accelerator.device),
    ):
        start = found(scratch, chosen) if launcher.rank else start
        optimisers = place(module, accelerator, hardware)
        loader.rank, loader.world_size = module.rank, module.world_size
        first = module.rank == 0
        scoring, kept, sampling = (scoring, kept, sampling) if first else (None, None, None)
        state = State(module, optimisers, loader, curve, validation, scoring, accelerator.scaler)
        if start:
            state.restore(start)
        saved_at = time.monotonic()
        if first:
            progress.start(module.step, module.steps, loader)
        if scoring:
            scoring.start()

        ended = _ends_here(module, validation)
        for loss in () if ended else _steps(module, loader, accelerator, optimisers, curve, scoring):
            step = module.step
            if first and (speed := progress.stepped(step, loss)):
                report(speed, step)
            if validation and validation.due(step, module.steps):
                point = validation.measure(module, accelerator)
                first and report(*point)
                ended = _ends_here(module, validation)
            if curve.due(step, module.steps):
                point = curve.point(step, module.optimised["net"].learning_rate * module.share_of_rate("net", step - 1))
                first and report(*point)
            if scoring and scoring.due(step, module.steps):
                report(*scoring.measure(module, progress.label))
            if kept and kept.due(step, module.steps):
                kept.save(module)
            if sampling and step % sampling.every == 0 and step < module.steps:
                sampling.show(module, step)
            late = time.monotonic() - saved_at >= module.params.checkpoint_seconds
            if first and late and step < module.steps and step % module.params.log_every_steps == 0:
                save(state.values(), scratch / LAST)
                saved_at = time.monotonic()
            if ended:
                break
        if first:
            save(state.values(), scratch / LAST)
            progress.end()
        if scoring:
            scoring.end(progress.label)
        module.cpu(), module.ema.to("cpu")
        module.device, module.rank, module.world_size = torch.device("cpu"), 0, 1
    return {"device": device.type, "devices": hardware.devices, "precision": precision}


def _steps(
    module: TrainingModule,
    loader: Loader,
    accelerator: Accelerator,
    optimisers: dict[str, AcceleratedOptimizer],
    curve: Curve,
    scoring: Scoring | None,
) -> Iterator[Tensor]:
    """Train on the batches of one step after the other; yields a loss of each step."""
    for batch in loader:
        with scoring.counting(module) if scoring else nullcontext():
            loss, net_stepped = train_on(module, batch, accelerator, optimisers)
        if net_stepped:
            curve.add(loss)
        if accelerator.sync_gradients:  # otherwise more batches of this step follow
            yield loss


def _ends_here(module: TrainingModule, validation: Validation | None) -> bool:
    """Make this step the last one if the held-out loss has not fallen for long enough."""
    if validation is None or not validation.exhausted:
        return False
    module.steps = module.step
    return True


def train_on(
    module: TrainingModule, batch: Batch, accelerator: Accelerator, optimisers: dict[str, AcceleratedOptimizer]
) -> tuple[Tensor, bool]:
    """Train on one batch, all turns; returns a loss and whether `module.net` stepped.

    The loss is that of `module.net` if it stepped, else of the last net that did, averaged over processes. It stays on the device,
    because reading it would wait for the GPU.
    """
    expected = module.step * module.accumulate + batch.step % module.accumulate
    if batch.step != expected:  # the loader resumes from its own state in the checkpoint
        raise RuntimeError(f"expected batch {expected}, got batch {batch.step}")
    batch = batch.to(module.device)
    torch.manual_seed(seed_of(module.params.seed, module.rank, "net", batch.step))  # dropout draws from the global generator
    losses = {}
    with accelerator.accumulate():
        for net, compute in module.turns(batch):
            with accelerator.autocast():
                loss = compute()
            accelerator.backward(loss)
            losses[net] = accelerator.reduce(loss.detach(), "mean")
            if accelerator.sync_gradients:
                # DistributedDataParallel expects one forward pass of the whole net per step.
                _average([weight.grad for weight in module.get_submodule(net).parameters() if weight.grad is not None], accelerator)
                if (norm := module.optimised[net].clip_norm) is not None:
                    accelerator.unscale_gradients(optimisers[net])
                    nn.utils.clip_grad_norm_(module.get_submodule(net).parameters(), norm)
                if net == "net":
                    module.ema.before_step(module.net, module.accumulate)
                optimisers[net].step()
                module.zero_grad()
    if accelerator.sync_gradients:
        norms = [one for one in module.modules() if isinstance(one, nn.BatchNorm1d | nn.BatchNorm2d) and one.track_running_stats]
        _average([values for one in norms for values in (one.running_mean, one.running_var)], accelerator)
        module.step += 1
        _set_rates(module, optimisers)
        if "net" in losses:
            module.ema.step(module.net)
    return losses.get("net", losses[net]), "net" in losses


def rehearse(module: TrainingModule, batch: Callable[[int], Batch], hardware: HardwareParams, count: int) -> list[float]:
    """Train `module` on `count` more batches on one device, as `fit` does; returns the wall time of each in seconds."""
    alone = hardware.model_copy(update={"devices": 1})
    precision = usable_precision(pick_device(hardware.accelerator), hardware.precision)
    seconds = []
    with accelerated(alone, precision, module.accumulate) as accelerator, fast_kernels(accelerator.device):
        optimisers = place(module, accelerator, alone)
        first = module.step * module.accumulate
        for number in range(first, first + count):
            one = batch(number)
            start = time.perf_counter()
            loss, _ = train_on(module, one, accelerator, optimisers)
            loss.item()  # waits for the GPU
            seconds.append(time.perf_counter() - start)
    return seconds


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


def place(module: TrainingModule, accelerator: Accelerator, hardware: HardwareParams) -> dict[str, AcceleratedOptimizer]:
    """Move a module to the device it is trained on; returns its optimisers by net."""
    use_threads(hardware.threads)
    module.device, module.rank, module.world_size = accelerator.device, accelerator.process_index, accelerator.num_processes
    module.to(accelerator.device)
    module.ema = Ema(module.net, module.params.ema)
    optimisers = {name: accelerator.prepare_optimizer(one) for name, one in module.optimisers().items()}
    _set_rates(module, optimisers)
    return optimisers


def _set_rates(module: TrainingModule, optimisers: dict[str, AcceleratedOptimizer]) -> None:
    """Set the learning rates of the next step."""
    for net, optimiser in optimisers.items():
        for group in optimiser.param_groups:
            group["lr"] = module.optimised[net].learning_rate * module.share_of_rate(net, module.step)


@torch.no_grad()
def _average(tensors: list[Tensor], accelerator: Accelerator) -> None:
    """Average tensors over processes."""
    if accelerator.num_processes == 1 or not tensors:
        return
    mean = torch.cat([one.flatten() for one in tensors])
    torch.distributed.all_reduce(mean)  # accelerate's `reduce` would copy it first
    mean /= accelerator.num_processes
    for one, part in zip(tensors, mean.split([one.numel() for one in tensors]), strict=True):
        one.copy_(part.view_as(one))
