"""Train the diffusion on stored latents, without running the codec."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from soundmill import terminal
from soundmill.diffusion.paths import Net
from soundmill.models.components import registry
from soundmill.models.components.latents.store import gather_posteriors, read_about
from soundmill.models.components.registry import AUTOENCODER
from soundmill.models.components.unet1d.network import PathModule
from soundmill.models.components.unet1d.prior import PriorSamplingParams, PriorTrainParams
from soundmill.models.components.unet1d.prior.model import LatentPrior
from soundmill.models.family import Prepared, Rehearsal
from soundmill.models.preparing import Clips, guided_passes, places_of, rehearsal
from soundmill.training.loader import Arrays, Batch, Source


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
    kind: type[LatentPrior],
    params: PriorTrainParams,
    ctx: Any,
    inputs: Path,
    parts: Path,
    catalog: Path,
    start: LatentPrior | None,
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
    frames = about.num_samples // codec.samples_per_latent
    net = kind.build_net(params, codec.latent_channels, frames, len(known.labels))
    model = kind(params, net, codec, frames, **known.conditions)
    module = LatentModule(params, net, about.scaling_factor, known.steps)
    draw, seconds = (
        known.drawing(partial(places_of, "start", params.seed, params.batch_size)),
        about.num_samples / codec.sample_rate,
    )
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

    def values(rng: torch.Generator) -> tuple[Tensor, ...]:
        latents = torch.randn(params.batch_size, channels, frames, generator=rng)
        return latents, *(() if params.condition == "none" else (torch.zeros(params.batch_size, params.text_width or labels),))

    passes = guided_passes(sampling, params.condition != "none") + kind.decoding_passes(sampling)
    return rehearsal(LatentModule(params, net, 1.0, steps=1), values, passes)
