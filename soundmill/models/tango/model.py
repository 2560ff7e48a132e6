"""TANGO: its net, its model and checkpoint, and its training on stored latents and text states.

The checkpoint contains its autoencoder and vocoder. The text encoder is too large for that (over a gigabyte): it is loaded by
name and must have the same digest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from soundmill.diffusion.paths import Discrete, alpha_bar, discrete, scheduled_loss
from soundmill.diffusion.sampling import Draw, Given, guided
from soundmill.diffusion.solvers import scheduled
from soundmill.errors import UserError
from soundmill.models import adapted
from soundmill.models.components import registry
from soundmill.models.components.contracts import LatentCodec, Vocoder
from soundmill.models.components.latents.store import LatentsAbout, Posteriors, drawn, gather_posteriors, iterate_index, read_about
from soundmill.models.components.registry import AUTOENCODER
from soundmill.models.components.text_states import states as text_states
from soundmill.models.components.text_states.states import TextConfig
from soundmill.models.encodings import OfLatents
from soundmill.models.family import MAX_FRAMES, FamilyConfig, Prepared, Rehearsal, Request, Run
from soundmill.models.preparing import Captioned, Clips, guided_passes, rehearsal
from soundmill.models.sounds import in_precision, sampled
from soundmill.models.tango import SamplingParams, TrainParams, UNetParams
from soundmill.models.trained import TrainedModel
from soundmill.training.loader import Batch, Joined, Order, Source
from soundmill.training.module import TrainingModule
from soundmill.training.seeds import seed_of

FAMILY = "tango"
TIMED_TOKENS = 24  # tokens per caption when timing a step


class TextUNet(nn.Module):
    """diffusers' UNet2DConditionModel, which predicts from (xt, t, states, mask): [B, z, frames, bands], [B], [B, L, text_width],
    boolean [B, L] (true: a token). It has 865,933,768 parameters at TANGO's sizes.

    With `class_width` it is AudioLDM's: the first state becomes CLAP's vector of the text, by layers that are not trained.
    """

    def __init__(self, params: UNetParams, latent_channels: int):
        from diffusers import UNet2DConditionModel

        super().__init__()
        levels, width = range(len(params.widths)), params.class_width
        told = {"cross_attention_dim": params.text_width, "use_linear_projection": True}
        if width:
            told = {"cross_attention_dim": params.widths, "class_embed_type": "simple_projection", "class_embeddings_concat": True}
            told["projection_class_embeddings_input_dim"] = width
            layers = [nn.Linear(params.text_width, params.text_width), nn.Tanh(), nn.Linear(params.text_width, width)]
            self.vector = nn.Sequential(*layers, nn.ReLU(), nn.Linear(width, width)).requires_grad_(False)
        self.unet = UNet2DConditionModel(
            in_channels=latent_channels,
            out_channels=latent_channels,
            block_out_channels=params.widths,
            down_block_types=["CrossAttnDownBlock2D" if level in params.text_levels else "DownBlock2D" for level in levels],
            up_block_types=["CrossAttnUpBlock2D" if level in params.text_levels else "UpBlock2D" for level in reversed(levels)],
            layers_per_block=params.blocks,
            attention_head_dim=params.heads,  # in diffusers this is the number of heads
            norm_num_groups=params.groups,
            norm_eps=1e-5,
            **told,
        )
        if params.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()

    def forward(self, xt: Tensor, t: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        if self.unet.class_embedding is None:
            return self.unet(xt, t, encoder_hidden_states=states, encoder_attention_mask=mask).sample
        vector = nn.functional.normalize(self.vector(states[:, 0]), dim=1)
        return self.unet(xt, t, encoder_hidden_states=None, class_labels=vector).sample


class Config(FamilyConfig):
    family: Literal["tango"] = FAMILY
    params: TrainParams
    frames: int = Field(ge=1, le=MAX_FRAMES)
    text: TextConfig


def build_net(params: TrainParams, latent_shape: tuple[int, int, int], num_labels: int = 0) -> TextUNet:
    """The U-Net over latents [channels, frames, bands], initialised from torch's global generator."""
    params.check_latents(latent_shape)
    return TextUNet(params.network, latent_shape[0])


