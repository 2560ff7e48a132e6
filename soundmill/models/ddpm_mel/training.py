"""Train the family on the training split's spectrograms: noise in, pictures out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from soundmill import manifest, shards
from soundmill.audio import figures, mel
from soundmill.diffusion.objectives import per_item_loss, weighted_loss
from soundmill.errors import UserError
from soundmill.models.ddpm_mel import checkpoint
from soundmill.models.ddpm_mel.checkpoint import FAMILY, Model
from soundmill.models.ddpm_mel.params import TrainParams
from soundmill.models.ddpm_mel.picture import PictureCodec
from soundmill.models.ddpm_mel.sample import sample_log_mels
from soundmill.training.callbacks import Curve, Every, write_curve
from soundmill.training.device import autocast, evaluating, pick_device
from soundmill.training.loader import Batch, Crops, Loader, LogMels, Order, gather_log_mels, share
from soundmill.training.module import TrainingModule, fit, use_threads
from soundmill.training.seeds import seed_of

VALID_ROUNDS = 4  # noises per held-out clip in the final loss
VALID_BATCH = 32


@dataclass
class Clips:
    """Clips of one split in stable order: spectrograms, label weights [N, num_labels], and how a picture is cut from one."""

    log_mels: LogMels
    label_weights: Tensor
    frames: int
    silence: float

    def __len__(self) -> int:
        return len(self.log_mels)

    def beginnings(self, size: int) -> Iterator[Tensor]:
        """log_mel [B, n_mels, frames] of all clips in order, from their beginnings."""
        for first in range(0, len(self), size):
            items = range(first, min(first + size, len(self)))
            yield self.log_mels.crops(items, [0.0] * len(items), self.frames, self.silence).float()


def read_catalog(catalog: Path, split: str) -> tuple[dict[str, list[str]], dict[str, float]]:
    """Labels and weight by clip id of one split, sorted by id."""
    table = shards.read_table(catalog, manifest.CATALOG, ["clip_id", "split", "labels", "weight"])
    rows = sorted((row for row in table.to_pylist() if row["split"] == split), key=lambda row: row["clip_id"])
    labels = {row["clip_id"]: sorted(set(row["labels"] or [])) for row in rows}
    return labels, {row["clip_id"]: row["weight"] for row in rows}


def read_clips(mels: Path, clip_labels: dict[str, list[str]], known: list[str], picture: PictureCodec, scratch: Path) -> Clips:
    """Spectrograms of the clips named; a shorter one than a picture is followed by silence, a longer one is cropped."""
    weights = [checkpoint.label_weights(labels, known) for labels in clip_labels.values()]
    log_mels = gather_log_mels(mels, list(clip_labels), scratch)
    return Clips(log_mels, torch.stack(weights), picture.frames, picture.silence)


class Draws(NamedTuple):
    """What chance decides of a step's whole batch, whichever rank an item goes to."""

    places: Tensor  # [B] of the crop, in [0, 1)
    shifts: Tensor  # [B] frames rolled
    gains: Tensor  # [B, 1, 1] dB
    kept: Tensor  # [B, 1] whether the label is
    timesteps: Tensor  # [B]


def draws(params: TrainParams, frames: int, step: int) -> Draws:
    rng = torch.Generator().manual_seed(seed_of(params.seed, 0, "clip", step))
    count, augmentation, diffusion = params.batch_size, params.augmentation, params.diffusion
    places = torch.rand(count, generator=rng)
    shifts = torch.randint(frames, (count,), generator=rng)
    gains = (2 * torch.rand(count, 1, 1, generator=rng) - 1) * augmentation.gain_db
    kept = torch.rand(count, 1, generator=rng) >= augmentation.label_dropout
    if diffusion.stratified:
        time = (torch.arange(count) + torch.rand((), generator=rng)) / count
    else:
        time = torch.rand(count, generator=rng)
    span = diffusion.num_timesteps - diffusion.first_timestep
    return Draws(places, shifts, gains, kept, diffusion.first_timestep + (time * span).long().clamp(max=span - 1))


def crop_places(params: TrainParams, frames: int, step: int) -> Tensor:
    return draws(params, frames, step).places


