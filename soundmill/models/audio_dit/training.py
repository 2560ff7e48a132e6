"""Train the family on stored latents and text states, without running the codec or the text encoder."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from soundmill.diffusion import solvers
from soundmill.diffusion.paths import Flow, Velocity, error, logit_normal, shifted
from soundmill.models import adapted
from soundmill.models.audio_dit import model as models
from soundmill.models.audio_dit.latents import Layout, layout
from soundmill.models.audio_dit.model import FAMILY, AudioDiT
from soundmill.models.audio_dit.params import DropoutParams, FlowParams, SamplingParams, TrainParams
from soundmill.models.audio_dit.windows import shift_of
from soundmill.models.catalog import choose_by_hash
from soundmill.models.components import registry
from soundmill.models.components.choice import load_vocoder
from soundmill.models.components.dit.network import Conditions, DiT, padded
from soundmill.models.components.latents.store import Posteriors, gather_posteriors, read_about
from soundmill.models.components.registry import AUTOENCODER
from soundmill.models.components.text_states.states import Texts
from soundmill.models.family import Prepared, Rehearsal
from soundmill.models.preparing import Captioned, Clips, guided_passes, places_of, rehearsal, with_captions
from soundmill.training.loader import Batch, Source
from soundmill.training.module import TrainingModule
from soundmill.training.seeds import seed_of

STANDARDISING_CLIPS = 512  # at most


@dataclass(frozen=True)
class Conditioned:
    """A source of posteriors [b, 2, channels, frames, bands] and Conditions, before dropout."""

    texts: Source  # of posteriors, padded states of texts and their mask
    labels: Tensor  # [N, num_labels], weights
    seconds: Tensor  # [N, 2], start and end in the recording

    def batch(self, items: np.ndarray, drawn: np.ndarray) -> tuple[Tensor, ...]:
        posteriors, *texts = self.texts.batch(items, drawn)
        return posteriors, *Conditions(*texts, self.labels[items], self.seconds[items], torch.ones(len(items), 2, dtype=torch.bool))


def _states(params: TrainParams, texts: Texts | None, numbers: Sequence[int | None]) -> tuple[Tensor, Tensor]:
    """States of captions, all padded to one length, and their mask."""
    states = [None if number is None else texts.states.read(number) for number in numbers]
    return padded(states, params.network.text_tokens, params.network.text_width)


def draw_times(flow: FlowParams, frames: int, batch_size: int, rng: torch.Generator) -> Tensor:
    """Times [batch_size] in (0, 1), one in each of as many equally probable parts of their distribution, shuffled."""
    places = torch.randperm(batch_size, generator=rng) + torch.rand(batch_size, generator=rng)
    uniform = (places / batch_size).clamp(1e-6, 1 - 1e-6)
    times = logit_normal(uniform) if flow.times == "logit_normal" else uniform
    return shifted(times, shift_of(flow, frames))


def dropped(conditions: Conditions, dropout: DropoutParams, chances: Tensor) -> Conditions:
    """Conditions of which some are hidden, by `chances` [B, 4] in [0, 1): of the caption, of seconds, of all, of the label."""
    shares = torch.tensor([dropout.condition, dropout.seconds, dropout.all, dropout.condition], device=chances.device)
    caption, seconds, everything, label = (chances < shares).unbind(1)
    return conditions._replace(
        mask=conditions.mask & ~(caption | everything)[:, None],
        labels=conditions.labels * ~(label | everything)[:, None],
        told=conditions.told & torch.stack([~(seconds | everything), ~seconds], 1),
    )


class DiTModule(TrainingModule):
    """A batch: latents sampled from their posteriors, mixed with noise, and their velocity predicted given the conditions."""

    def __init__(self, params: TrainParams, net: DiT, layout: Layout, frames: int, steps: int):
        super().__init__(net, params, steps, params.accumulate)
        self.layout, self.frames = layout, frames

    def loss(self, step: int, batch: Batch) -> Tensor:
        posterior, *values = batch.values
        x0 = self.layout.x0(posterior, self.noise_like(posterior[:, 0].float(), self.rng("posterior", step)))
        noise = self.noise_like(x0, self.rng("noise", step))
        rng = torch.Generator().manual_seed(seed_of(self.params.seed, "times", step))
        t = self.share(draw_times(self.params.flow, self.frames, self.params.batch_size, rng)).to(self.device, non_blocking=True)
        # That of the label is drawn after the others, which therefore do not depend on it.
        chances = torch.cat([torch.rand(self.params.batch_size, columns, generator=rng) for columns in (3, 1)], 1)
        chances = self.share(chances).to(self.device, non_blocking=True)
        conditions = dropped(Conditions(*values), self.params.dropout, chances)
        path = Velocity() if self.params.flow.objective == "v" else Flow()
        return error(path, lambda xt, t: self.net(xt, t, *conditions), x0, t, noise).square().mean()


def prepare(params: TrainParams, ctx: Any, inputs: Path, parts: Path, catalog: Path, start: AudioDiT | None) -> Prepared:
    """Reads autoencoder/ and latents/ in `inputs`, text/ if conditioned on captions, and vocoder/ in `parts` if the params use one.

    A training that starts from another keeps its labels and the standardisation of its latents.
    """
    known, directory = Clips.read(params, ctx, catalog), inputs / "latents" / "clips"
    kind, autoencoder = registry.load_latent_codec(inputs / AUTOENCODER)
    about = read_about(directory, autoencoder.digest)
    item_seconds, frames = about.num_samples / autoencoder.sample_rate, about.num_samples // autoencoder.samples_per_frame
    shape, train = autoencoder.latent_shape(frames), list(known.train)
    known.learn_conditions(FAMILY, start, inputs / "text")

    def span(clip_id: str) -> tuple[float, float]:
        """Start and end in the recording; a clip of unknown length is taken to be as long as the latents."""
        row = known.facts[clip_id]
        return row["start"], row["start"] + (row["seconds"] or item_seconds)

    def source_of(clip_ids: Sequence[str]) -> Conditioned:
        posteriors = Posteriors(gather_posteriors([directory], clip_ids, ctx.scratch))
        texts = Captioned(posteriors, known.captions_of(clip_ids), partial(_states, params, known.texts))
        seconds = torch.tensor([span(clip_id) for clip_id in clip_ids], dtype=torch.float32)
        return Conditioned(texts, known.label_weights(clip_ids), seconds)

    if start:
        standard = replace(start.layout, scaling_factor=autoencoder.scaling_factor)
    else:
        posteriors = gather_posteriors([directory], train, ctx.scratch)
        chosen = choose_by_hash(train, STANDARDISING_CLIPS) if params.standardise else []
        standard = layout(shape, autoencoder.scaling_factor, (posteriors.read(train.index(one)) for one in chosen))
    torch.manual_seed(params.seed)
    net = models.build_net(params, shape, len(known.labels))
    vocoder = load_vocoder(params.sampling, parts, autoencoder.spec)
    longest = max(known.facts[clip_id]["seconds"] or item_seconds for clip_id in train)
    model = AudioDiT(params, net, kind, autoencoder, frames, longest, standard, vocoder, **known.conditions)
    if start:
        adapted.compare_parts(ctx.name, FAMILY, start, model)
    counts = {"captions": known.captions, "labels": known.labels}
    return known.prepared(
        DiTModule(params, net, standard, shape[1], known.steps),
        model,
        source_of,
        partial(with_captions, partial(places_of, "start", params.seed, params.batch_size), params),
        item_seconds,
        {what: len(found) for what, found in counts.items() if found},
        parts=[inputs / AUTOENCODER],
        own_parts=[parts / registry.VOCODER] if vocoder else [],
    )


def rehearse(document: dict[str, Any], params: TrainParams, sampling: SamplingParams, net: DiT, labels: int) -> Rehearsal:
    """See models/family.py."""
    shape, items = registry.latent_shape(document, FAMILY), params.batch_size

    def values(rng: torch.Generator) -> tuple[Tensor, ...]:
        network = params.network
        states = torch.randn(items, network.text_tokens, network.text_width, generator=rng)
        told = torch.ones(items, 2, dtype=torch.bool)
        conditions = Conditions(states, states[..., 0] > 0, torch.zeros(items, labels), torch.zeros(items, 2), told)
        return torch.randn(items, 2, *shape, generator=rng), *conditions

    solver = sampling.solver
    passes_per_step = 1 if params.flow.objective == "v" or solver == "dpm++_sde" else solvers.PASSES[solver]
    module = DiTModule(params, net, layout(shape, 1.0), shape[1], steps=1)
    return rehearsal(module, values, passes_per_step * guided_passes(sampling, True))