@dataclass
class Tango(OfLatents, TrainedModel):
    """A `Model` (models/family.py). It is conditioned on the request's caption."""

    config, weights, channels, build_net = Config, "unet.safetensors", 1, staticmethod(build_net)

    autoencoder: LatentCodec
    frames: int  # of the generated log-mels, or of latents if the codec has no log-mels
    vocoder: Vocoder | None = None  # None: Griffin-Lim

    @property
    def encoded_shape(self) -> tuple[int, int, int]:
        return self.autoencoder.latent_shape(self.frames)

    @property
    def num_samples(self) -> int:
        return self.frames * self.autoencoder.samples_per_frame

    def generate(self, requests: Sequence[Request], run: Run) -> Tensor:
        """Noise and a text → latents → waves, through log-mels if the codec has them."""
        return self.made(requests, run, Given(), self.num_samples)

    def made(self, requests: Sequence[Request], run: Run, given: Given, length: int) -> Tensor:
        seeds = [request.seed for request in requests]
        return self.codec(run).decode(sample_latents(self, *conditions(self, requests, run), seeds, run, given), seeds)

    @classmethod
    def components(cls, config: Config, directory: Path, whole: Path) -> dict[str, Any]:
        return registry.latent_components(config.params.sampling, directory, whole)


def conditions(model: Tango, requests: Sequence[Request], run: Run) -> tuple[list[np.ndarray], np.ndarray]:
    """Text states [tokens, width] of each request, and those of the null text."""
    *states, empty = model.states([*(request.caption for request in requests), ""], run)
    return states, text_states.null_of(model.params.null_text, empty)


def sample_latents(
    model: Tango, states: Sequence[np.ndarray], null: np.ndarray, seeds: Sequence[int], run: Run, given: Given
) -> Tensor:
    """x0 [N, channels, frames, bands] on the CPU for text states [tokens, width] and the null text; moves `model.net`."""
    sampling, path = run.sampling, discrete(model.params.diffusion)

    def work(items: slice) -> Tensor:
        values, mask = text_states.pad([*states[items], null])  # padded to one length for the single pass of guidance
        values, mask = values.float().to(run.device), mask.to(run.device)
        condition = values[:-1], mask[:-1]
        unconditional = values[-1:].expand_as(condition[0]), mask[-1:].expand_as(condition[1])
        denoise = in_precision(guided(model.net, condition, unconditional, sampling.guidance_scale), run)
        options = {"spacing": sampling.spacing, "variance": sampling.variance}
        steps = given.steps(scheduled(path, sampling.sampler, sampling.num_steps, run.device, **options))
        return given.sample(items, steps, denoise, model.encoded_shape, Draw.of_seeds(seeds[items]), run.device)

    return sampled(model.net, len(seeds), run, work)


load = Tango.load


def draw_captions(seed: int, batch_size: int, step: int) -> Tensor:
    """Random numbers in [0, 1) for Captioned, of which latents need none: [batch_size, 3]."""
    drawn = torch.rand(batch_size, 2, generator=torch.Generator().manual_seed(seed_of(seed, "text", step)))
    return torch.cat([torch.zeros(batch_size, 1), drawn], 1)


def draw_times(params: TrainParams, batch_size: int, step: int) -> Tensor:
    """Shares of the path [batch_size], of all ranks together."""
    rng = torch.Generator().manual_seed(seed_of(params.seed, "timesteps", step))
    if params.diffusion.stratified:
        # Shuffled: a batch has clips before mixes, and both must cover all timesteps.
        return (torch.randperm(batch_size, generator=rng) + torch.rand((), generator=rng)) / batch_size
    return torch.rand(batch_size, generator=rng)


class TangoModule(TrainingModule):
    """A batch: latents sampled from their posteriors, noised, and denoised given the text."""

    def __init__(self, params: TrainParams, net: nn.Module, scaling_factor: float, batch_size: int, steps: int):
        super().__init__(net, params, steps, params.accumulate)
        self.scaling_factor, self.batch_size = scaling_factor, batch_size
        self.register_buffer("table", alpha_bar(params.diffusion), persistent=False)

    def loss(self, step: int, batch: Batch) -> Tensor:
        posterior, states, mask = batch.values
        x0 = self.scaling_factor * drawn(posterior, self.noise_like(posterior[:, 0].float(), self.rng("posterior", step)))
        noise = self.noise_like(x0, self.rng("noise", step))
        path, states = Discrete(self.table, self.params.diffusion.objective), states.float()
        t = self.share(path.times(draw_times(self.params, self.batch_size, step))).to(self.device, non_blocking=True)
        return scheduled_loss(path, self.params.diffusion, lambda xt, t: self.net(xt, t, states, mask), x0, t, noise)


