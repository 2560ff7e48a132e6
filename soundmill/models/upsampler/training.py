"""Train the family on crops of the training clips' waves, with all their channels."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from soundmill.models.catalog import beginnings, waves_of
from soundmill.models.components.unet1d.training import VelocityModule
from soundmill.models.components.waves.source import WaveCrops, deviation_of, gather_waves
from soundmill.models.family import Prepared, Rehearsal
from soundmill.models.params import read_clip_plan, read_sections
from soundmill.models.preparing import Clips, rehearsal
from soundmill.models.upsampler import model as models
from soundmill.models.upsampler.model import FAMILY, Upsampler, without_upper_band
from soundmill.models.upsampler.params import TrainParams
from soundmill.training.loader import Batch, crop_places
from soundmill.training.starting import compare


class UpsamplerModule(VelocityModule):
    """A batch: waves [b, channels, T]."""

    def loss(self, step: int, batch: Batch) -> Tensor:
        (waves,) = batch.values
        with torch.autocast(self.device.type, enabled=False):
            low = without_upper_band(waves.float(), self.params.factor) / self.sigma_data
        return self.v_loss(lambda xt, level: self.net(xt, level, beside=low), waves, step)


def prepare(params: TrainParams, ctx: Any, clips: Path, parts: Path, catalog: Path, start: Upsampler | None) -> Prepared:
    """A training that starts from another keeps its scale."""
    known = Clips.read(params, ctx, catalog)
    _, (wave, rate) = next(waves_of(clips, set(known.train)))
    channels = len(wave)
    if start:
        theirs = {"sample_rate": start.sample_rate, "channels": start.channels}
        compare(params.start_from, theirs, {"sample_rate": rate, "channels": channels})

    def source_of(clip_ids: Sequence[str]) -> WaveCrops:
        return WaveCrops(gather_waves(clips, clip_ids, ctx.scratch, channels=channels), params.num_samples)

    sigma_data = deviation_of(params, start, lambda: source_of(list(known.train)).waves, FAMILY)
    torch.manual_seed(params.seed)
    model = Upsampler(params, models.build_net(params, channels), rate, channels, sigma_data)
    module = UpsamplerModule(model.net, params, known.steps, sigma_data=sigma_data)
    shown = beginnings(clips, known.held_out or list(known.train), params.grid.columns * params.grid.rows // 2)
    samples = torch.from_numpy(shown)[..., : params.num_samples]
    save, draw = partial(models.save, model), partial(_places, params)
    return known.prepared(module, model, source_of, draw, params.num_samples / rate, save, {}, samples)


def _places(params: TrainParams, step: int) -> Tensor:
    """Relative start of each crop, [B] in [0, 1)."""
    return torch.zeros(params.batch_size) if params.crop == "start" else crop_places(params.seed, params.batch_size, step)


def rehearse(document: dict[str, Any], num_labels: int) -> Rehearsal:
    """See models/family.py."""
    params, _, sampling = read_sections(document, FAMILY, TrainParams)
    clips = read_clip_plan(document, FAMILY)
    shape = params.batch_size, clips["channels"], params.num_samples
    windows = max(1.0, clips["clip_seconds"] * clips["sample_rate"] / params.num_samples)
    module = UpsamplerModule(models.build_net(params, clips["channels"]), params, steps=1)
    passes = sampling.num_steps * windows
    return rehearsal(module, params.batch_size, lambda rng: (torch.randn(shape, generator=rng),), params.batch_size, passes)
