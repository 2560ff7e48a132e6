"""Training in a stage: batches, held-out loss, curves sent to tracking, averaged weights at the end."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from soundmill.errors import UserError
from soundmill.training import adapters, checkpoint
from soundmill.training.curve import TRAIN, VALID, Curve, Progress, side_by_side
from soundmill.training.device import pick_device
from soundmill.training.loader import Joined, Loader, Order, Source
from soundmill.training.loop import fit
from soundmill.training.module import TrainingModule
from soundmill.training.monitoring import HeldOut, Kept, Sampling, Scoring, Validation
from soundmill.training.params import HardwareParams, Interval, Use


@dataclass(frozen=True)
class Fitted:
    """The result of a training, beside the weights in its module."""

    points: list[dict[str, float]]  # of the curve, from `side_by_side`
    facts: dict[str, Any]  # about the hardware and the weights
    best: dict[str, Tensor]  # averaged weights with the lowest held-out loss; empty if no clip is held out
    kept: Mapping[int, Path]  # files of averaged weights, by step
    best_fad: dict[str, Tensor]  # averaged weights with the lowest FAD; empty if nothing was scored
    scores: list[dict[str, float]]  # by step

    @property
    def metrics(self) -> dict[str, Any]:
        """The last losses and scores, and the lowest held-out loss and FAD with their steps."""
        weights, metrics = self.facts["weights"], {"loss": self.points[-1][TRAIN]}
        if best := weights.get("best"):
            metrics |= {"valid_loss": self.points[-1][VALID], "best_step": best["step"], "best_valid_loss": best["valid_loss"]}
        if best := weights.get("best_fad"):
            last = {name.replace("/", "_"): value for name, value in self.scores[-1].items() if name != "step"}
            metrics |= {**last, "best_fad_step": best["step"], "best_fad": best["fad"]}
        return metrics

    def codec_facts(self, weights: Any, started_from: str | None, clips: int, parameters: int) -> dict[str, Any]:
        """Facts for the config of a codec trained with `weights` (its section of params.yaml); `started_from` is a digest."""
        start = {"started_from": started_from} if started_from else {}
        counts = {"use": weights.use, "steps": weights.steps, "clips": clips, "parameters": parameters}
        return {**start, **self.facts, **counts}

    def load_into(self, module: TrainingModule, which: Use) -> None:
        """Load the weights chosen by `which` into the module's net: the best, or those of a step. It already has the last."""
        if which in ("best", "best_fad"):
            adapters.give_weights(module.net, self.best if which == "best" else self.best_fad)
        elif which in self.kept:
            adapters.give_weights(module.net, checkpoint.read_weights(self.kept[which]))

    def save(self, directory: Path) -> None:
        """Write the best weights and those of earlier steps into the `directory` of the last ones."""
        for weights, name in ((self.best, checkpoint.BEST), (self.best_fad, checkpoint.BEST_FAD)):
            if weights:
                checkpoint.write_weights(weights, directory / name)
        for step, path in self.kept.items():
            shutil.copyfile(path, directory / checkpoint.weights_of_step(step))


def fit_averaged(
    module: TrainingModule,
    source: Source,
    order: Order | Joined,
    draw: Callable[[int], Tensor],
    hardware: HardwareParams,
    ctx: Any,
    *,
    item_seconds: float,
    held_out: HeldOut | None,
    started_from: str | None = None,
    sampling: Sampling | None = None,
    scoring: Scoring | None = None,
    patience: int | None = None,
) -> Fitted:
    """Train on the batches of `Loader(source, order, draw)`; `module.net` ends with its averaged weights of the last step.

    An item has `item_seconds` seconds of sound. `started_from` is the digest of the weights that `module` started from: a training
    that started from others is not resumed. With `patience`, it ends when so many held-out losses in a row were not the lowest.
    """
    params = module.params
    scratch = ctx.scratch / (f"training-{started_from}" if started_from else "training")
    every = in_steps(params.keep_every_steps, order, module.accumulate)
    kept = Kept(scratch, every, params.keep) if every else None
    if params.use == "best" and held_out is None:
        raise UserError(
            f"{ctx.name}: `use` is `best`, but the validation split has no clip; raise splits.valid_fraction, or set it to `last`"
        )
    try:
        params.check_use(params.use, module.steps, every)
    except ValueError as error:
        raise UserError(f"{ctx.name}: {error}") from None
    if patience and not held_out:
        raise UserError(
            f"{ctx.name}: patience needs held-out losses, but the validation split is empty; raise splits.valid_fraction"
        )
    on_gpu = pick_device(hardware.accelerator).type != "cpu"
    loader = Loader(
        source,
        order,
        draw,
        steps=module.steps * module.accumulate,
        # On a CPU the net uses all cores, and reading a batch takes a thousandth of a step.
        workers=max(1, ctx.workers // hardware.devices) if on_gpu else 1,
        pinned=on_gpu,
    )
    curve, progress = Curve(params.log_every_steps), Progress(ctx.name, item_seconds)
    validation = held_out and Validation(
        held_out, draw, order.batch_size, batches=params.validate_batches, every=params.validate_every_steps, patience=patience
    )
    with ctx.tracking.system_metrics():
        facts = fit(
            module,
            loader,
            hardware=hardware,
            scratch=scratch,
            curve=curve,
            progress=progress,
            validation=validation,
            kept=kept,
            sampling=sampling,
            scoring=scoring,
            report=ctx.tracking.log_curve,
        )
    kept_steps = kept.steps(module.steps, module.steps) if kept else []  # fewer if it ended early
    if params.use == "best_fad" and not (scoring and scoring.points):
        raise UserError(f"{ctx.name}: `use` is `best_fad`, but no score could be measured; set `use` to `best` or `last`")
    if (seconds := progress.seconds_per_step) is not None:
        ctx.cost["seconds_per_step"] = seconds
    module.ema.copy_to(module.net)
    losses = {point["step"]: {"valid_loss": point[VALID]} for point in validation.points} if validation else {}
    weights = {str(step): {"step": step, **losses.get(step, {})} for step in kept_steps}
    weights["last"] = {"step": module.steps, **losses.get(module.steps, {})}
    if validation:
        weights["best"] = {"step": validation.step, "valid_loss": validation.loss}
    if scoring and scoring.points:
        weights["best_fad"] = {"step": scoring.step, "fad": scoring.score, **losses.get(scoring.step, {})}
    return Fitted(
        side_by_side(curve.points, validation.points if validation else []),
        {**facts, "weights": weights},
        validation.weights if validation else {},
        {step: kept.path(step) for step in kept_steps},
        scoring.weights if scoring else {},
        scoring.points if scoring else [],
    )


def in_steps(every: Interval | None, order: Order | Joined, accumulate: int) -> int | None:
    """An interval in steps of `accumulate` batches each; the steps of an epoch are those of the first."""
    return -(-order.steps(1) // accumulate) if every == "epoch" else every
