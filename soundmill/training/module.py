"""The base of every training: what step k sees follows from (seed, k) alone, so a resumed training equals an unbroken one."""

from __future__ import annotations

import logging
import math
import tempfile
import time
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from soundmill.errors import UserError
from soundmill.training.callbacks import TRAIN, VALID, Curve, Progress, TimedCheckpoint, without_step
from soundmill.training.checkpoint import LAST, AtomicCheckpointIO, resume_point
from soundmill.training.device import pick_device, usable_precision, use_threads
from soundmill.training.ema import Ema
from soundmill.training.loader import Batch, Joined, Loader, Order, Source, worker_deaths_explained
from soundmill.training.params import HardwareParams, OptimiserParams, TrainingParams
from soundmill.training.seeds import seed_of
from soundmill.training.starting import take_weights
from soundmill.training.validation import HeldOut, Validation, side_by_side

FINAL_SHARE = 0.045  # of the rate, where it decays exponentially: what HiFi-GAN's 0.999 per epoch came to in its 3,100 epochs


class TrainingModule(pl.LightningModule):
    """A net, its optimiser and its average; a family says in `loss` what one batch of it is.

    `loss` must take all its randomness from (seed, number of the batch), as `self.rng(step)` does. A step of the optimiser takes
    the mean gradient of `accumulate` batches; only where that is 1, its number is the batch's.
    """

    net_stepped = True  # whether the latest batch's loss is the net's own

    def __init__(self, net: nn.Module, params: TrainingParams, steps: int, accumulate: int = 1):
        super().__init__()
        self.net, self.params, self.steps, self.accumulate = net, params, steps, accumulate
        self.ema = Ema(net, params.ema)

    @abstractmethod
    def loss(self, step: int, batch: Batch) -> Tensor:
        """Scalar loss of this rank's share of batch `step` (from 0)."""

    def start_from(self, weights: Mapping[str, Tensor], where: str) -> None:
        """Start from weights that another training made, in the directory `where`; those of another net are a UserError."""
        take_weights(self.net, weights, where)
        self.ema = Ema(self.net, self.params.ema)

    def valid_loss(self, step: int, batch: Batch) -> Tensor:
        """Scalar loss of a held-out batch; it must be comparable between steps of the training."""
        return self.loss(step, batch)

    def rng(self, *key: Any) -> torch.Generator:
        """A generator on the training device, seeded by (seed, rank, key)."""
        return torch.Generator(self.device).manual_seed(seed_of(self.params.seed, self.global_rank, *key))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        step = self.global_step * self.accumulate + batch_idx % self.accumulate
        if batch.step != step:  # the loader resumes from its own state in the checkpoint
            raise RuntimeError(f"batch {step} was awaited, and batch {batch.step} given")
        torch.manual_seed(seed_of(self.params.seed, self.global_rank, "net", step))  # dropout draws from the global generator
        return self.loss(step, batch)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.ema.before_step(self.net, self.accumulate)
        super().optimizer_step(*args, **kwargs)
        self.ema.step(self.net)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.clip(self.net, self.params.optimiser.clip_norm)

    def clip(self, net: nn.Module, clip_norm: float | None) -> None:
        if clip_norm is not None:  # Lightning's own clipping refuses a fused optimiser
            nn.utils.clip_grad_norm_(net.parameters(), clip_norm)

    def configure_optimizers(self) -> Any:
        return self.optimiser_of(self.net, self.params.optimiser)

    def optimiser_of(self, net: nn.Module, kept: OptimiserParams) -> dict[str, Any]:
        """A net's optimiser and its rate, as Lightning takes them."""
        matrices = [weight for weight in net.parameters() if weight.ndim >= 2]
        vectors = [weight for weight in net.parameters() if weight.ndim < 2]
        groups = [{"params": matrices, "weight_decay": kept.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        optimiser = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=kept.learning_rate,
            betas=tuple(kept.betas),
            eps=kept.eps,
            fused=self.trainer.precision != "16-mixed",  # a fused one removes the scale of fp16 itself, after `clip`
        )
        rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: self.share_of_rate(net, kept, step))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": rate, "interval": "step"}}

    def share_of_rate(self, net: nn.Module, kept: OptimiserParams, step: int) -> float:
        """Share of a net's learning rate at `step` (from 0)."""
        return rate_factor(step, self.steps, kept)

    def on_fit_start(self) -> None:
        self.ema.to(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["ema"] = self.ema.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.ema.load_state_dict(checkpoint["ema"])


def rate_factor(step: int, steps: int, params: OptimiserParams) -> float:
    """Share of the learning rate at `step` (from 0), which falls for `steps`."""
    warm = min(1.0, (step + 1) / (params.warmup_steps + 1))
    done = min(step / steps, 1.0)
    if params.decay == "linear":
        return warm * (1 - done)
    if params.decay == "cosine":
        return warm * 0.5 * (1 + math.cos(math.pi * done))
    if params.decay == "exponential":
        return warm * FINAL_SHARE**done
    if params.decay == "tenth":
        return warm * (1 - 0.9 * done)
    if params.decay == "three_quarters":
        return warm * (1 - 0.25 * done)
    return warm


@dataclass(frozen=True)
class Fitted:
    """What came of a training, beside the weights in its module."""

    points: list[dict[str, float]]  # of the curve, as `side_by_side` gives them
    facts: dict[str, Any]  # of the hardware, and of the weights
    best: dict[str, Tensor]  # averaged weights of the lowest held-out loss; empty where no clip is held out

    @property
    def metrics(self) -> dict[str, Any]:
        """Losses at the end, and at their lowest."""
        best = self.facts["weights"].get("best")
        if best is None:
            return {"loss": self.points[-1][TRAIN]}
        losses = {"loss": self.points[-1][TRAIN], "valid_loss": self.points[-1][VALID]}
        return {**losses, "best_step": best["step"], "best_valid_loss": best["valid_loss"]}

    def take(self, module: TrainingModule, which: str) -> None:
        """Give the module's net its best weights, where `which` is `best`."""
        if which == "best":
            module.net.load_state_dict(self.best)


def fit_averaged(
    module: TrainingModule,
    source: Source,
    order: Order | Joined,
    draw: Callable[[int], Tensor],
    hardware: HardwareParams,
    ctx: Any,
    *,
    held_out: HeldOut | None,
    started_from: str | None = None,
    callbacks: Sequence[pl.Callback] = (),
) -> Fitted:
    """Train on the batches of `Loader(source, order, draw)`; `module.net` ends with its averaged weights of the last step.

    `started_from` is the digest of what `module` started from: a killed training that started from something else is not resumed.
    `callbacks` see a training in this process only.
    """
    params = module.params
    if params.use == "best" and held_out is None:
        raise UserError(
            f"{ctx.name}: `use` is `best`, and there is no clip of the validation split; raise splits.valid_fraction, or set it to "
            "`last`"
        )
    on_gpu = pick_device(hardware.accelerator).type != "cpu"
    loader = Loader(
        source,
        order,
        draw,
        steps=module.steps * module.accumulate,
        # On CPU the net has all cores, and reading a batch takes a thousandth of its step.
        workers=max(1, ctx.workers // hardware.devices) if on_gpu else 0,
        pinned=on_gpu,
    )
    # Other processes train when there are several devices, and tracking stays in this one.
    alone = hardware.devices == 1
    on_point = ctx.tracking.log_curve if alone else None
    curve = Curve(params.log_every_steps, on_point)
    validation = held_out and Validation(
        held_out,
        draw,
        order.batch_size,
        batches=params.validate_batches,
        every=params.validate_every_steps,
        precision=hardware.precision,
        on_point=on_point,
    )
    progress = Progress(ctx.name, on_point)
    facts = fit(
        module,
        loader,
        hardware=hardware,
        scratch=ctx.scratch / (f"training-{started_from}" if started_from else "training"),
        progress=progress,
        curve=curve,
        validation=validation,
        callbacks=callbacks if alone else (),
    )
    measured = validation.points if validation else []
    if (pace := progress.seconds_per_step) is not None:
        ctx.cost["seconds_per_step"] = pace
    if not alone:
        for point in [*curve.points, *measured]:
            ctx.tracking.log_curve(*without_step(point))
    module.ema.copy_to(module.net)
    of_weights: dict[str, Any] = {"last": {"step": module.steps}}
    if validation:
        of_weights["last"]["valid_loss"] = measured[-1][VALID]
        of_weights["best"] = {"step": validation.step, "valid_loss": validation.loss}
    best = validation.weights if validation else {}
    return Fitted(side_by_side(curve.points, measured), {**facts, "weights": of_weights}, best)


def fit(
    module: TrainingModule,
    loader: Loader,
    *,
    hardware: HardwareParams,
    scratch: Path,
    progress: Progress,
    curve: Curve,
    validation: Validation | None = None,
    callbacks: Sequence[pl.Callback],
) -> dict[str, Any]:
    """Train for `module.steps` steps, from the last checkpoint in `scratch` if there is one; `module` ends trained.

    `loader` has `module.accumulate` batches for each step. `curve` and `validation` end with all points. Returns what the hardware
    came to: device, number of them, precision.
    """
    use_threads(hardware.threads)
    scratch.mkdir(parents=True, exist_ok=True)
    if hardware.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("hardware.accelerator is `gpu`, but torch sees none here; set it to `cpu` or `auto`")
    precision = usable_precision(pick_device(hardware.accelerator), hardware.precision)
    if precision != hardware.precision:
        print(
            f"{progress.label}: this processor has no instructions for {hardware.precision}, the training is in {precision} bits",
            flush=True,
        )
    timed = TimedCheckpoint(scratch, module.params.checkpoint_seconds, module.params.log_every_steps)
    looks = [validation] if validation else []
    with _quiet():
        trainer = _trainer(
            module, hardware, precision, scratch, [curve, progress, *looks, *callbacks, timed], max_steps=module.steps
        )
        start = resume_point(scratch)
        with worker_deaths_explained():
            trainer.fit(module, loader, ckpt_path=start, weights_only=True)
    if hardware.devices > 1:  # trained in other processes: what they left is the last checkpoint
        last = AtomicCheckpointIO().load_checkpoint(scratch / LAST)
        module.load_state_dict(last["state_dict"])
        module.on_load_checkpoint(last)
        for callback in (curve, *looks):
            callback.load_state_dict(last["callbacks"][callback.state_key])
    return {"device": trainer.strategy.root_device.type, "devices": hardware.devices, "precision": precision}


def rehearse(module: TrainingModule, batch: Callable[[int], Batch], hardware: HardwareParams, count: int) -> list[float]:
    """Wall time in seconds of each of `count` batches, by the module's own steps on one device; it trains `module` by them."""
    clock = _Clock()
    precision = usable_precision(pick_device(hardware.accelerator), hardware.precision)
    use_threads(hardware.threads)
    with _quiet(), tempfile.TemporaryDirectory(prefix="soundmill-") as folder:
        accelerator = "cpu" if pick_device(hardware.accelerator).type == "cpu" else "gpu"
        alone = hardware.model_copy(update={"devices": 1, "accelerator": accelerator})
        trainer = _trainer(module, alone, precision, Path(folder), [clock], max_epochs=1)
        batches = [batch(step) for step in range(count)]
        trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None, collate_fn=lambda one: one))
    return clock.seconds


class _Clock(pl.Callback):
    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        outputs["loss"].item()  # waits for a GPU
        self.seconds.append(time.perf_counter() - self._start)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide Lightning's advice: what matters of it is a parameter here."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"pytorch_lightning|lightning_fabric|torch\.optim\.lr_scheduler")
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")  # of a net that has not had its first turn
        yield


def _shared(module: TrainingModule) -> str:
    """Not re-run from argv: the stage holds its lock. Of several nets those whose turn it is not get no gradient."""
    return "ddp_spawn" if module.automatic_optimization else "ddp_spawn_find_unused_parameters_true"


def _trainer(
    module: TrainingModule,
    hardware: HardwareParams,
    precision: str,
    scratch: Path,
    callbacks: list[pl.Callback],
    max_steps: int = -1,
    max_epochs: int = -1,
) -> pl.Trainer:
    return pl.Trainer(
        accelerator=hardware.accelerator,
        devices=hardware.devices,
        strategy="auto" if hardware.devices == 1 else _shared(module),
        precision={"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[precision],
        max_steps=max_steps,
        accumulate_grad_batches=module.accumulate,
        max_epochs=max_epochs,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        barebones=False,
        default_root_dir=scratch,
    )
