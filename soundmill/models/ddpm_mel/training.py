"""Train the family on the spectrograms of the training split."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from soundmill import manifest, shards, terminal
from soundmill import params as strict
from soundmill.audio import mel
from soundmill.audio.log_mels import read_spec
from soundmill.diffusion.objectives import training_loss
from soundmill.diffusion.schedules import alpha_bar
from soundmill.models.catalog import choose_by_hash, no_training_clip
from soundmill.models.components import registry
from soundmill.models.components.log_mels.source import Crops, LogMels, gather_log_mels
from soundmill.models.ddpm_mel import model as models
from soundmill.models.ddpm_mel.model import FAMILY, DdpmMel
from soundmill.models.ddpm_mel.params import TrainParams
from soundmill.models.ddpm_mel.picture import PictureCodec
from soundmill.models.family import Prepared, Rehearsal
from soundmill.models.labels import Labelled, label_weights
from soundmill.models.params import read_sections
from soundmill.models.requests import of_grid
from soundmill.training.loader import Batch, Order
from soundmill.training.module import TrainingModule
from soundmill.training.seeds import seed_of
from soundmill.training.starting import compare
from soundmill.training.validation import HeldOut

AT_ONCE = 32  # clips per batch when measuring levels and constants


@dataclass
class Clips:
    """Clips of one split in stable order: spectrograms, label weights [N, num_labels], and the length of a picture."""

    log_mels: LogMels
    label_weights: Tensor
    frames: int
    silence: float

    def __len__(self) -> int:
        return len(self.log_mels)

    def source(self) -> Labelled:
        return Labelled(Crops(self.log_mels, self.frames, self.silence), self.label_weights)

    def beginnings(self, size: int) -> Iterator[Tensor]:
        """log_mel [B, n_mels, frames] of all clips in order, from the start of each clip."""
        for first in range(0, len(self), size):
            items = range(first, min(first + size, len(self)))
            yield self.log_mels.crops(items, [0.0] * len(items), self.frames, self.silence).float()


def read_catalog(catalog: Path, split: str) -> tuple[dict[str, list[str]], dict[str, float]]:
    """Labels and weight by clip id of one split, sorted by id."""
    table = shards.read_table(catalog, manifest.CATALOG, ["clip_id", "split", "labels", "weight"])
    rows = sorted((row for row in table.to_pylist() if row["split"] == split), key=lambda row: row["clip_id"])
    labels = {row["clip_id"]: sorted(set(row["labels"] or [])) for row in rows}
    return labels, {row["clip_id"]: row["weight"] for row in rows}


def read_clips(
    mels: Path, clip_labels: dict[str, list[str]], label_names: list[str], picture: PictureCodec, scratch: Path
) -> Clips:
    """Spectrograms of the clips, padded with silence or cropped to the length of a picture."""
    weights = [label_weights(labels, label_names) for labels in clip_labels.values()]
    log_mels = gather_log_mels(mels, list(clip_labels), scratch)
    return Clips(log_mels, torch.stack(weights), picture.frames, picture.silence)


class Draws(NamedTuple):
    """Random draws for a step's whole batch, independent of the number of ranks."""

    places: Tensor  # [B] relative start of the crop, in [0, 1)
    shifts: Tensor  # [B] frames rolled
    gains: Tensor  # [B, 1, 1] dB
    kept: Tensor  # [B, 1] whether the label is kept
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
    """A batch: clips, augmented by rotation and gain, encoded as pictures, noised, and denoised by the network."""

    def __init__(self, params: TrainParams, model: DdpmMel, steps: int):
        super().__init__(model.net, params, steps)
        self.model = model
        self.register_buffer("table", alpha_bar(params.diffusion), persistent=False)
        self.picture = model.picture

    def loss(self, step: int, batch: Batch) -> Tensor:
        params, diffusion = self.params, self.params.diffusion
        draw = Draws(*map(self.share, draws(params, self.picture.frames, step)))
        log_mel, label_weights = batch.values
        condition = label_weights * draw.kept.to(self.device, non_blocking=True)
        t = draw.timesteps.to(self.device, non_blocking=True)

        with torch.autocast(self.device.type, enabled=False):
            x0 = self.picture.encode(self._augment(log_mel.float(), draw))[0]
        if params.network.channels_last:
            x0 = x0.contiguous(memory_format=torch.channels_last)
        noise = self.noise_like(x0, self.rng("noise", step))
        importance = self.picture.importance() if diffusion.errors_in == "picture" else 1.0
        predict = partial(_predict, self.net, condition)
        return training_loss(predict, diffusion, self.table, x0, t, noise, importance)

    def _augment(self, log_mel: Tensor, draw: Draws) -> Tensor:
        """log_mel [b, n_mels, frames], rotated in time and with a random gain."""
        if self.params.augmentation.time_roll:
            log_mel = torch.stack([one.roll(shift, dims=1) for one, shift in zip(log_mel, draw.shifts.tolist(), strict=True)])
        louder = log_mel + draw.gains.to(log_mel, non_blocking=True) * (math.log(10) / 20 * self.model.spec.power)
        return louder.clamp_min(self.picture.silence)


