"""A trained model and its codec, and its training on latents."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from soundmill.models.components.rave import codec as codecs
from soundmill.models.components.rave.codec import parse_edits
from soundmill.models.components.unet1d.prior import model as training
from soundmill.models.components.unet1d.prior.model import LatentPrior, PriorConfig
from soundmill.models.family import Request, Run
from soundmill.models.rave import TrainParams

FAMILY = "rave"


class Config(PriorConfig):
    family: Literal["rave"] = FAMILY
    params: TrainParams


class Rave(LatentPrior):
    """Decodes latents with the codec in a single pass."""

    family, config, load_codec = FAMILY, Config, staticmethod(codecs.load)

    def decode(self, latents: Tensor, run: Run) -> Tensor:
        return self.codec.decode(latents, run.sampling.seed)

    def transform(self, waves: Tensor, requests: Sequence[Request], run: Run) -> Tensor:
        """Wave → latents, edited by `sampling.latent` → wave, with the model's timbre. The requests are ignored."""
        edits, codec = parse_edits(run.sampling.latent, self.codec.rank), self.codec.to(run.device)
        return torch.cat([codec.edit(wave[None].to(run.device), edits, run.sampling.seed).cpu() for wave in waves])


build_net, load = Rave.build_net, Rave.load


prepare, rehearse = partial(training.prepare, Rave), partial(training.rehearse, Rave)
