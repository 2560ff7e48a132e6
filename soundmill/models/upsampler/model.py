"""An upsampler: its model and checkpoint, and its training on crops of the training clips' waves, with all their channels."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from soundmill.diffusion import solvers
from soundmill.diffusion.paths import Net, on_unit_variance, scaled
from soundmill.diffusion.sampling import sample
from soundmill.models.components.unet1d.network import PathModule, UNet1d
from soundmill.models.components.unet1d.params import NO_TRANSFORM, SamplingParams
from soundmill.models.components.waves.source import crops_of, deviation_of, form_of
from soundmill.models.family import FamilyConfig, Prepared, Rehearsal, Request, Run
from soundmill.models.params import read_clip_plan
from soundmill.models.preparing import Clips, places_of, rehearsal
from soundmill.models.sounds import in_precision, noise_of, sampled
from soundmill.models.trained import TrainedModel
from soundmill.models.upsampler import TrainParams
from soundmill.training.loader import Batch

FAMILY = "upsampler"


class Config(FamilyConfig):
    family: Literal["upsampler"] = FAMILY
    params: TrainParams
    sample_rate: int
    channels: int = Field(ge=1, le=64)
    sigma_data: float = Field(1.0, gt=0)  # earlier checkpoints lack it


def build_net(params: TrainParams, channels: int, num_labels: int = 0) -> UNet1d:
    return UNet1d(params.network, NO_TRANSFORM, 2 * channels, channels)


@dataclass
class Upsampler(TrainedModel):
    """A `Model` (models/family.py): it reconstructs (downsamples and restores) and transforms, which is the same."""

    config, weights, build_net = Config, "unet.safetensors", staticmethod(build_net)

    sample_rate: int
    channels: int
    sigma_data: float = 1.0  # standard deviation of the waves, by which the net's input is divided

    @property
    def num_samples(self) -> int:
        return self.params.num_samples

    def reconstruct(self, waves: Tensor, run: Run) -> Tensor:
        """As `transform`, with the seed of the sampling."""
        return self.transform(waves, [Request(seed=run.sampling.seed)] * len(waves), run)

    def transform(self, waves: Tensor, requests: Sequence[Request], run: Run) -> Tensor:
        """Downsample to 1 / factor of the rate, and upsample with a new upper band."""
        length = waves.shape[2]
        padded = F.pad(waves, (0, self.num_samples - length))

        def work(items: slice) -> Tensor:
            low = without_upper_band(padded[items].to(run.device), self.params.factor) / self.sigma_data
            denoise = in_precision(lambda xt, level: self.net(xt, level, beside=low), run)
            noise = scaled(noise_of(requests[items], self.channels, self.num_samples).to(run.device), self.sigma_data)
            return sample(solvers.velocity(run.sampling.num_steps), on_unit_variance(denoise, self.sigma_data), noise)

        return sampled(self.net, len(waves), run, work)[..., :length]


def without_upper_band(waves: Tensor, factor: int) -> Tensor:
    """Resample waves [N, C, T] to 1 / factor of their rate and back (windowed sinc, roll-off 0.99, width 6); T a multiple of it."""
    from torchaudio.functional import resample

    return resample(resample(waves, factor, 1), 1, factor)


load = Upsampler.load


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

    source_of = partial(crops_of, clips, ctx.scratch, channels, params.num_samples)
    sigma_data = deviation_of(params, start, lambda: source_of(list(known.train)).waves, FAMILY)
    torch.manual_seed(params.seed)
    model = Upsampler(params, build_net(params, channels), rate, channels, sigma_data)
    module = UpsamplerModule(model.net, params, known.steps, sigma_data=sigma_data)
    draw, samples = partial(places_of, params.crop, params.seed, params.batch_size), known.shown(clips)[..., : params.num_samples]
    return known.prepared(module, model, source_of, draw, params.num_samples / rate, {}, samples)


def rehearse(document: dict[str, Any], params: TrainParams, sampling: SamplingParams, net: UNet1d, labels: int) -> Rehearsal:
    clips = read_clip_plan(document, FAMILY)
    shape = params.batch_size, clips["channels"], params.num_samples
    windows = max(1.0, clips["clip_seconds"] * clips["sample_rate"] / params.num_samples)
    module = UpsamplerModule(net, params, steps=1)
    return rehearsal(module, [shape], (), sampling.num_steps * windows)
