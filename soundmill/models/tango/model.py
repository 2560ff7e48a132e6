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

from soundmill import manifest, shards
from soundmill.diffusion.paths import Discrete, alpha_bar, discrete, scheduled_loss
from soundmill.diffusion.sampling import FROM_NOISE, Draw, Given, guided
from soundmill.diffusion.solvers import scheduled
from soundmill.errors import UserError
from soundmill.models import adapted
from soundmill.models.catalog import no_training_clip
from soundmill.models.components import registry
from soundmill.models.components.contracts import LatentCodec, Vocoder, read_codec
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
    channels, *sides = latent_shape
    halvings = len(params.network.widths) - 1
    if any(side % 2**halvings for side in sides if side > 1):  # a single band is not halved
        raise UserError(
            f"latents of {sides[0]} frames and {sides[1]} bands cannot be halved {halvings} times, as train.network.widths need; "
            "change latents.num_samples or the number of widths"
        )
    return TextUNet(params.network, channels)


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
        return self.made(requests, run, FROM_NOISE, self.num_samples)

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
    model: Tango, states: Sequence[np.ndarray], null: np.ndarray, seeds: Sequence[int], run: Run, given: Given = FROM_NOISE
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


class Listing:
    """Index of a directory of latents: captions and split by clip id."""

    def __init__(self, directory: Path):
        self.directory, self.about = directory, read_about(directory)
        self.captions: dict[str, list[str]] = {}
        self.splits: dict[str, str] = {}
        self.mixed: dict[str, tuple[str, str]] = {}  # the clips in each mix
        for row in iterate_index(directory):
            self.captions[row["clip_id"]] = [caption for caption in row["captions"] or [] if caption]
            self.splits[row["clip_id"]] = row["split"]
            if row["first"]:
                self.mixed[row["clip_id"]] = row["first"], row["second"]

    def of(self, split: str) -> list[str]:
        """Ids of one split, sorted."""
        return sorted(clip_id for clip_id, clip_split in self.splits.items() if clip_split == split)


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
    clips, mixes, about = _listings(params, inputs)
    clip_ids, valid = clips.of("train"), clips.of("valid")
    if not clip_ids:
        raise no_training_clip(clips.directory)
    known = Clips(params, ctx, catalog, _weights(catalog, clip_ids), valid, mixes.of("train") if mixes else [])
    listings = [listing for listing in (clips, mixes) if listing]
    known.facts = {clip_id: {"captions": told} for listing in listings for clip_id, told in listing.captions.items()}
    known.captions = sorted({caption for row in known.facts.values() for caption in row["captions"]})
    known.read_texts(inputs / "text", params.null_text)
    steps = known.steps  # epochs are counted without mixes
    if mixes:
        devices, weights = params.hardware.devices, dict.fromkeys(known.mixed, 1.0)
        second = Order(seed_of(params.seed, "mixes"), weights, params.mixed_items * devices)
        known.order = Joined(known.order, second, devices)

    def source_of(ids: Sequence[str]) -> Source:
        directories = [listing.directory for listing in listings if listing.captions.keys() & set(ids)]
        posteriors = Posteriors(gather_posteriors(directories, ids, ctx.scratch))
        return Captioned(posteriors, known.captions_of(ids), known.texts.padded, params.text_dropout)

    autoencoder = registry.load_latent_codec(inputs / AUTOENCODER)
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
        mixes=mixes.mixed if mixes else {},
    )


def _listings(params: TrainParams, inputs: Path) -> tuple[Listing, Listing | None, LatentsAbout]:
    """Latents of clips and, if mixes are used and clips have captions, of mixes.

    UserError if they are not from the autoencoder in `inputs`.
    """
    clips = Listing(inputs / "latents" / "clips")
    # Without captions there are no mixes, and the training is unconditional.
    mixes = Listing(inputs / "latents" / "mixes") if params.mixed_items and any(clips.captions.values()) else None
    if mixes and not mixes.of("train"):
        raise UserError(
            f"{mixes.directory}: no mixes, but train.mixed_items is {params.mixed_items}; set it to 0, or `mixup.pairing` to "
            "`pressure`, `random` or `fixed`"
        )
    digest = read_codec(inputs / AUTOENCODER).digest
    for listing in (clips, mixes):
        if listing and (listing.about.autoencoder != digest or listing.about != clips.about):
            raise UserError(
                f"{listing.directory}: latents of another autoencoder than in {inputs}, or of another length; run `dvc repro`"
            )
    return clips, mixes, clips.about


def _weights(catalog: Path, clip_ids: Sequence[str]) -> dict[str, float]:
    """Sampling weights of clips."""
    table = shards.read_table(catalog, manifest.CATALOG, ["clip_id", "weight"]).to_pylist()
    weights = {row["clip_id"]: row["weight"] for row in table}
    missing = [clip_id for clip_id in clip_ids if clip_id not in weights]
    if missing:
        raise UserError(f"{catalog}: {len(missing)} clips with latents are missing, first {missing[0]!r}; run `dvc repro`")
    return {clip_id: weights[clip_id] for clip_id in clip_ids}


def rehearse(document: dict[str, Any], params: TrainParams, sampling: SamplingParams, net: TextUNet, labels: int) -> Rehearsal:
    shape, items = registry.latent_shape(document, FAMILY), params.items
    noise, mask = [(items, 2, *shape), (items, TIMED_TOKENS, params.network.text_width)], torch.ones(items, TIMED_TOKENS).bool()
    module = TangoModule(params, net, 1.0, items, steps=1)
    return rehearsal(module, noise, [mask], guided_passes(sampling, True), params.real_items)
