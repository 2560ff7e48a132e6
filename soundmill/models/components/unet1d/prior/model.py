"""A diffusion over a codec's latents, trained on stored ones without running the codec; its checkpoint contains the codec."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from soundmill import terminal
from soundmill.diffusion import solvers
from soundmill.diffusion.paths import Net
from soundmill.diffusion.sampling import guided, sample
from soundmill.models.components import registry
from soundmill.models.components.latents.store import gather_posteriors, read_about
from soundmill.models.components.registry import AUTOENCODER
from soundmill.models.components.text_states.states import TextConfig
from soundmill.models.components.unet1d.network import PathModule, UNet1d
from soundmill.models.components.unet1d.params import NO_TRANSFORM
from soundmill.models.components.unet1d.prior import PriorSamplingParams, PriorTrainParams
from soundmill.models.family import MAX_FRAMES, FamilyConfig, Prepared, Rehearsal, Request, Run
from soundmill.models.preparing import Clips, guided_passes, places_of, rehearsal
from soundmill.models.sounds import in_precision, noise_of, sampled
from soundmill.models.trained import TrainedModel
from soundmill.training.loader import Arrays, Batch, Source


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
    codec: Any  # a `Codec` of latents [N, latent_channels, T / samples_per_frame], with these two and `digest`
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
        return self.frames * self.codec.samples_per_frame

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
    def build_net(cls, params: PriorTrainParams, latent_shape: tuple[int, int, int], num_labels: int) -> UNet1d:
        """The network on latents of (channels, frames, 1), initialised from torch's global generator."""
        params.check_latents(latent_shape)
        channels = latent_shape[0]
        labels = {} if params.condition == "none" else {"num_labels": params.text_width or num_labels}
        return UNet1d(params.network, NO_TRANSFORM, channels, channels, **labels)

    @classmethod
    def components(cls, config: PriorConfig, directory: Path, whole: Path) -> dict[str, Any]:
        return {"codec": cls.load_codec(whole / AUTOENCODER)}


class LatentModule(PathModule):
    """A batch: unscaled latents [b, channels, frames], and label weights or vectors of captions if conditional."""

    def __init__(self, params: PriorTrainParams, net: nn.Module, scaling_factor: float, steps: int):
        super().__init__(net, params, steps, path=params.path)
        self.scaling_factor = scaling_factor

    def target(self, step: int, batch: Batch) -> tuple[Net, Tensor]:
        latents, *condition = batch.values
        if condition:
            chance = self.uniform(len(latents), self.rng("condition", step))
            condition = [condition[0] * (chance >= self.params.condition_dropout)[:, None]]
        return lambda xt, level: self.net(xt, level, *condition), latents.float() * self.scaling_factor


@dataclass(frozen=True)
class Means:
    """A source of posterior means [b, channels, frames]."""

    posteriors: Arrays  # [2, channels, frames, 1]

    def batch(self, items: np.ndarray, drawn: np.ndarray) -> tuple[Tensor]:
        return (torch.from_numpy(np.stack([self.posteriors.read(item)[0, :, :, 0] for item in items])),)


def prepare(
    kind: type[LatentPrior], params: PriorTrainParams, ctx: Any, inputs: Path, parts: Path, catalog: Path, start: LatentPrior | None
) -> Prepared:
    """Reads autoencoder/, latents/ and text/ in `inputs`. A training that starts from another keeps its labels."""
    known, codec = Clips.read(params, ctx, catalog), kind.load_codec(inputs / AUTOENCODER)
    directory = inputs / "latents" / "clips"
    about = read_about(directory, codec.digest)
    if start and start.codec.digest != codec.digest:
        terminal.say(f"{ctx.name}: the autoencoder changed: the network must adapt to its latents")
    known.learn_conditions(kind.family, start, inputs / "text")

    def source_of(clip_ids: Sequence[str]) -> Source:
        return known.told(Means(gather_posteriors([directory], clip_ids, ctx.scratch)), clip_ids)

    torch.manual_seed(params.seed)
    frames = about.num_samples // codec.samples_per_frame
    net = kind.build_net(params, codec.latent_shape(frames), len(known.labels))
    model = kind(params, net, codec, frames, **known.conditions)
    module = LatentModule(params, net, about.scaling_factor, known.steps)
    draw = known.drawing(partial(places_of, "start", params.seed, params.batch_size))
    seconds = about.num_samples / codec.sample_rate
    return known.prepared(module, model, source_of, draw, seconds, known.counts, parts=[inputs / AUTOENCODER])


def rehearse(
    kind: type[LatentPrior],
    document: dict[str, Any],
    params: PriorTrainParams,
    sampling: PriorSamplingParams,
    net: nn.Module,
    labels: int,
) -> Rehearsal:
    """See models/family.py. All latents of RAVE are kept here: fidelity leaves some out after the codec is trained."""
    channels, frames, _ = registry.latent_shape(document, kind.family)
    told = () if params.condition == "none" else (torch.zeros(params.batch_size, params.text_width or labels),)
    passes = guided_passes(sampling, params.condition != "none") + kind.decoding_passes(sampling)
    return rehearsal(LatentModule(params, net, 1.0, steps=1), [(params.batch_size, channels, frames)], told, passes)
