"""A trained model and its autoencoder."""

from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from soundmill import params as strict
from soundmill.models.components.unet1d.codec import codec as codecs
from soundmill.models.components.unet1d.codec.params import AutoencoderParams
from soundmill.models.components.unet1d.prior.model import LatentPrior, PriorConfig
from soundmill.models.diffusion_ae.params import TrainParams
from soundmill.models.family import Run
from soundmill.models.params import read_clip_plan

FAMILY = "diffusion_ae"


class Config(PriorConfig):
    family: Literal["diffusion_ae"] = FAMILY
    params: TrainParams


class DiffusionAE(LatentPrior):
    """Its autoencoder's decoder is a diffusion too."""

    family, config, load_codec = FAMILY, Config, staticmethod(codecs.load)

    def decode(self, latents: Tensor, run: Run) -> Tensor:
        return self.codec.decode(latents, run.sampling.decoding)


def networks(document: dict[str, Any]) -> dict[str, nn.Module]:
    """See models/family.py; without label embeddings."""
    read = partial(strict.parse_section, document)
    params, autoencoder = read(f"{FAMILY}.train", TrainParams), read(f"{FAMILY}.autoencoder", AutoencoderParams)
    channels = read_clip_plan(document, FAMILY)["channels"]
    spec = strict.section(document, f"spectrogram.{FAMILY}", "params.yaml")
    frames = strict.section(document, f"{FAMILY}.latents", "params.yaml")["num_samples"] // autoencoder.samples_per_latent
    net = DiffusionAE.build_net(params, autoencoder.encoder.latent_channels, frames, num_labels=0)
    return {"unet": net, "autoencoder": codecs.network(autoencoder, spec, channels)}


def load(directory: Path) -> DiffusionAE:
    return DiffusionAE.load(directory)
