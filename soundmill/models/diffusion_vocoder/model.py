"""A trained diffusion vocoder: the model and its checkpoint."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from soundmill.audio.mel import log_mel
from soundmill.models.components.unet1d.vocoder.network import VocoderNet
from soundmill.models.components.unet1d.vocoder.vocoder import DiffusionVocoder
from soundmill.models.diffusion_vocoder.params import TrainParams
from soundmill.models.family import FamilyConfig, Run
from soundmill.models.trained import TrainedModel
from soundmill.training.device import evaluating

FAMILY = "diffusion_vocoder"
WINDOW_SECONDS = 10.0


class Config(FamilyConfig):
    family: Literal["diffusion_vocoder"] = FAMILY
    params: TrainParams
    channels: int = Field(ge=1, le=64)
    sigma_data: float = Field(1.0, gt=0)  # earlier checkpoints lack it


@dataclass
class VocodingModel(TrainedModel):
    """A `Model` (models/family.py) that reconstructs, one channel at a time."""

    config = Config

    params: TrainParams
    net: VocoderNet
    channels: int
    sigma_data: float = 1.0  # standard deviation of the waves, by which the net's input is divided

    @classmethod
    def build(cls, config: Config) -> VocoderNet:
        return VocoderNet(config.params.network, config.params.mel)

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


def net_in(document: dict[str, Any], params: TrainParams, num_labels: int) -> VocoderNet:
    """See models/family.py."""
    return VocoderNet(params.network, params.mel)


load = VocodingModel.load
