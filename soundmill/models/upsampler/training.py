"""Train the family on crops of the training clips' waves, with all their channels."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from soundmill.diffusion.paths import Net
from soundmill.models.components.unet1d.network import UNet1d
from soundmill.models.components.unet1d.params import SamplingParams
from soundmill.models.components.unet1d.training import PathModule
from soundmill.models.components.waves.source import WaveCrops, deviation_of, form_of, gather_waves
from soundmill.models.family import Prepared, Rehearsal
from soundmill.models.params import read_clip_plan
from soundmill.models.preparing import Clips, places_of, rehearsal
from soundmill.models.upsampler import model as models
from soundmill.models.upsampler.model import FAMILY, Upsampler, without_upper_band
from soundmill.models.upsampler.params import TrainParams
from soundmill.training.loader import Batch


class UpsamplerModule(PathModule):
    """A batch: waves [b, channels, T]."""

    def target(self, step: int, batch: Batch) -> tuple[Net, Tensor]:
        (waves,) = batch.values
        with torch.autocast(self.device.type, enabled=False):
            low = without_upper_band(waves.float(), self.params.factor) / self.sigma_data
        return lambda xt, level: self.net(xt, level, beside=low), waves


def prepare(params: TrainParams, ctx: Any, clips: Path, parts: Path, catalog: Path, start: Upsampler | None) -> Prepared:
    """A training that starts from another keeps its scale."""
    known = Clips.read(params, ctx, catalog)
    channels, rate = form_of(params, clips, known.train, start)

    def source_of(clip_ids: Sequence[str]) -> WaveCrops:
        return WaveCrops(gather_waves(clips, clip_ids, ctx.scratch, channels=channels), params.num_samples)

    sigma_data = deviation_of(params, start, lambda: source_of(list(known.train)).waves, FAMILY)
    torch.manual_seed(params.seed)
    model = Upsampler(params, models.build_net(params, channels), rate, channels, sigma_data)
    module = UpsamplerModule(model.net, params, known.steps, sigma_data=sigma_data)
    draw, samples = partial(places_of, params.crop, params.seed, params.batch_size), known.shown(clips)[..., : params.num_samples]
    return known.prepared(module, model, source_of, draw, params.num_samples / rate, {}, samples)


def rehearse(document: dict[str, Any], params: TrainParams, sampling: SamplingParams, net: UNet1d, labels: int) -> Rehearsal:
    """See models/family.py."""
    clips = read_clip_plan(document, FAMILY)
    shape = params.batch_size, clips["channels"], params.num_samples
    windows = max(1.0, clips["clip_seconds"] * clips["sample_rate"] / params.num_samples)
    module = UpsamplerModule(net, params, steps=1)
    return rehearsal(module, lambda rng: (torch.randn(shape, generator=rng),), sampling.num_steps * windows)
