"""Train the family on the spectrograms of the training split."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from soundmill import params as strict
from soundmill import terminal
from soundmill.audio import mel
from soundmill.audio.log_mels import read_spec
from soundmill.diffusion.paths import Discrete, discrete, scheduled_loss
from soundmill.models.components.choice import load_vocoder
from soundmill.models.components.log_mels.source import Crops, gather_log_mels
from soundmill.models.components.registry import VOCODER
from soundmill.models.ddpm_mel import model as models
from soundmill.models.ddpm_mel.model import FAMILY, DdpmMel
from soundmill.models.ddpm_mel.params import SamplingParams, TrainParams
from soundmill.models.ddpm_mel.picture import PictureCodec
from soundmill.models.family import Prepared, Rehearsal
from soundmill.models.preparing import Clips, Labelled, guided_passes, rehearsal
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
        louder = log_mel + draw.gains.to(log_mel, non_blocking=True) * (math.log(10) / 20 * self.model.mel_spec.power)
        return louder.clamp_min(self.picture.silence)


def prepare(params: TrainParams, ctx: Any, mels: Path, parts: Path, catalog: Path, start: DdpmMel | None) -> Prepared:
    """A training that starts from another keeps its labels and the standardisation of its pictures."""
    known, spec = Clips.read(params, ctx, catalog).learn_conditions(FAMILY, start, parts / "text"), read_spec(mels)
    if params.by_label and not known.labels:
        terminal.say("no training clip has a label: the model will be unconditional")
    if start:
        compare(params.start_from, {"mel_spec": start.mel_spec.model_dump()}, {"mel_spec": spec.model_dump()})
    picture, train = PictureCodec(params.picture, spec), list(known.train)
    log_mels = gather_log_mels(mels, train, ctx.scratch)

    def beginnings() -> Iterator[Tensor]:
        """log_mel [B, n_mels, frames] of all training clips in order, from the start of each, padded with silence."""
        for first in range(0, len(train), AT_ONCE):
            items = range(first, min(first + AT_ONCE, len(train)))
            yield log_mels.crops(items, [0.0] * len(items), picture.frames, picture.silence).float()

    def source_of(clip_ids: Sequence[str]) -> Source:
        crops = Crops(gather_log_mels(mels, clip_ids, ctx.scratch), picture.frames, picture.silence)
        return known.told(crops, clip_ids) if known.text else Labelled(crops, known.label_weights(clip_ids))

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
        level_labels = known.level_conditions(train)
    vocoder = load_vocoder(params.sampling, parts, spec)
    model = DdpmMel(params, net, spec, picture, levels, level_labels, vocoder, **known.conditions)
    module = DdpmModule(params, model, known.steps)
    draw = known.drawing(partial(crop_places, params, picture.frames))
    seconds = picture.frames * spec.hop_length / spec.sample_rate
    return known.prepared(module, model, source_of, draw, seconds, known.counts, parts=[parts / VOCODER] if vocoder else [])


def rehearse(document: dict[str, Any], params: TrainParams, sampling: SamplingParams, net: nn.Module, labels: int) -> Rehearsal:
    """See models/family.py."""
    spec = strict.parse_section(document, f"spectrogram.{FAMILY}", mel.SpectrogramParams).spec
    picture = PictureCodec(params.picture, spec)
    module = DdpmModule(params, DdpmMel(params, net, spec, picture, torch.zeros(1), torch.zeros(1, labels)), steps=1)

    def values(rng: torch.Generator) -> tuple[Tensor, Tensor]:
        noise = torch.randn(params.batch_size, spec.n_mels, picture.frames, generator=rng)
        return noise, torch.zeros(params.batch_size, params.text_width or labels)

    return rehearsal(module, values, guided_passes(sampling, bool(labels or params.text_width)))
