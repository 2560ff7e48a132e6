"""Train the family on the training split's spectrograms: noise in, pictures out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from soundmill import manifest, shards
from soundmill.audio import mel
from soundmill.diffusion.objectives import per_item_loss, weighted_loss
from soundmill.errors import UserError
from soundmill.models.ddpm_mel import checkpoint, figures
from soundmill.models.ddpm_mel.checkpoint import FAMILY, Model
from soundmill.models.ddpm_mel.params import TrainParams
from soundmill.models.ddpm_mel.picture import PictureCodec
from soundmill.models.ddpm_mel.sample import autocast, evaluating, pick_device, sample_log_mels
from soundmill.training.callbacks import Curve, Every, write_curve
from soundmill.training.module import TrainingModule, fit, order, seed_of, share, use_threads

VALID_ROUNDS = 4  # noises per held-out clip in the final loss
VALID_BATCH = 32


@dataclass
class Clips:
    """Spectrograms [n_mels, at least `frames`] of one split in stable order, with label weights [N, num_labels]."""

    log_mels: list[np.ndarray]
    weights: Tensor
    frames: int

    def __len__(self) -> int:
        return len(self.log_mels)

    def batch(self, items: list[int], starts: list[int]) -> Tensor:
        """log_mel [B, n_mels, frames], float32: `frames` of each item from its start."""
        cut = [self.log_mels[item][:, start : start + self.frames] for item, start in zip(items, starts, strict=True)]
        return torch.from_numpy(np.stack(cut).astype(np.float32))

    def beginnings(self, size: int) -> Iterator[Tensor]:
        for first in range(0, len(self), size):
            items = list(range(first, min(first + size, len(self))))
            yield self.batch(items, [0] * len(items))


def read_catalog(catalog: Path, split: str) -> dict[str, list[str]]:
    """Labels by clip id of one split, sorted by id."""
    table = shards.read_table(catalog, manifest.CATALOG, ["clip_id", "split", "labels"])
    rows = [row for row in table.to_pylist() if row["split"] == split]
    return {row["clip_id"]: sorted(set(row["labels"] or [])) for row in sorted(rows, key=lambda row: row["clip_id"])}


def read_clips(mels: Path, clip_labels: dict[str, list[str]], known: list[str], picture: PictureCodec) -> Clips:
    """Spectrograms of the clips named; a shorter one than a picture is followed by silence, a longer one is cropped later."""
    found = {clip_id: values for clip_id, values in mel.iterate_log_mels(mels) if clip_id in clip_labels}
    missing = sorted(set(clip_labels) - set(found))
    if missing:
        raise UserError(f"{mels}: no spectrogram of {len(missing)} clips, the first {missing[0]!r}; remake it: `dvc repro`")
    log_mels = []
    for clip_id in clip_labels:
        values = found[clip_id]
        short = max(0, picture.frames - values.shape[1])
        log_mels.append(np.pad(values, ((0, 0), (0, short)), constant_values=picture.silence))
    weights = [checkpoint.label_weights(labels, known) for labels in clip_labels.values()]
    return Clips(log_mels, torch.stack(weights) if weights else torch.zeros(0, len(known)), picture.frames)


class DdpmModule(TrainingModule):
    """A step: clips of the step's number, rolled, made louder or softer, put as pictures, noised, predicted."""

    def __init__(self, params: TrainParams, model: Model, clips: Clips, steps: int):
        super().__init__(model.net, params.optimiser, params.ema, steps, params.seed)
        self.params, self.model, self.clips = params, model, clips
        self.table = model.alpha_bar()
        self.picture = model.picture

    def loss(self, step: int) -> Tensor:
        params, diffusion = self.params, self.params.diffusion
        items = share(order(params.seed, step, params.batch_size, len(self.clips)), self.global_rank, self.trainer.world_size)
        draw = torch.Generator().manual_seed(seed_of(params.seed, self.global_rank, "clip", step))
        log_mel = self._augment(items.tolist(), draw).to(self.device)
        condition = self.clips.weights[items] * (torch.rand(len(items), 1, generator=draw) >= params.augmentation.label_dropout)
        t = self._timesteps(len(items), draw).to(self.device)

        with torch.autocast(self.device.type, enabled=False):
            x0 = self.picture.encode(log_mel)[0]
        if params.network.channels_last:
            x0 = x0.contiguous(memory_format=torch.channels_last)
        noise = torch.empty_like(x0).normal_(generator=self.rng("noise", step))
        condition = condition.to(self.device)
        importance = self.picture.importance() if diffusion.errors_in == "picture" else 1.0
        answer = partial(_answer, self.net, condition)
        losses = per_item_loss(answer, diffusion.objective, self.table, x0, t, noise, importance)
        return weighted_loss(losses, diffusion.objective, diffusion.weighting, diffusion.min_snr_gamma, self.table, t)

    def _augment(self, items: list[int], draw: torch.Generator) -> Tensor:
        """log_mel [B, n_mels, frames], cropped where longer, rotated in time, with another gain."""
        frames, augmentation = self.clips.frames, self.params.augmentation
        room = [self.clips.log_mels[item].shape[1] - frames + 1 for item in items]
        starts = (torch.rand(len(items), generator=draw) * torch.tensor(room)).long().tolist()
        log_mel = self.clips.batch(items, starts)
        shifts = torch.randint(frames, (len(items),), generator=draw).tolist()
        gains = (2 * torch.rand(len(items), 1, 1, generator=draw) - 1) * augmentation.gain_db
        if augmentation.time_roll:
            log_mel = torch.stack([one.roll(shift, dims=1) for one, shift in zip(log_mel, shifts, strict=True)])
        louder = log_mel + gains * (math.log(10) / 20 * self.model.spec.power)
        return louder.clamp_min(self.picture.silence)

    def _timesteps(self, count: int, draw: torch.Generator) -> Tensor:
        diffusion = self.params.diffusion
        if diffusion.stratified:
            place = (torch.arange(count) + torch.rand((), generator=draw)) / count
        else:
            place = torch.rand(count, generator=draw)
        span = diffusion.num_timesteps - diffusion.first_timestep
        return diffusion.first_timestep + (place * span).long().clamp(max=span - 1)


