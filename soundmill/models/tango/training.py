"""Train the family on stored latents and text states, without running the autoencoder or the text encoder."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from soundmill import manifest, shards
from soundmill import params as strict
from soundmill.audio.mel import SpectrogramParams
from soundmill.diffusion.paths import Discrete, discrete, scheduled_loss
from soundmill.errors import UserError
from soundmill.models import adapted
from soundmill.models.catalog import choose_by_hash, no_training_clip
from soundmill.models.components import registry
from soundmill.models.components.contracts import read_codec
from soundmill.models.components.latents.params import LatentsParams
from soundmill.models.components.latents.store import LatentsAbout, gather_posteriors, iterate_index, read_about
from soundmill.models.components.latents.vocoder import load_vocoder
from soundmill.models.components.text_states import states as text_states
from soundmill.models.components.text_states.states import Texts
from soundmill.models.family import Prepared, Rehearsal
from soundmill.models.params import read_sections
from soundmill.models.preparing import Captions, rehearsal
from soundmill.models.requests import of_captions
from soundmill.models.tango import model as models
from soundmill.models.tango.model import FAMILY, Tango
from soundmill.models.tango.params import TrainParams
from soundmill.training.loader import Arrays, Batch, Joined, Order
from soundmill.training.module import TrainingModule
from soundmill.training.monitoring import HeldOut
from soundmill.training.seeds import seed_of

TIMED_TOKENS = 24  # tokens per caption when timing a step


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


@dataclass(frozen=True)
class LatentsAndTexts:
    """A source of posteriors [b, 2, channels, frames, bands] and the states of one caption each (text_states.Condition).

    `drawn` [b, 2] in [0, 1): selects one of the captions; below `dropout`, the text is dropped.
    """

    posteriors: Arrays
    captions: Captions
    dropout: float

    def batch(self, items: np.ndarray, drawn: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        chances = zip(items, drawn.tolist(), strict=True)
        chosen = [self.captions.drawn(item, which) if dropped >= self.dropout else None for item, (which, dropped) in chances]
        posteriors = torch.from_numpy(np.stack([self.posteriors.read(item) for item in items]))
        return posteriors, *self.captions.texts.padded(chosen)


def draw_texts(seed: int, batch_size: int, step: int) -> Tensor:
    """Random numbers [batch_size, 2] in [0, 1) for LatentsAndTexts."""
    return torch.rand(batch_size, 2, generator=torch.Generator().manual_seed(seed_of(seed, "text", step)))


def draw_times(params: TrainParams, batch_size: int, step: int) -> Tensor:
    """Shares of the path [batch_size], of all ranks together."""
    rng = torch.Generator().manual_seed(seed_of(params.seed, "timesteps", step))
    if params.diffusion.stratified:
        # Shuffled: a batch has clips before mixes, and both must cover all timesteps.
        return (torch.randperm(batch_size, generator=rng) + torch.rand((), generator=rng)) / batch_size
    return torch.rand(batch_size, generator=rng)


class TangoModule(TrainingModule):
    """A batch: latents sampled from their posteriors, noised, and denoised given the text."""

    def __init__(self, params: TrainParams, net: torch.nn.Module, scaling_factor: float, batch_size: int, steps: int):
        super().__init__(net, params, steps, params.accumulate)
        self.scaling_factor, self.batch_size = scaling_factor, batch_size
        self.register_buffer("table", discrete(params.diffusion).table, persistent=False)

    def loss(self, step: int, batch: Batch) -> Tensor:
        posterior, states, mask = batch.values
        x0 = draw_x0(posterior, self.scaling_factor, self.noise_like(posterior[:, 0].float(), self.rng("posterior", step)))
        noise = self.noise_like(x0, self.rng("noise", step))
        path, states = Discrete(self.table, self.params.diffusion.objective), states.float()
        t = self.share(path.times(draw_times(self.params, self.batch_size, step))).to(self.device, non_blocking=True)
        return scheduled_loss(path, self.params.diffusion, lambda xt, t: self.net(xt, t, states, mask), x0, t, noise)


def draw_x0(posterior: Tensor, scaling_factor: float, noise: Tensor) -> Tensor:
    """Scaled samples [b, channels, frames, bands] of posteriors [b, 2, channels, frames, bands] (mean, ln variance), float32."""
    mean, log_variance = posterior.float().unbind(1)
    return scaling_factor * (mean + (0.5 * log_variance).exp() * noise)


def prepare(params: TrainParams, ctx: Any, inputs: Path, parts: Path, catalog: Path, start: Tango | None) -> Prepared:
    """Reads autoencoder/, latents/ and text/ in `inputs`, and vocoder/ in `parts` if the params use one.

    A training that starts from another may have another text encoder of the same width, or another autoencoder; this is printed.
    """
    devices = params.hardware.devices
    clips, mixes, about = _listings(params, inputs)
    clip_ids, mix_ids = clips.of("train"), mixes.of("train") if mixes else []
    if not clip_ids:
        raise no_training_clip(clips.directory)
    order: Order | Joined = Order(params.seed, _weights(catalog, clip_ids), params.real_items * devices)
    batches = params.steps * params.accumulate if params.steps else order.steps(params.epochs)
    if mixes:
        second = Order(seed_of(params.seed, "mixes"), dict.fromkeys(mix_ids, 1.0), params.mixed_items * devices)
        order = Joined(order, second, devices)

    distinct_captions = {
        caption for listing in (clips, mixes) if listing for of_one in listing.captions.values() for caption in of_one
    }
    captions = sorted(distinct_captions)
    texts = text_states.read_texts(
        inputs / "text", captions, params.null_text, params.network.text_width, "network.text_width", ctx.scratch
    )
    numbers = {caption: number for number, caption in enumerate(captions)}
    source = _source([listing for listing in (clips, mixes) if listing], [*clip_ids, *mix_ids], texts, numbers, params, ctx.scratch)

    unseen = choose_by_hash(clips.of("valid"), params.validate_batches * order.batch_size)
    held_out = HeldOut(_source([clips], unseen, texts, numbers, params, ctx.scratch), len(unseen)) if unseen else None

    kind, autoencoder = registry.load_latent_codec(inputs / "autoencoder")
    frames = about.num_samples // autoencoder.samples_per_frame
    torch.manual_seed(params.seed)
    net = models.build_net(params, autoencoder.latent_shape(frames))
    vocoder = load_vocoder(params.sampling, parts, autoencoder)
    model = Tango(params, net, kind, autoencoder, frames, text_states.read_config(inputs / "text"), vocoder, texts)
    if start:
        adapted.compare_parts(ctx.name, FAMILY, start, model)
    module = TangoModule(params, net, autoencoder.scaling_factor, order.batch_size, -(-batches // params.accumulate))

    return Prepared(
        module,
        model,
        source,
        order,
        partial(draw_texts, params.seed, order.batch_size),
        about.num_samples / autoencoder.sample_rate,
        clip_ids=clip_ids,
        counts={"mixes": len(mix_ids), "captions": len(captions)},
        samples=of_captions(params.grid, params.seed, captions),
        columns=params.grid.columns,
        held_out=held_out,
        save=partial(models.save, model, inputs, parts),
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
            "`pressure` or `random`"
        )
    digest = read_codec(inputs / "autoencoder").digest
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


def _source(
    listings: Sequence[Listing], ids: Sequence[str], texts: Texts, numbers: dict[str, int], params: TrainParams, scratch: Path
) -> LatentsAndTexts:
    posteriors = gather_posteriors([listing.directory for listing in listings], ids, scratch)
    captions = {clip_id: of_one for listing in listings for clip_id, of_one in listing.captions.items()}
    numbered = Captions([[numbers[text] for text in captions[one]] for one in ids], texts)
    return LatentsAndTexts(posteriors, numbered, params.text_dropout)


def rehearse(document: dict[str, Any], num_labels: int) -> Rehearsal:
    """See models/family.py."""
    read = partial(strict.parse_section, document)
    params, _, sampling = read_sections(document, FAMILY, TrainParams)
    spec, num_samples = read(f"spectrogram.{FAMILY}", SpectrogramParams).spec, read(f"{FAMILY}.latents", LatentsParams).num_samples
    shape, items = registry.codec_params(document, FAMILY).latent_shape(spec, num_samples), params.items
    net = models.build_net(params, shape)

    def values(rng: torch.Generator) -> tuple[Tensor, ...]:
        posteriors = torch.randn(items, 2, *shape, generator=rng)
        states = torch.randn(items, TIMED_TOKENS, params.network.text_width, generator=rng)
        return posteriors, states, torch.ones(items, TIMED_TOKENS, dtype=torch.bool)

    passes = sampling.num_steps * (1 if sampling.guidance_scale == 1 else 2)
    return rehearsal(TangoModule(params, net, 1.0, items, steps=1), items, values, params.real_items, passes)
