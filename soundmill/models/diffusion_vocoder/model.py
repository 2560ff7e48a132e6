"""A trained diffusion vocoder: the model and its checkpoint."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from soundmill import params as strict
from soundmill.audio.mel import log_mel
from soundmill.models import family
from soundmill.models.components.unet1d.vocoder.network import VocoderNet
from soundmill.models.components.unet1d.vocoder.vocoder import DiffusionVocoder
from soundmill.models.diffusion_vocoder.params import TrainParams
from soundmill.models.family import FamilyConfig, Run
from soundmill.training import checkpoint
from soundmill.training.device import evaluating

FAMILY = "diffusion_vocoder"
WINDOW_SECONDS = 10.0


class Config(FamilyConfig):
    family: Literal["diffusion_vocoder"] = FAMILY
    params: TrainParams
    channels: int = Field(ge=1, le=64)
    sigma_data: float = Field(1.0, gt=0)  # earlier checkpoints lack it


@dataclass
class VocodingModel:
    """A `Model` (models/family.py) that reconstructs, one channel at a time."""

    params: TrainParams
    net: VocoderNet
    channels: int
    sigma_data: float = 1.0  # standard deviation of the waves, by which the net's input is divided
    labels: tuple[str, ...] = ()
    condition: Literal["none"] = "none"

    @property
    def sample_rate(self) -> int:
        return self.params.mel.sample_rate

    @property
    def num_samples(self) -> int:
        """Length of a window; longer sounds are processed in several."""
        return round(WINDOW_SECONDS * self.sample_rate / self.params.mel.hop_length) * self.params.mel.hop_length

    @property
    def vocoder(self) -> DiffusionVocoder:
        return DiffusionVocoder(self.params.network, self.params.sampling, self.params.mel, self.net, self.sigma_data)

    def reconstruct(self, waves: Tensor, run: Run) -> Tensor:
        """Wave → log-mel → wave."""
        vocoder = self.vocoder_for(run).to(run.device)
        with torch.no_grad(), evaluating(self.net):
            rebuilt = torch.cat([vocoder.vocode(one[None].to(run.device)).cpu() for one in self.rebuilt(waves, run)])
        return rebuilt[..., : waves.shape[2]].reshape(waves.shape).clamp(-1, 1)

    def vocoder_for(self, run: Run) -> DiffusionVocoder:
        return replace(self.vocoder, sampling=run.sampling)

    def rebuilt(self, waves: Tensor, run: Run) -> Tensor:
        return torch.from_numpy(log_mel(waves.flatten(0, 1).numpy(), self.params.mel))


def networks(document: dict[str, Any]) -> dict[str, nn.Module]:
    """See models/family.py."""
    params = strict.parse_section(document, f"{FAMILY}.train", TrainParams)
    return {"net": VocoderNet(params.network, params.mel)}


def save(model: VocodingModel, directory: Path, facts: dict[str, Any]) -> None:
    config = Config(params=model.params, channels=model.channels, sigma_data=model.sigma_data)
    family.save(directory, config, model.net.state_dict(), facts)


def load(directory: Path) -> VocodingModel:
    config = family.read_config(directory, Config)
    net = checkpoint.load_weights(lambda: VocoderNet(config.params.network, config.params.mel), directory / checkpoint.WEIGHTS)
    return VocodingModel(config.params, net, config.channels, config.sigma_data)