def train(params: TrainParams, ctx: Any, mels: Path, catalog: Path, model_out: Path, curves: Path, grid: Path) -> dict[str, Any]:
    """Train and write the checkpoint directory, the curve (CSV) and a grid of samples (PNG); returns metrics."""
    use_threads(params.hardware.threads)
    clip_labels = read_catalog(catalog, "train")
    if not clip_labels:
        raise UserError(f"{catalog}: no clip of the training split; check `rename`'s fractions and the corpus's own splits")
    labels = _labels(clip_labels, params.conditional)
    spec = mel.read_spec(mels)
    picture = PictureCodec(params.picture, spec)
    clips = read_clips(mels, clip_labels, labels, picture)
    steps = params.steps or math.ceil(params.epochs * len(clips) / params.batch_size)
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
        torch.zeros(1, len(labels)) if one_level else clips.weights,
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
    module = DdpmModule(params, model, clips, steps)
    # Other processes train when there are several devices, and tracking stays in this one.
    alone = params.hardware.devices == 1
    curve = Curve(params.log_every_steps, ctx.tracking.log_curve if alone else None)
    samples = []
    if alone and params.grid.every_epochs is not None:
        every = max(1, math.ceil(params.grid.every_epochs * len(clips) / params.batch_size))
        samples.append(Every(every, partial(_log_grid, ctx.tracking)))
    facts = fit(
        module,
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
    held_out = read_catalog(catalog, "valid")
    if held_out:
        metrics["valid_loss"] = valid_loss(module, read_clips(mels, held_out, labels, picture))
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
        for first, log_mel in list(enumerate(clips.beginnings(VALID_BATCH))) * VALID_ROUNDS:
            x0 = picture.encode(log_mel)[0]
            noise = torch.randn(x0.shape, generator=rng)
            span = len(table) - params.diffusion.first_timestep
            t = params.diffusion.first_timestep + (torch.rand(len(x0), generator=rng) * span).long()
            condition = clips.weights[first * VALID_BATCH :][: len(x0)].to(device)
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
