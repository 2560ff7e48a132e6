"""What the training of any family is, around what the family has for itself: its net, its batches, its loss, its samples."""

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
from soundmill.errors import told
from soundmill.models import registry
from soundmill.models.params import FamilyTrainParams
from soundmill.training.callbacks import Every, write_curve
from soundmill.training.loader import Joined, Order, Source
from soundmill.training.module import TrainingModule, fit_averaged, use_threads


@dataclass
class Prepared:
    """A training as a family prepared it from its inputs."""

    module: TrainingModule
    source: Source
    order: Order | Joined
    draw: Callable[[int], Tensor]  # chance of a step, as Loader takes it
    clip_ids: Sequence[str]  # trained on
    counts: dict[str, int]  # beside the clips: labels, mixes, captions
    told: str  # `labels` or `captions`: by what its sounds are asked for
    example: str  # one of them
    num_samples: int  # of a sound
    draw_samples: Callable[[int], Any]  # the figure of samples after so many steps, by the net's weights of now
    draw_every: int | None  # steps; None: only at the end
    valid_loss: Callable[[], float | None]  # of the averaged net; None where no clip is held out
    save: Callable[[Path, dict[str, Any]], None]  # the checkpoint into a directory, with facts for people


def run(
    family: str, params: FamilyTrainParams, ctx: Any, inputs: Path, catalog: Path, model: Path, curves: Path, grid: Path
) -> dict[str, Any]:
    """Train a family and write the checkpoint directory, the curve (CSV) and a grid of samples (PNG); returns metrics."""
    use_threads(params.hardware.threads)
    prepared: Prepared = registry.part(family, "training").prepare(params, ctx, inputs, catalog)
    module, order, steps = prepared.module, prepared.order, prepared.module.steps
    counts = {"clips": len(prepared.clip_ids), **prepared.counts}
    parameters = sum(weight.numel() for weight in module.net.parameters())
    said = ", ".join(f"{count or 'no'} {what}" for what, count in counts.items())
    print(f"{ctx.name}: {said}, {parameters:,} parameters, {steps} steps of {order.batch_size * module.accumulate}", flush=True)
    columns = {"clip_id": "string", prepared.told: "string"}
    ctx.tracking.log_dataset("training clips", shards.digest(prepared.clip_ids), counts["clips"], catalog, "training", columns)

    every = prepared.draw_every
    callbacks = [Every(every, partial(_log_samples, ctx.tracking, prepared.draw_samples))] if every else []
    points, facts = fit_averaged(module, prepared.source, order, prepared.draw, params.hardware, ctx, callbacks)

    write_curve(points, curves)
    items = {f"training_{what}": count for what, count in counts.items() if what in ("clips", "mixes")}
    prepared.save(model, {"steps": steps, **items, "parameters": parameters, **facts})
    metrics = {"loss": points[-1]["loss"], "steps": steps, **counts, "parameters": parameters, "threads": params.hardware.threads}
    valid_loss = prepared.valid_loss()
    asked = {"label": [prepared.example], "seed": [0]}
    ctx.tracking.log_model(model, family, asked, np.zeros((1, prepared.num_samples), np.float32))
    ctx.show(f"the samples ({grid.name})", partial(_show_samples, ctx.tracking, prepared.draw_samples, steps, grid))
    return metrics if valid_loss is None else {**metrics, "valid_loss": valid_loss}


def _show_samples(tracking: Any, draw_samples: Callable[[int], Any], steps: int, grid: Path) -> None:
    figure = draw_samples(steps)
    figures.save_png(figure, grid)
    tracking.log_figure(figure, "samples/final")


def _log_samples(tracking: Any, draw_samples: Callable[[int], Any], module: TrainingModule, step: int) -> None:
    with told(f"samples after {step} steps"):
        with module.ema.applied(module.net):
            figure = draw_samples(step)
        tracking.log_figure(figure, f"samples/step-{step:07d}")
    module.to(module.device)
