"""Training of any family: loading, checkpoints, curve and pictures around the family's own nets, batches and loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from soundmill import shards
from soundmill.audio import figures
from soundmill.errors import UserError, told
from soundmill.models import registry
from soundmill.models.family import Model, Request, Run, can
from soundmill.models.params import FamilyTrainParams
from soundmill.models.requests import describe
from soundmill.training.callbacks import Every, write_curve
from soundmill.training.device import pick_device, use_threads
from soundmill.training.loader import Joined, Order, Source
from soundmill.training.module import TrainingModule, fit_averaged

CONDITIONS = {"labels": ["labels"], "caption": ["captions"], "none": []}  # columns of the catalog


@dataclass
class Prepared:
    """A training as a family prepared it from its inputs."""

    module: TrainingModule
    model: Model  # whose nets the module trains
    source: Source
    order: Order | Joined
    draw: Callable[[int], Tensor]  # chance of a step, as Loader takes it
    clip_ids: Sequence[str]  # trained on
    counts: dict[str, int]  # beside the clips: labels, mixes, captions
    samples: Sequence[Request] | Tensor  # shown while it trains: wanted sounds, or real waves [N, C, T] that it reconstructs
    samples_every: int | None  # steps; None: only at the end
    columns: int  # of the picture of samples
    valid_loss: Callable[[Any], float] | None  # of the module's net as it is now; None where no clip is held out
    save: Callable[[Path, dict[str, Any]], None]  # the checkpoint into a directory, with facts for people


def run(
    family: str, params: FamilyTrainParams, ctx: Any, inputs: Path, catalog: Path, model: Path, curves: Path, grid: Path
) -> dict[str, Any]:
    """Train a family and write the checkpoint directory, the curve (CSV) and a picture of samples (PNG); returns metrics."""
    use_threads(params.hardware.threads)
    prepared = registry.family(family).prepare(params, ctx, inputs, catalog)
    module, order, steps = prepared.module, prepared.order, prepared.module.steps
    if params.keep == "best" and prepared.valid_loss is None:
        raise UserError(
            f"{family}.train.keep is `best`, and {catalog} has no clip of the validation split; raise splits.valid_fraction, or "
            "set it to `last`"
        )
    counts = {"clips": len(prepared.clip_ids), **prepared.counts}
    parameters = sum(weight.numel() for weight in module.net.parameters())
    said = ", ".join(f"{count or 'no'} {what}" for what, count in counts.items())
    print(f"{ctx.name}: {said}, {parameters:,} parameters, {steps} steps of {order.batch_size * module.accumulate}", flush=True)
    columns = {"clip_id": "string", **dict.fromkeys(CONDITIONS[prepared.model.condition], "string")}
    ctx.tracking.log_dataset("training clips", shards.digest(prepared.clip_ids), counts["clips"], catalog, "training", columns)

    draw = partial(draw_samples, family, prepared, params, ctx)
    every = prepared.samples_every
    callbacks = [Every(every, partial(_log_samples, ctx.tracking, draw))] if every else []
    loss_of = prepared.valid_loss if params.keep == "best" else None
    points, facts = fit_averaged(module, prepared.source, order, prepared.draw, params.hardware, ctx, callbacks, loss_of)

    write_curve(points, curves)
    items = {f"training_{what}": count for what, count in counts.items() if what in ("clips", "mixes")}
    prepared.save(model, {"steps": steps, **items, "parameters": parameters, **facts})
    metrics = {"loss": points[-1]["loss"], "steps": steps, **counts, "parameters": parameters, "threads": params.hardware.threads}
    if "kept_step" in facts:
        metrics["kept_step"] = facts["kept_step"]
    if prepared.valid_loss:
        metrics["valid_loss"] = prepared.valid_loss(module)
    if can(prepared.model, "generate"):
        example = {"label": [describe(prepared.samples[0])], "seed": [0]}
        shape = 1, prepared.model.channels, prepared.model.num_samples or prepared.model.sample_rate
        ctx.tracking.log_model(model, family, example, np.zeros(shape, np.float32))
    ctx.show(f"the samples ({grid.name})", partial(_show_samples, ctx.tracking, draw, steps, grid))
    return metrics


def draw_samples(family: str, prepared: Prepared, params: FamilyTrainParams, ctx: Any, step: int) -> Any:
    """A figure of samples with the current weights, after so many steps."""
    model, samples, hardware = prepared.model, prepared.samples, params.hardware
    run = Run(
        params.sampling, pick_device(hardware.accelerator), hardware.precision, params.items, ctx.home, ctx.scratch, ctx.digests
    )
    if can(model, "generate"):
        waves = model.generate(samples, run)
        titles = [describe(request) or f"sample {cell + 1}" for cell, request in enumerate(samples)]
    else:
        pairs = zip(samples, model.reconstruct(samples, run), strict=True)
        waves = [wave for pair in pairs for wave in pair]
        titles = ["real", "reconstructed"] * len(samples)
    sounds = [(wave.numpy(), model.sample_rate) for wave in waves]
    return figures.draw_waves(sounds, titles, prepared.columns, f"{family}: samples after {step} steps")


def _show_samples(tracking: Any, draw: Callable[[int], Any], steps: int, grid: Path) -> None:
    figure = draw(steps)
    figures.save_png(figure, grid)
    tracking.log_figure(figure, "samples/final")


def _log_samples(tracking: Any, draw: Callable[[int], Any], module: TrainingModule, step: int) -> None:
    with told(f"samples after {step} steps"):
        with module.ema.applied(module.net):
            figure = draw(step)
        tracking.log_figure(figure, f"samples/step-{step:07d}")
    module.to(module.device)
