"""A trained model and its autoencoder, and its training on latents."""

from functools import partial
from typing import Literal

from torch import Tensor

from soundmill.models.components.unet1d.codec import codec as codecs
from soundmill.models.components.unet1d.prior import model as training
from soundmill.models.components.unet1d.prior.model import LatentPrior, PriorConfig
from soundmill.models.diffusion_ae import SamplingParams, TrainParams
from soundmill.models.family import Run

FAMILY = "diffusion_ae"


class Config(PriorConfig):
    family: Literal["diffusion_ae"] = FAMILY
    params: TrainParams


class DiffusionAE(LatentPrior):
    """Its autoencoder's decoder is a diffusion too."""

    family, config, load_codec = FAMILY, Config, staticmethod(codecs.load)

    def decode(self, latents: Tensor, run: Run) -> Tensor:
        return self.codec.decode(latents, run.sampling.decoding)

    @staticmethod
    def decoding_passes(sampling: SamplingParams) -> int:
        return sampling.decoding.num_steps


build_net, load = DiffusionAE.build_net, DiffusionAE.load


prepare, rehearse = partial(training.prepare, DiffusionAE), partial(training.rehearse, DiffusionAE)
