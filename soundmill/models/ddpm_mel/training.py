"""Train the family on the spectrograms of the training split."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from soundmill import params as strict
from soundmill import terminal
from soundmill.audio import mel
from soundmill.audio.log_mels import read_spec
from soundmill.diffusion.paths import Discrete, discrete, scheduled_loss
from soundmill.models.components import registry
from soundmill.models.components.log_mels.source import Crops, gather_log_mels
from soundmill.models.ddpm_mel import model as models
from soundmill.models.ddpm_mel.model import FAMILY, DdpmMel
from soundmill.models.ddpm_mel.params import TrainParams
from soundmill.models.ddpm_mel.picture import PictureCodec
from soundmill.models.family import Prepared, Rehearsal
from soundmill.models.labels import Labelled
from soundmill.models.params import read_sections
from soundmill.models.preparing import Clips, rehearsal
from soundmill.training.loader import Batch, Source
from soundmill.training.module import TrainingModule
from soundmill.training.seeds import seed_of
from soundmill.training.starting import compare

AT_ONCE = 32  # clips per batch when measuring levels and constants


class Draws(NamedTuple):
    """Random draws for a step's whole batch, independent of the number of ranks."""

    places: Tensor  # [B] relative start of the crop, in [0, 1)
    shifts: Tensor  # [B] frames rolled
    gains: Tensor  # [B, 1, 1] dB
    kept: Tensor  # [B, 1] whether the label is kept
    times: Tensor  # [B] shares of the path


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
    return Draws(places, shifts, gains, kept, time)


def crop_places(params: TrainParams, frames: int, step: int) -> Tensor:
    return draws(params, frames, step).places


class DdpmModule(TrainingModule):
    """A batch: clips, augmented by rotation and gain, encoded as pictures, noised, and denoised by the network."""

    def __init__(self, params: TrainParams, model: DdpmMel, steps: int):
        super().__init__(model.net, params, steps)
        self.model = model
        self.register_buffer("table", discrete(params.diffusion).table, persistent=False)
        self.picture = model.picture

    def loss(self, step: int, batch: Batch) -> Tensor:
        params, diffusion = self.params, self.params.diffusion
        draw = Draws(*map(self.share, draws(params, self.picture.frames, step)))
        log_mel, label_weights = batch.values
        condition = label_weights * draw.kept.to(self.device, non_blocking=True)
        path = Discrete(self.table, diffusion.objective, diffusion.first_timestep)
        t = path.times(draw.times).to(self.device, non_blocking=True)

        with torch.autocast(self.device.type, enabled=False):
            x0 = self.picture.encode(self._augment(log_mel.float(), draw))[0]
        if params.network.channels_last:
            x0 = x0.contiguous(memory_format=torch.channels_last)
        noise = self.noise_like(x0, self.rng("noise", step))
        importance = self.picture.importance() if diffusion.errors_in == "picture" else 1.0
        return scheduled_loss(path, diffusion, lambda xt, t: self.net(xt, t, condition), x0, t, noise, importance)

    def _augment(self, log_mel: Tensor, draw: Draws) -> Tensor:
        """log_mel [b, n_mels, frames], rotated in time and with a random gain."""
        if self.params.augmentation.time_roll:
            log_mel = torch.stack([one.roll(shift, dims=1) for one, shift in zip(log_mel, draw.shifts.tolist(), strict=True)])
        louder = log_mel + draw.gains.to(log_mel, non_blocking=True) * (math.log(10) / 20 * self.model.spec.power)
        return louder.clamp_min(self.picture.silence)


def prepare(params: TrainParams, ctx: Any, mels: Path, parts: Path, catalog: Path, start: DdpmMel | None) -> Prepared:
    """A training that starts from another keeps its labels and the standardisation of its pictures."""
    known = Clips.read(params, ctx, catalog)
    text = None
    if params.by_caption:
        text = known.read_texts(parts / "text", params.text_width, f"set {FAMILY}.train.text_width to null")
    elif params.conditional:
        known.know_labels(start)
        if not known.labels:
            terminal.say("no training clip has a label: the model will be unconditional")
    spec = read_spec(mels)
    if start:
        compare(params.start_from, {"mel_spec": start.spec.model_dump()}, {"mel_spec": spec.model_dump()})
    picture, train = PictureCodec(params.picture, spec), list(known.train)
    log_mels = gather_log_mels(mels, train, ctx.scratch)

    def beginnings() -> Iterator[Tensor]:
        """log_mel [B, n_mels, frames] of all training clips in order, from the start of each, padded with silence."""
        for first in range(0, len(train), AT_ONCE):
            items = range(first, min(first + AT_ONCE, len(train)))
            yield log_mels.crops(items, [0.0] * len(items), picture.frames, picture.silence).float()

    def source_of(clip_ids: Sequence[str]) -> Source:
        crops = Crops(gather_log_mels(mels, clip_ids, ctx.scratch), picture.frames, picture.silence)
        return known.told(crops, clip_ids) if text else Labelled(crops, known.label_weights(clip_ids))

    if start:
        picture.load_state_dict(start.picture.state_dict())
    else:
        picture.fit(beginnings())

    torch.manual_seed(params.seed)
    net = models.build_net(params, len(known.labels))
    levels = torch.cat([picture.level(batch) for batch in beginnings()])
    if params.picture.level == "absolute":
        levels, level_labels = levels[:1].clone(), torch.zeros(1, params.text_width or len(known.labels))
    else:
        level_labels = known.caption_vectors(train) if text else known.label_weights(train)
    vocoder = registry.vocoder_in(parts, spec)
    model = DdpmMel(params, spec, known.labels, net, picture, levels, level_labels, vocoder, text, known.texts)
    module = DdpmModule(params, model, known.steps)
    seconds, save = picture.frames * spec.hop_length / spec.sample_rate, partial(models.save, model, parts)
    counts = {"captions": len(known.captions)} if text else {"labels": len(known.labels)}
    draw = known.drawing(partial(crop_places, params, picture.frames))
    return known.prepared(module, model, source_of, draw, seconds, save, counts)


def rehearse(document: dict[str, Any], num_labels: int) -> Rehearsal:
    """See models/family.py."""
    params, _, sampling = read_sections(document, FAMILY, TrainParams)
    spec = strict.parse_section(document, f"spectrogram.{FAMILY}", mel.SpectrogramParams).spec
    picture = PictureCodec(params.picture, spec)
    labels = [str(number) for number in range(num_labels)] if params.conditional else []
    net = models.build_net(params, len(labels))
    model = DdpmMel(params, spec, labels, net, picture, torch.zeros(1), torch.zeros(1, len(labels)))
    module = DdpmModule(params, model, steps=1)

    def values(rng: torch.Generator) -> tuple[Tensor, Tensor]:
        noise = torch.randn(params.batch_size, spec.n_mels, picture.frames, generator=rng)
        return noise, torch.zeros(params.batch_size, params.text_width or len(labels))

    guided = sampling.guidance_scale != 1 and bool(labels or params.text_width)
    passes = sampling.num_steps * (1 + guided)
    return rehearsal(module, params.batch_size, values, params.batch_size, passes)
