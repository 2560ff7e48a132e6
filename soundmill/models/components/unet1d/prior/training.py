"""Train the diffusion on stored latents, without running the codec."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from soundmill import terminal
from soundmill.errors import UserError
from soundmill.models.components.latents.store import gather_posteriors, read_about
from soundmill.models.components.unet1d.prior.model import AUTOENCODER, LatentPrior
from soundmill.models.components.unet1d.prior.params import PriorTrainParams
from soundmill.models.components.unet1d.training import VelocityModule
from soundmill.models.family import Prepared, Rehearsal
from soundmill.models.preparing import Clips, rehearsal
from soundmill.training.loader import Arrays, Batch, Source


class LatentModule(VelocityModule):
    """A batch: unscaled latents [b, channels, frames], and label weights or vectors of captions if conditional."""

    def __init__(self, params: PriorTrainParams, net: torch.nn.Module, scaling_factor: float, steps: int):
        super().__init__(net, params, steps)
        self.scaling_factor = scaling_factor

    def loss(self, step: int, batch: Batch) -> Tensor:
        latents, *condition = batch.values
        if condition:
            chance = self.uniform(len(latents), self.rng("condition", step))
            condition = [condition[0] * (chance >= self.params.condition_dropout)[:, None]]
        return self.v_loss(lambda xt, level: self.net(xt, level, *condition), latents.float() * self.scaling_factor, step)


@dataclass(frozen=True)
class Means:
    """A source of posterior means [b, channels, frames]."""

    posteriors: Arrays  # [2, channels, frames, 1]

    def batch(self, items: np.ndarray, drawn: np.ndarray) -> tuple[Tensor]:
        return (torch.from_numpy(np.stack([self.posteriors.read(item)[0, :, :, 0] for item in items])),)


def draw_nothing(batch_size: int, step: int) -> Tensor:
    """No random draws: latents are not cropped."""
    return torch.zeros(batch_size)


def prepare(
    kind: type[LatentPrior], params: PriorTrainParams, ctx: Any, inputs: Path, catalog: Path, start: LatentPrior | None
) -> Prepared:
    """Reads autoencoder/ and latents/ in `inputs`. A training that starts from another keeps its labels."""
    known, codec = Clips.read(params, ctx, catalog), kind.load_codec(inputs / AUTOENCODER)
    directory = inputs / "latents" / "clips"
    about = read_about(directory)
    if about.autoencoder != codec.digest:
        raise UserError(f"{directory}: latents of another autoencoder than in {inputs}; run `dvc repro`")
    if start and start.codec.digest != codec.digest:
        terminal.say(f"{ctx.name}: the autoencoder changed: the network must adapt to its latents")
    if params.condition == "label":
        known.know_labels(start, f"set {kind.family}.train.condition to `none`")
    text = None
    if params.condition == "caption":
        text = known.read_texts(inputs / "text", params.text_width, f"set {kind.family}.train.condition to `none` or `label`")

    def source_of(clip_ids: Sequence[str]) -> Source:
        return known.told(Means(gather_posteriors([directory], clip_ids, ctx.scratch)), clip_ids)

    torch.manual_seed(params.seed)
    frames = about.num_samples // codec.samples_per_latent
    net = kind.build_net(params, codec.latent_channels, frames, len(known.labels))
    model = kind(params, net, codec, frames, known.labels, text, known.texts)
    module = LatentModule(params, net, about.scaling_factor, known.steps)
    save, draw = partial(model.save, inputs), known.drawing(partial(draw_nothing, params.batch_size))
    counts = {"captions": len(known.captions)} if text else {"labels": len(known.labels)}
    return known.prepared(module, model, source_of, draw, about.num_samples / codec.sample_rate, save, counts)


def rehearse(
    kind: type[LatentPrior], params: PriorTrainParams, channels: int, frames: int, num_labels: int, passes: int
) -> Rehearsal:
    """See models/family.py, with noise as latents [channels, frames]; a sound needs `passes` network evaluations."""
    labels = num_labels if params.condition == "label" else 0
    module = LatentModule(params, kind.build_net(params, channels, frames, labels), 1.0, steps=1)

    def values(rng: torch.Generator) -> tuple[Tensor, ...]:
        latents = torch.randn(params.batch_size, channels, frames, generator=rng)
        return latents, *(() if params.condition == "none" else (torch.zeros(params.batch_size, params.text_width or labels),))

    return rehearsal(module, params.batch_size, values, params.batch_size, passes)