class DdpmModule(TrainingModule):
    """A step: its clips, rolled, made louder or softer, put as pictures, noised, predicted."""

    def __init__(self, params: TrainParams, model: Model, label_weights: Tensor, steps: int):
        super().__init__(model.net, params.optimiser, params.ema, steps, params.seed)
        self.params, self.model, self.label_weights = params, model, label_weights
        self.table = model.alpha_bar()
        self.picture = model.picture

    def loss(self, step: int, batch: Batch) -> Tensor:
        params, diffusion = self.params, self.params.diffusion
        mine = Draws(
            *(share(drawn, self.global_rank, self.trainer.world_size) for drawn in draws(params, self.picture.frames, step))
        )
        condition = (self.label_weights[batch.items] * mine.kept).to(self.device)
        t = mine.timesteps.to(self.device)

        with torch.autocast(self.device.type, enabled=False):
            x0 = self.picture.encode(self._augment(batch.values[0].float(), mine))[0]
        if params.network.channels_last:
            x0 = x0.contiguous(memory_format=torch.channels_last)
        noise = torch.empty_like(x0).normal_(generator=self.rng("noise", step))
        importance = self.picture.importance() if diffusion.errors_in == "picture" else 1.0
        answer = partial(_answer, self.net, condition)
        losses = per_item_loss(answer, diffusion.objective, self.table, x0, t, noise, importance)
        return weighted_loss(losses, diffusion.objective, diffusion.weighting, diffusion.min_snr_gamma, self.table, t)

    def _augment(self, log_mel: Tensor, mine: Draws) -> Tensor:
        """log_mel [b, n_mels, frames], rotated in time, with another gain."""
        if self.params.augmentation.time_roll:
            log_mel = torch.stack([one.roll(shift, dims=1) for one, shift in zip(log_mel, mine.shifts.tolist(), strict=True)])
        louder = log_mel + mine.gains.to(log_mel) * (math.log(10) / 20 * self.model.spec.power)
        return louder.clamp_min(self.picture.silence)


