"""A diffusion over a codec's latents; its checkpoint contains the codec."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from soundmill.diffusion import solvers
from soundmill.diffusion.sampling import guided, sample
from soundmill.errors import UserError
from soundmill.models.components import registry
from soundmill.models.components.registry import AUTOENCODER
from soundmill.models.components.text_states.states import TextConfig
from soundmill.models.components.unet1d.network import UNet1d
from soundmill.models.components.unet1d.noise import noise_of
from soundmill.models.components.unet1d.params import NO_TRANSFORM
from soundmill.models.components.unet1d.prior import PriorTrainParams
from soundmill.models.family import MAX_FRAMES, FamilyConfig, Request, Run
from soundmill.models.sounds import in_precision, sampled
from soundmill.models.trained import TrainedModel


class PriorConfig(FamilyConfig):
    params: PriorTrainParams
    frames: int = Field(ge=1, le=MAX_FRAMES)
    labels: list[str]
    text: TextConfig | None = None  # if conditioned on captions; earlier checkpoints lack it


@dataclass
class LatentPrior(TrainedModel, ABC):
    """A `Model` (models/family.py). A family supplies the codec."""

    family: ClassVar[str]
    weights = "unet.safetensors"
    load_codec: ClassVar[Callable[[Path], Any]]

    params: PriorTrainParams
    net: UNet1d
    codec: Any  # a `Codec` of latents [N, latent_channels, T / samples_per_latent], with these two and `digest`
    frames: int  # latents of a sound

    @abstractmethod
    def decode(self, latents: Tensor, run: Run) -> Tensor:
        """Waves [N, channels, T] from latents, on the run's device."""

    @staticmethod
    def decoding_passes(sampling: Any) -> int:
        """Passes of the codec's decoder for a sound, which count as passes of the net."""
        return 1

    @property
    def sample_rate(self) -> int:
        return self.codec.sample_rate

    @property
    def channels(self) -> int:
        return self.codec.channels

    @property
    def num_samples(self) -> int:
        return self.frames * self.codec.samples_per_latent

    def generate(self, requests: Sequence[Request], run: Run) -> Tensor:
        """Noise → latents → waves; a request without labels or caption is unconditional."""
        codec = self.codec.to(run.device)
        scale = 1.0 if self.condition == "none" else run.sampling.guidance_scale

        def work(items: slice) -> Tensor:
            part = requests[items]
            condition = () if self.condition == "none" else (self.vectors(part, run).to(run.device),)
            null = tuple(torch.zeros_like(one) for one in condition)
            denoise = in_precision(guided(self.net, condition, null, scale), run)
            noise = noise_of(part, codec.latent_channels, self.frames).to(run.device)
            return self.decode(sample(solvers.continuous(self.params.path, run.sampling.num_steps), denoise, noise), run)

        return sampled(self.net, len(requests), run, work)

    def reconstruct(self, waves: Tensor, run: Run) -> Tensor:
        """Wave → latents → wave, one by one."""
        codec, length = self.codec.to(run.device), waves.shape[2]
        padded = F.pad(waves, (0, self.num_samples - length))
        waves_out = [self.decode(codec.encode(wave[None].to(run.device)), run).cpu() for wave in padded]
        return torch.cat(waves_out)[..., :length]

    @classmethod
    def build_net(cls, params: PriorTrainParams, latent_channels: int, frames: int, num_labels: int) -> UNet1d:
        """The network on latents [channels, frames], initialised from torch's global generator."""
        if frames % params.network.stride:
            raise UserError(
                f"a sound has {frames} latents, and {cls.family}.train.network needs a multiple of {params.network.stride}: change "
                f"{cls.family}.latents.num_samples, or the network's factors"
            )
        labels = {} if params.condition == "none" else {"num_labels": params.text_width or num_labels}
        return UNet1d(params.network, NO_TRANSFORM, latent_channels, latent_channels, **labels)

    @classmethod
    def net_in(cls, document: dict[str, Any], params: PriorTrainParams, num_labels: int) -> UNet1d:
        """See models/family.py."""
        channels, frames, _ = registry.latent_shape(document, cls.family)
        return cls.build_net(params, channels, frames, num_labels)

    @classmethod
    def components(cls, config: PriorConfig, directory: Path, whole: Path) -> dict[str, Any]:
        return {"codec": cls.load_codec(whole / AUTOENCODER)}

    @classmethod
    def build(cls, config: PriorConfig, codec: Any) -> UNet1d:
        return cls.build_net(config.params, codec.latent_channels, config.frames, len(config.labels))
