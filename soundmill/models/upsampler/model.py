"""A trained upsampler: the model and its checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from soundmill.diffusion import solvers
from soundmill.diffusion.deviation import on_unit_variance, scaled
from soundmill.diffusion.sampling import sample
from soundmill.models.components.unet1d.network import UNet1d
from soundmill.models.components.unet1d.noise import noise_of
from soundmill.models.components.unet1d.params import NO_TRANSFORM
from soundmill.models.family import FamilyConfig, Request, Run
from soundmill.models.params import read_clip_plan
from soundmill.models.sounds import in_precision, sampled
from soundmill.models.trained import TrainedModel
from soundmill.models.upsampler.params import TrainParams

FAMILY = "upsampler"


class Config(FamilyConfig):
    family: Literal["upsampler"] = FAMILY
    params: TrainParams
    sample_rate: int
    channels: int = Field(ge=1, le=64)
    sigma_data: float = Field(1.0, gt=0)  # earlier checkpoints lack it


@dataclass
class Upsampler(TrainedModel):
    """A `Model` (models/family.py): it reconstructs (downsamples and restores) and transforms, which is the same."""

    config, weights = Config, "unet.safetensors"

    params: TrainParams
    net: UNet1d
    sample_rate: int
    channels: int
    sigma_data: float = 1.0  # standard deviation of the waves, by which the net's input is divided

    @classmethod
    def build(cls, config: Config) -> UNet1d:
        return build_net(config.params, config.channels)

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


def build_net(params: TrainParams, channels: int) -> UNet1d:
    """The network, initialised from torch's global generator."""
    return UNet1d(params.network, NO_TRANSFORM, 2 * channels, channels)


def net_in(document: dict[str, Any], params: TrainParams, num_labels: int) -> UNet1d:
    """See models/family.py."""
    return build_net(params, read_clip_plan(document, FAMILY)["channels"])


load = Upsampler.load
