"""A trained model and its codec."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from soundmill import params as strict
from soundmill.models.components.rave import codec as codecs
from soundmill.models.components.rave.codec import parse_edits
from soundmill.models.components.rave.params import RaveParams
from soundmill.models.components.unet1d.prior.model import LatentPrior, PriorConfig
from soundmill.models.family import Request, Run
from soundmill.models.rave.params import TrainParams

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


def networks(document: dict[str, Any]) -> dict[str, nn.Module]:
    """See models/family.py; without label embeddings. The diffusion has all
    latents here; fidelity leaves some out after the codec is trained.
    """
    params, autoencoder, frames = read(document)
    net = Rave.build_net(params, autoencoder.network.latent_channels, frames, num_labels=0)
    return {"unet": net, "autoencoder": codecs.network(autoencoder, {})}


def read(document: dict[str, Any]) -> tuple[TrainParams, RaveParams, int]:
    """The training's parameters, the codec's, and the number of latents of a sound."""
    train = strict.parse_section(document, f"{FAMILY}.train", TrainParams)
    codec = strict.parse_section(document, f"{FAMILY}.autoencoder", RaveParams)
    latents = strict.section(document, f"{FAMILY}.latents", "params.yaml")
    return train, codec, latents["num_samples"] // codec.network.samples_per_latent


def load(directory: Path) -> Rave:
    return Rave.load(directory)