def prepare(params: TrainParams, ctx: Any, mels: Path, parts: Path, catalog: Path, start: DdpmMel | None) -> Prepared:
    """A training that starts from another keeps its labels and the standardisation of its pictures."""
    clip_labels, weights = read_catalog(catalog, "train")
    if not clip_labels:
        raise no_training_clip(catalog)
    start_labels = start.labels if start else []
    labels = [*start_labels, *(label for label in _labels(clip_labels, params.conditional) if label not in start_labels)]
    spec = read_spec(mels)
    if start:
        compare(params.start_from, {"mel_spec": start.spec.model_dump()}, {"mel_spec": spec.model_dump()})
    picture = PictureCodec(params.picture, spec)
    clips = read_clips(mels, clip_labels, labels, picture, ctx.scratch)
    order = Order(params.seed, weights, params.batch_size)
    if start:
        picture.load_state_dict(start.picture.state_dict())
    else:
        picture.fit(clips.beginnings(AT_ONCE))

    torch.manual_seed(params.seed)
    net = models.build_net(params, len(labels))
    levels = torch.cat([picture.level(batch) for batch in clips.beginnings(AT_ONCE)])
    level_labels = clips.label_weights
    if params.picture.level == "absolute":
        levels, level_labels = levels[:1].clone(), torch.zeros(1, len(labels))
    model = DdpmMel(params, spec, labels, net, picture, levels, level_labels, registry.vocoder_in(parts, spec))
    module = DdpmModule(params, model, params.steps or order.steps(params.epochs))
    return Prepared(
        module,
        model,
        clips.source(),
        order,
        partial(crop_places, params, clips.frames),
        clips.frames * spec.hop_length / spec.sample_rate,
        clip_ids=list(clip_labels),
        counts={"labels": len(labels)},
        samples=of_grid(params.grid, params.seed, labels),
        columns=params.grid.columns,
        held_out=_held_out(params, mels, catalog, labels, picture, ctx.scratch),
        save=partial(models.save, model, parts),
    )


def _labels(clip_labels: dict[str, list[str]], conditional: bool) -> list[str]:
    if not conditional:
        return []
    labels = sorted({label for of_clip in clip_labels.values() for label in of_clip})
    if not labels:
        terminal.say("no training clip has a label: the model will be unconditional")
    return labels


def _held_out(
    params: TrainParams, mels: Path, catalog: Path, labels: list[str], picture: PictureCodec, scratch: Path
) -> HeldOut | None:
    clip_labels, _ = read_catalog(catalog, "valid")
    chosen = choose_by_hash(list(clip_labels), params.validate_batches * params.batch_size)
    if not chosen:
        return None
    held_out = read_clips(mels, {clip_id: clip_labels[clip_id] for clip_id in chosen}, labels, picture, scratch)
    return HeldOut(held_out.source(), len(held_out))


def _predict(net: torch.nn.Module, condition: Tensor, xt: Tensor, t: Tensor) -> Tensor:
    return net(xt, t, condition)


def rehearse(document: dict[str, Any], num_labels: int) -> Rehearsal:
    """See models/family.py."""
    params, _, sampling = read_sections(document, FAMILY, TrainParams)
    spec = strict.parse_section(document, f"spectrogram.{FAMILY}", mel.SpectrogramParams).spec
    picture = PictureCodec(params.picture, spec)
    labels = [str(number) for number in range(num_labels)] if params.conditional else []
    net = models.build_net(params, len(labels))
    model = DdpmMel(params, spec, labels, net, picture, torch.zeros(1), torch.zeros(1, len(labels)))
    module = DdpmModule(params, model, steps=1)

    def batch(step: int) -> Batch:
        noise = torch.randn(params.batch_size, spec.n_mels, picture.frames, generator=torch.Generator().manual_seed(step))
        return Batch(step, np.zeros(params.batch_size, np.int64), (noise, torch.zeros(params.batch_size, len(labels))))

    passes = sampling.num_steps * (1 if sampling.guidance_scale == 1 or not labels else 2)
    return Rehearsal(module, batch, clips=params.batch_size, passes=passes)