def prepare(params: TrainParams, ctx: Any, inputs: Path, parts: Path, catalog: Path, start: Tango | None) -> Prepared:
    """Reads autoencoder/, latents/ and text/ in `inputs`, and vocoder/ in `parts` if the params use one.

    A training that starts from another may have another text encoder of the same width, or another autoencoder; this is printed.
    """
    known, autoencoder = Clips.read(params, ctx, catalog), registry.load_latent_codec(inputs / AUTOENCODER)
    clips, of_mixes = (inputs / "latents" / name for name in ("clips", "mixes"))
    about, mixes = read_about(clips, autoencoder.digest), {}
    # Without captions there are no mixes, and the training is unconditional.
    if params.mixed_items and any(row["captions"] for row in known.facts.values()):
        mixes = _mixes(of_mixes, about, params.mixed_items)
    known.mixed = sorted(mixes)
    known.facts |= mixes
    known.captions = sorted({caption for row in known.facts.values() for caption in row["captions"]})
    known.read_texts(inputs / "text", params.null_text)
    steps = known.steps  # epochs are counted without mixes
    if mixes:
        devices, weights = params.hardware.devices, dict.fromkeys(known.mixed, 1.0)
        second = Order(seed_of(params.seed, "mixes"), weights, params.mixed_items * devices)
        known.order = Joined(known.order, second, devices)

    def source_of(ids: Sequence[str]) -> Source:
        posteriors = Posteriors(gather_posteriors([clips, of_mixes] if mixes.keys() & set(ids) else [clips], ids, ctx.scratch))
        return Captioned(posteriors, known.captions_of(ids), known.texts.padded, params.text_dropout)

    frames = about.num_samples // autoencoder.samples_per_frame
    torch.manual_seed(params.seed)
    net = build_net(params, autoencoder.latent_shape(frames))
    vocoder = registry.chosen_vocoder(params.sampling, parts, autoencoder.spec)
    model = Tango(params, net, autoencoder, frames, vocoder, **known.conditions)
    if start:
        adapted.compare_parts(ctx.name, FAMILY, start, model)
    return known.prepared(
        TangoModule(params, net, autoencoder.scaling_factor, known.order.batch_size, steps),
        model,
        source_of,
        partial(draw_captions, params.seed, known.order.batch_size),
        about.num_samples / autoencoder.sample_rate,
        {"mixes": len(known.mixed), **known.counts},
        parts=[inputs / AUTOENCODER],
        own_parts=[parts / registry.VOCODER] if vocoder else [],
        mixes={clip_id: (row["first"], row["second"]) for clip_id, row in mixes.items()},
    )


def _mixes(directory: Path, clips: LatentsAbout, items: int) -> dict[str, dict[str, Any]]:
    """Mixes by id, with captions and their two clips; UserError if there are none, or their latents differ from those of clips."""
    if read_about(directory, clips.autoencoder) != clips:
        raise UserError(f"{directory}: latents of another length than those of clips; run `dvc repro`")
    mixes = {row["clip_id"]: row for row in iterate_index(directory)}
    if not mixes:
        raise UserError(
            f"{directory}: no mixes, but train.mixed_items is {items}; set it to 0, or `mixup.pairing` to `pressure`, `random` or "
            "`fixed`"
        )
    return mixes


def rehearse(document: dict[str, Any], params: TrainParams, sampling: SamplingParams, net: TextUNet, labels: int) -> Rehearsal:
    shape, items = registry.latent_shape(document, FAMILY), params.items
    noise, mask = [(items, 2, *shape), (items, TIMED_TOKENS, params.network.text_width)], torch.ones(items, TIMED_TOKENS).bool()
    module = TangoModule(params, net, 1.0, items, steps=1)
    return rehearsal(module, noise, [mask], guided_passes(sampling, True), params.real_items)
