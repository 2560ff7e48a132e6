"""Train any family: initial weights, checkpoint, loss curve and samples; the family supplies network, batches and loss."""

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from soundmill import hashing, terminal
from soundmill.audio import figures
from soundmill.audio.tags import CHANGED, GENERATED, SourceType
from soundmill.errors import UserError
from soundmill.models import registry
from soundmill.models.beside_base import prompts_of
from soundmill.models.family import JUDGE, Model, Prepared, Run, can, chosen_by, origin, use_weights
from soundmill.models.merging import write_whole
from soundmill.models.params import FamilyTrainParams
from soundmill.models.requests import describe
from soundmill.models.samples import Samples, sampling, show_last, show_losses
from soundmill.models.scoring import scoring
from soundmill.training import adapters
from soundmill.training.curve import write_curve
from soundmill.training.device import pick_device, use_threads
from soundmill.training.fitting import fit_averaged
from soundmill.training.starting import compare
from soundmill.training.trained_on import write_trained_on

LABELS = "labels.weight"  # label embeddings of a label-conditioned network, one row per label
CONDITIONS = {"labels": ["labels"], "caption": ["captions"], "none": []}  # columns of the catalog


def run(
    family: str,
    params: FamilyTrainParams,
    ctx: Any,
    inputs: Path,
    parts: Path,
    tagger: Path,
    clips: Path,
    catalog: Path,
    model: Path,
    curves: Path,
    grid: Path,
) -> dict[str, Any]:
    """Train a family; write the checkpoint directory, the loss curve (CSV) and the grid of samples (PNG). Returns metrics."""
    use_threads(params.hardware.threads)
    start = read_start(family, params, ctx.home)
    prepared = registry.family(family).prepare(params, ctx, inputs, parts, tagger, catalog, start and start.model)
    start_facts = start_weights(prepared, start, ctx.name) if start else {}
    if params.lora:
        prepared.module.adapt(params.lora, params.hardware)
    module, order, steps = prepared.module, prepared.order, prepared.module.steps
    counts = {"clips": len(prepared.clip_ids), **prepared.counts}
    parameters = sum(weight.numel() for weight in module.net.parameters())
    trained = sum(weight.numel() for weight in adapters.trained(module.net).values())
    contents = ", ".join(f"{count or 'no'} {what}" for what, count in counts.items())
    batch = order.batch_size * module.accumulate
    share = f" ({trained:,} of them trained, {trained / parameters:.2%})" if trained < parameters else ""
    terminal.say(f"{ctx.name}: {contents}, {parameters:,} parameters{share}, {steps} steps of {batch}")
    told = [*CONDITIONS[prepared.model.condition], *(["labels"] if prepared.model.labels else [])]
    columns = {"clip_id": "string", **dict.fromkeys(told, "string")}
    ctx.tracking.log_dataset("training clips", hashing.digest(prepared.clip_ids), counts["clips"], catalog, "training", columns)

    run = sampling_run(params, ctx)
    draw = partial(draw_samples, family, prepared, run)
    scored = scoring(params, ctx, prepared, run, tagger, clips, catalog)
    if scored and JUDGE in (*registry.family(family).trained_against, *getattr(prepared.model, "trained_against", ())):
        terminal.say(f"{ctx.name}: the model is trained against the tagger, so the tagger's scores flatter it")
    fitted = fit_averaged(
        module,
        prepared.source,
        order,
        prepared.draw,
        params.hardware,
        ctx,
        item_seconds=prepared.item_seconds,
        held_out=prepared.held_out,
        started_from=start and start.digest,
        sampling=sampling(params.samples_every_steps, ctx, draw),
        scoring=scored,
        patience=params.patience,
    )
    if module.steps < steps:
        terminal.say(f"{ctx.name}: ended at step {module.steps}: {params.patience} held-out losses in a row were not the lowest")
    steps = module.steps
    write_curve(fitted.points, curves)
    items = {f"training_{what}": count for what, count in counts.items() if what in ("clips", "mixes")}
    sizes = {"parameters": parameters, **({"trained_parameters": trained} if params.lora else {})}
    prepared.save(model, {"steps": steps, **items, **sizes, **prompts_of(prepared.samples), **start_facts, **fitted.facts})
    fitted.save(model)
    write_trained_on(model, catalog, prepared.clip_ids, prepared.mixes, start and Path(start.where))
    metrics = {**fitted.metrics, "steps": steps, **counts, **sizes, "threads": params.hardware.threads}
    fitted.load_into(module, params.use)
    if can(prepared.model, "generate"):
        example = {"label": [describe(prepared.samples[0])], "seed": [0]}
        shape = 1, prepared.model.channels, prepared.model.num_samples or prepared.model.sample_rate
        served = model
        if params.lora:
            served = ctx.scratch / "merged"
            shutil.rmtree(served, ignore_errors=True)
            write_whole(model, served)
        ctx.tracking.log_model(served, family, example, np.zeros(shape, np.float32))
    ctx.show("the curves", partial(show_losses, ctx, fitted.points))
    ctx.show(f"the samples ({grid.name})", partial(show_last, ctx, draw, steps, grid))
    return metrics


