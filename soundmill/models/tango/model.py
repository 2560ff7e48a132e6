"""A trained TANGO: the model and its checkpoint.

The checkpoint contains its autoencoder and vocoder. The text encoder is too large for that (over a gigabyte): it is loaded by
name and must have the same digest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from soundmill.diffusion.guidance import guided
from soundmill.diffusion.paths import discrete
from soundmill.diffusion.sampling import Draw, sample
from soundmill.diffusion.solvers import scheduled
from soundmill.errors import UserError
from soundmill.models.components import registry
from soundmill.models.components.choice import latent_components, vocoder_of
from soundmill.models.components.contracts import Codec, Kind, LatentCodec, Vocoder
from soundmill.models.components.text_states import states as text_states
from soundmill.models.components.text_states.states import TextConfig
from soundmill.models.family import MAX_FRAMES, FamilyConfig, Request, Run
from soundmill.models.sounds import in_precision, sampled
from soundmill.models.tango.params import TrainParams
from soundmill.models.tango.unet import TextUNet
from soundmill.models.trained import TrainedModel

FAMILY = "tango"


class Config(FamilyConfig):
    family: Literal["tango"] = FAMILY
    params: TrainParams
    frames: int = Field(ge=1, le=MAX_FRAMES)
    text: TextConfig


@dataclass
class Tango(TrainedModel):
    """A `Model` (models/family.py). It is conditioned on the request's caption."""

    config, weights, channels = Config, "unet.safetensors", 1

    params: TrainParams
    net: TextUNet
    kind: Kind  # of the autoencoder
    autoencoder: LatentCodec
    frames: int  # of the generated log-mels, or of latents if the codec has no log-mels
    vocoder: Vocoder | None = None  # None: Griffin-Lim

    @property
    def sample_rate(self) -> int:
        return self.autoencoder.sample_rate

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.autoencoder.latent_shape(self.frames)

    @property
    def num_samples(self) -> int:
        return self.frames * self.autoencoder.samples_per_frame

    def generate(self, requests: Sequence[Request], run: Run) -> Tensor:
        """Noise and a text → latents → waves, through log-mels if the codec has them."""
        states, null = self._states([request.caption for request in requests], run)
        seeds = [request.seed for request in requests]
        return self.codec(run).decode(sample_latents(self, states, null, seeds, run), seeds)

    def reconstruct(self, waves: Tensor, run: Run) -> Tensor:
        """Wave → latent → wave."""
        codec = self.codec(run)
        return codec.decode(codec.encode(waves))[..., : waves.shape[2]]

    def vocoder_for(self, run: Run) -> Vocoder | None:
        return vocoder_of(run.sampling, self.vocoder, self.autoencoder.spec)

    def rebuilt(self, waves: Tensor, run: Run) -> Tensor:
        codec = self.codec(run)
        return codec.to_log_mels(codec.encode(waves))

    def codec(self, run: Run) -> Codec:
        """The autoencoder, with the vocoder of the run if it needs one."""
        return self.kind.sound(self.autoencoder, self.vocoder_for(run), self.frames, run.sampling.grain, run.device)

    def _states(self, captions: Sequence[str], run: Run) -> tuple[list[np.ndarray], np.ndarray]:
        """States [tokens, width] of each caption, and of the null text."""
        if self.texts is not None:
            return [self.texts.of(caption) for caption in captions], self.texts.null
        *states, empty = text_states.encode(self.text, [*captions, ""], run.home, run.scratch, run.digests)
        return states, text_states.null_of(self.params.null_text, empty)

    @classmethod
    def components(cls, config: Config, directory: Path, whole: Path) -> dict[str, Any]:
        return latent_components(config.params.sampling, directory, whole)

    @classmethod
    def build(cls, config: Config, autoencoder: LatentCodec, **others: Any) -> TextUNet:
        return build_net(config.params, autoencoder.latent_shape(config.frames))


def sample_latents(model: Tango, states: Sequence[np.ndarray], null: np.ndarray, seeds: Sequence[int], run: Run) -> Tensor:
    """x0 [N, channels, frames, bands] on the CPU for text states [tokens, width] and the null text; moves `model.net`."""
    sampling, path = run.sampling, discrete(model.params.diffusion)

    def work(items: slice) -> Tensor:
        values, mask = text_states.pad([*states[items], null])  # padded to one length for the single pass of guidance
        values, mask = values.float().to(run.device), mask.to(run.device)
        condition = values[:-1], mask[:-1]
        unconditional = values[-1:].expand_as(condition[0]), mask[-1:].expand_as(condition[1])
        denoise = in_precision(guided(model.net, condition, unconditional, sampling.guidance_scale), run)
        options = {"spacing": sampling.spacing, "variance": sampling.variance}
        steps, draw = scheduled(path, sampling.sampler, sampling.num_steps, run.device, **options), Draw.of_seeds(seeds[items])
        return sample(steps, denoise, draw.noise(model.latent_shape).to(run.device), draw)

    return sampled(model.net, len(seeds), run, work)


def build_net(params: TrainParams, latent_shape: tuple[int, int, int]) -> TextUNet:
    """The U-Net over latents [channels, frames, bands], initialised from torch's global generator."""
    channels, *sides = latent_shape
    halvings = len(params.network.widths) - 1
    if any(side % 2**halvings for side in sides if side > 1):  # a single band is not halved
        raise UserError(
            f"latents of {sides[0]} frames and {sides[1]} bands cannot be halved {halvings} times, as train.network.widths need; "
            "change latents.num_samples or the number of widths"
        )
    return TextUNet(params.network, channels)


def net_in(document: dict[str, Any], params: TrainParams, num_labels: int) -> TextUNet:
    """See models/family.py."""
    return build_net(params, registry.latent_shape(document, FAMILY))


load = Tango.load