def train(params: TrainParams, ctx: Any, mels: Path, catalog: Path, model_out: Path, curves: Path, grid: Path) -> dict[str, Any]:
    """Train and write the checkpoint directory, the curve (CSV) and a grid of samples (PNG); returns metrics."""
    use_threads(params.hardware.threads)
    clip_labels, weights = read_catalog(catalog, "train")
    if not clip_labels:
        raise UserError(f"{catalog}: no clip of the training split; check `rename`'s fractions and the corpus's own splits")
    labels = _labels(clip_labels, params.conditional)
    spec = mel.read_spec(mels)
    picture = PictureCodec(params.picture, spec)
    clips = read_clips(mels, clip_labels, labels, picture, ctx.scratch)
    order = Order(params.seed, weights, params.batch_size)
    steps = params.steps or order.steps(params.epochs)
    picture.fit(clips.beginnings(VALID_BATCH))

    torch.manual_seed(params.seed)
    net = checkpoint.build_net(params, len(labels))
    levels = torch.cat([picture.level(batch) for batch in clips.beginnings(VALID_BATCH)])
    one_level = params.picture.level == "absolute"
    model = Model(
        params,
        spec,
        labels,
        net,
        picture,
        levels[:1].clone() if one_level else levels,
        torch.zeros(1, len(labels)) if one_level else clips.label_weights,
    )
    parameters = sum(weight.numel() for weight in net.parameters())
    print(
        f"{ctx.name}: {len(clips)} clips, {len(labels) or 'no'} labels, {parameters:,} parameters on {picture.shape} pictures, "
        f"{steps} steps of {params.batch_size}",
        flush=True,
    )

    ctx.tracking.log_dataset(
        "training clips", shards.digest(clip_labels), len(clips), catalog, "training", {"clip_id": "string", "labels": "string"}
    )
    module = DdpmModule(params, model, clips.label_weights, steps)
    on_gpu = pick_device(params.hardware.accelerator).type != "cpu"
    loader = Loader(
        Crops(clips.log_mels, clips.frames, clips.silence),
        order,
        partial(crop_places, params, clips.frames),
        steps=steps,
        # On CPU the net has all cores, and reading a batch takes a thousandth of its step.
        workers=max(1, ctx.workers // params.hardware.devices) if on_gpu else 0,
        pinned=on_gpu,
    )
    # Other processes train when there are several devices, and tracking stays in this one.
    alone = params.hardware.devices == 1
    curve = Curve(params.log_every_steps, ctx.tracking.log_curve if alone else None)
    samples = []
    if alone and params.grid.every_epochs is not None:
        every = order.steps(params.grid.every_epochs)
        samples.append(Every(every, partial(_log_grid, ctx.tracking)))
    facts = fit(
        module,
        loader,
        hardware=params.hardware,
        scratch=ctx.scratch / "training",
        label=ctx.name,
        log_every=params.log_every_steps,
        checkpoint_seconds=params.checkpoint_seconds,
        curve=curve,
        callbacks=samples,
    )
    if not alone:
        for point in curve.points:
            ctx.tracking.log_curve({key: value for key, value in point.items() if key != "step"}, int(point["step"]))
    module.ema.copy_to(net)

    write_curve(curve.points, curves)
    figure = draw_samples(model, steps)
    figures.save_png(figure, grid)
    ctx.tracking.log_figure(figure, "samples/final")
    checkpoint.save(model, model_out, {"steps": steps, "training_clips": len(clips), "parameters": parameters, **facts})
    metrics = {
        "loss": curve.points[-1]["loss"],
        "steps": steps,
        "clips": len(clips),
        "labels": len(labels),
        "parameters": parameters,
        "threads": params.hardware.threads,
    }
    held_out, _ = read_catalog(catalog, "valid")
    if held_out:
        metrics["valid_loss"] = valid_loss(module, read_clips(mels, held_out, labels, picture, ctx.scratch))
    _log_model(ctx, model, model_out)
    return metrics


def _labels(clip_labels: dict[str, list[str]], conditional: bool) -> list[str]:
    if not conditional:
        return []
    labels = sorted({label for of_clip in clip_labels.values() for label in of_clip})
    if not labels:
        print("no training clip has a label: the model will be unconditional")
    return labels


def valid_loss(module: DdpmModule, clips: Clips) -> float:
    """Mean unweighted error of the averaged net on held-out clips, at timesteps and with noise that are always the same."""
    params, table, picture = module.params, module.table, module.picture.cpu()
    device = pick_device(params.hardware.accelerator)
    net = module.net.to(device)
    rng = torch.Generator().manual_seed(seed_of(params.seed, "valid"))
    losses = []
    with torch.no_grad(), evaluating(net), autocast(device, params.hardware.precision):
        for first, log_mel in chain.from_iterable(enumerate(clips.beginnings(VALID_BATCH)) for _ in range(VALID_ROUNDS)):
            x0 = picture.encode(log_mel)[0]
            noise = torch.randn(x0.shape, generator=rng)
            span = len(table) - params.diffusion.first_timestep
            t = params.diffusion.first_timestep + (torch.rand(len(x0), generator=rng) * span).long()
            condition = clips.label_weights[first * VALID_BATCH :][: len(x0)].to(device)
            answer = partial(_answer, net, condition)
            losses.append(per_item_loss(answer, params.diffusion.objective, table, x0.to(device), t.to(device), noise.to(device)))
    return float(torch.cat(losses).mean())


def _answer(net: torch.nn.Module, condition: Tensor, xt: Tensor, t: Tensor) -> Tensor:
    return net(xt, t, condition)


def draw_samples(model: Model, step: int) -> Any:
    """A figure of rows × columns samples, the labels in turn."""
    params = model.params
    count = params.grid.rows * params.grid.columns
    asked = [[model.labels[cell % len(model.labels)]] if model.labels else [] for cell in range(count)]
    log_mels = sample_log_mels(
        model,
        torch.stack([model.condition(labels) for labels in asked]),
        [seed_of(params.seed, "grid", cell) for cell in range(count)],
        params.sampling,
        device=pick_device(params.hardware.accelerator),
        precision=params.hardware.precision,
        batch_size=params.batch_size,
    )
    titles = [", ".join(labels) or f"sample {cell + 1}" for cell, labels in enumerate(asked)]
    heading = f"{FAMILY}: samples after {step} steps"
    return figures.draw_log_mels(log_mels.numpy(), titles, model.spec, params.grid.columns, heading)


def _log_grid(tracking: Any, module: DdpmModule, step: int) -> None:
    with module.ema.applied(module.net):
        figure = draw_samples(module.model, step)
    module.to(module.device)
    tracking.log_figure(figure, f"samples/step-{step:07d}")


def _log_model(ctx: Any, model: Model, directory: Path) -> None:
    """Hand the checkpoint to tracking, with an example of what the model takes and gives."""
    inputs = {"label": [model.labels[0] if model.labels else ""], "seed": [0]}
    waves = np.zeros((1, model.picture.num_samples), dtype=np.float32)
    ctx.tracking.log_model(directory, FAMILY, inputs, waves)