@dataclass(frozen=True)
class Start:
    """The checkpoint that a training starts from."""

    where: str
    model: Model
    digest: str
    weights: str  # description of the weights used
    chosen_by: list[str]  # embedders whose scores chose them


def read_start(family: str, params: FamilyTrainParams, home: Path) -> Start | None:
    """The checkpoint named by `start_from`, if any; UserError if its family or a `fixed` parameter differs."""
    if params.start_from is None:
        return None
    kind = registry.family(family)
    where = registry.start_of(family, params, home)
    if params.lora and not kind.adapted:
        raise UserError("lora: adapters cannot be trained in this family; set it to null")
    source_facts = origin(where)
    model = kind.load(where)
    compare(str(where), model.params.model_dump(), params.model_dump(), kind.fixed)
    use = model.params.use
    return Start(str(where), model, source_facts["checkpoint"], use_weights(model, where, use), chosen_by(where, use))


def start_weights(prepared: Prepared, start: Start, name: str) -> dict[str, Any]:
    """Initialise the network with the weights of `start`; new labels keep their random embeddings. Returns facts."""
    net, weights = prepared.module.net, dict(start.model.net.state_dict())
    old_labels, labels = start.model.labels, prepared.model.labels
    new = [label for label in labels if label not in old_labels]
    if new and prepared.model.params.lora:
        raise UserError(f"lora: {start.where} does not know the labels {', '.join(new)}, and adapters learn no new ones")
    if new:
        rows = net.state_dict()[LABELS].clone()
        if old_labels:
            rows[[labels.index(label) for label in old_labels]] = weights[LABELS]
        weights[LABELS] = rows
    terminal.say(f"{name}: starts from {start.weights} of {start.where}" + (f"; new labels: {', '.join(new)}" if new else ""))
    prepared.module.start_from(weights, start.where)
    chosen = {"chosen_by": start.chosen_by} if start.chosen_by else {}
    return {"started_from": {"checkpoint": start.digest, "weights": start.weights, "new_labels": new, **chosen}}


def sampling_run(params: FamilyTrainParams, ctx: Any) -> Run:
    """How the training samples its model."""
    hardware = params.hardware
    device = pick_device(hardware.accelerator)
    return Run(params.sampling, device, hardware.precision, params.items, ctx.home, ctx.scratch, ctx.digests)


def draw_samples(family: str, prepared: Prepared, run: Run, step: int) -> Samples:
    """Samples with the current weights after `step` steps; the seeds are the same every time."""
    model, samples = prepared.model, prepared.samples
    if can(model, "generate"):
        waves = model.generate(samples, run)
        titles = [describe(request) or f"sample {cell + 1}" for cell, request in enumerate(samples)]
        made: list[SourceType | None] = [GENERATED] * len(waves)
    else:
        pairs = zip(samples, model.reconstruct(samples, run), strict=True)
        waves = [wave for pair in pairs for wave in pair]
        titles, made = ["real", "reconstructed"] * len(samples), [None, CHANGED] * len(samples)
    sounds = [(wave.numpy(), model.sample_rate) for wave in waves]
    figure = figures.draw_waves(sounds, titles, prepared.columns, f"{family}: samples after {step} steps")
    return Samples(figure, titles, sounds, made)
