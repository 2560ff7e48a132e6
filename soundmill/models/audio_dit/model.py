"""A transformer over a codec's latents: its model and checkpoint, sounds of any length in windows, and its training.

The checkpoint contains its codec and vocoder, and its text encoder if imported. The training reads stored latents and text states.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from soundmill.diffusion import solvers
from soundmill.diffusion.paths import Flow, Velocity, error, length_shift, logit_normal, shifted
from soundmill.diffusion.sampling import Draw, Given, guided
from soundmill.errors import UserError
from soundmill.models import adapted
from soundmill.models.audio_dit import DropoutParams, FlowParams, SamplingParams, TrainParams
from soundmill.models.catalog import choose_by_hash
from soundmill.models.components import registry
from soundmill.models.components.contracts import LatentCodec, Vocoder
from soundmill.models.components.dit.network import Conditions, DiT, hidden, padded
from soundmill.models.components.latents.store import Posteriors, drawn, gather_posteriors, read_about
from soundmill.models.components.registry import AUTOENCODER
from soundmill.models.components.text_states.states import TextConfig, Texts
from soundmill.models.encodings import OfLatents
from soundmill.models.family import MAX_FRAMES, FamilyConfig, Prepared, Rehearsal, Request, Run
from soundmill.models.preparing import Captioned, Clips, guided_passes, places_of, rehearsal, with_captions
from soundmill.models.sounds import in_precision, sampled
from soundmill.models.trained import TrainedModel, label_weights
from soundmill.training import checkpoint
from soundmill.training.device import evaluating
from soundmill.training.loader import Batch, Source
from soundmill.training.module import TrainingModule
from soundmill.training.seeds import seed_of

FAMILY = "audio_dit"
STANDARDISING_CLIPS = 512  # at most
LEAST_DEVIATION = 1e-3  # a channel that varies less carries nothing


@dataclass(frozen=True)
class Layout:
    """Between a codec's latents [N, channels, frames, bands] and the transformer's [N, channels · bands, frames]."""

    bands: int
    mean: Tensor  # [channels · bands], of a codec's latents as scaled
    deviation: Tensor  # [channels · bands]
    scaling_factor: float

    def x0(self, posterior: Tensor, noise: Tensor) -> Tensor:
        """Samples [N, channels · bands, frames] of posteriors [N, 2, channels, frames, bands], from noise of their shape."""
        return self.fold(self.scaling_factor * drawn(posterior, noise))

    def fold(self, scaled: Tensor) -> Tensor:
        """The transformer's latents of a codec's scaled ones."""
        folded = scaled.permute(0, 1, 3, 2).flatten(1, 2)
        return (folded - self.mean.to(folded)[:, None]) / self.deviation.to(folded)[:, None]

    def unfold(self, x0: Tensor) -> Tensor:
        """The codec's scaled latents of the transformer's."""
        folded = x0 * self.deviation.to(x0)[:, None] + self.mean.to(x0)[:, None]
        return folded.unflatten(1, (-1, self.bands)).permute(0, 1, 3, 2)


def layout(
    shape: tuple[int, int, int], scaling_factor: float, posteriors: Iterable[np.ndarray] = (), together: bool = False
) -> Layout:
    """The layout for latents of `shape` (channels, frames, bands), standardised by `posteriors` [2, *shape], if there are any:
    each channel, or all `together` by their root mean square."""
    channels, _, bands = shape
    count, total, squares = 0, torch.zeros(channels, bands), torch.zeros(channels, bands)
    for posterior in posteriors:
        mean, log_variance = torch.from_numpy(posterior).double()
        count += mean.shape[1]
        total, squares = total + mean.sum(1), squares + (mean.square() + log_variance.exp()).sum(1)
    if not count:
        return Layout(bands, torch.zeros(channels * bands), torch.ones(channels * bands), scaling_factor)
    mean = torch.zeros_like(total) if together else total / count
    variance = (squares / count - mean.square()).clamp_min(0)
    deviation = (variance.mean().expand_as(variance) if together else variance).sqrt()
    scaled = [scaling_factor * values.flatten() for values in (mean, deviation)]
    return Layout(bands, scaled[0].float(), scaled[1].clamp_min(LEAST_DEVIATION).float(), scaling_factor)


class Config(FamilyConfig):
    family: Literal["audio_dit"] = FAMILY
    params: TrainParams
    frames: int = Field(ge=1, le=MAX_FRAMES)
    seconds: float | None = Field(None, gt=0)  # of the longest training clip; null: unknown, as in earlier checkpoints
    labels: list[str]
    text: TextConfig | None
    mean: list[float]  # of each channel of the latents
    deviation: list[float]


def build_net(params: TrainParams, latent_shape: tuple[int, int, int], num_labels: int) -> DiT:
    """The transformer over latents [channels, frames, bands], initialised from torch's global generator."""
    channels, frames, bands = latent_shape
    return DiT(params.network, channels * bands, frames, num_labels)


@dataclass
class AudioDiT(OfLatents, TrainedModel):
    """A `Model` (models/family.py). It makes sounds of any length; `num_samples` is that of the longest training clip, and longer
    sounds are made of windows that continue each other."""

    config, weights, build_net = Config, "transformer.safetensors", staticmethod(build_net)

    autoencoder: LatentCodec
    frames: int  # of the sounds whose latents the net is trained on: of log-mels, or of latents if the codec has none
    seconds: float | None  # of the longest training clip; None: unknown, taken for as long as the latents
    layout: Layout
    vocoder: Vocoder | None = None  # None: Griffin-Lim

    @property
    def mean(self) -> list[float]:
        return self.layout.mean.tolist()

    @property
    def deviation(self) -> list[float]:
        return self.layout.deviation.tolist()

    @property
    def channels(self) -> int:
        return self.autoencoder.channels

    @property
    def num_samples(self) -> int:
        """The latents may be longer than any clip: what follows a clip in them was silence, and its length is told."""
        held = self.frames * self.autoencoder.samples_per_frame
        return min(held, round(self.seconds * self.sample_rate)) if self.seconds else held

    @property
    def latent_frames(self) -> int:
        return self.autoencoder.latent_shape(self.frames)[1]

    @property
    def samples_per_latent(self) -> int:
        return self.frames * self.autoencoder.samples_per_frame // self.latent_frames

    def generate(self, requests: Sequence[Request], run: Run) -> Tensor:
        """Noise and conditions → latents → waves, as long as the longest request; shorter ones end with silence."""
        seconds = [request.seconds or run.sampling.seconds for request in requests]
        lengths = [max(1, round(one * self.sample_rate)) if one else self.num_samples for one in seconds]
        waves = torch.zeros(len(requests), self.channels, max(lengths))
        for start in range(0, len(requests), run.batch_size):
            part = slice(start, start + run.batch_size)
            latents = sample(self, requests[part], lengths[part], run)
            for wave, x0, request, length in zip(waves[part], latents, requests[part], lengths[part], strict=True):
                codec = self.codec(run, x0.shape[1] * (self.frames // self.latent_frames))
                wave[:, :length] = codec.decode(self.layout.unfold(x0[None]), [request.seed])[0, :, :length]
            run.progress(len(latents))
        return waves

    def made(self, requests: Sequence[Request], run: Run, given: Given, length: int) -> Tensor:
        sounds = None if given.sounds is None else self.layout.fold(given.sounds)
        given = replace(given, sounds=sounds, keep=None if given.keep is None else given.keep[..., 0])

        def window(items: slice) -> Tensor:
            return _window(self, requests[items], [length] * len(requests[items]), 0, run, given, items)

        latents = self.layout.unfold(sampled(self.net, len(requests), run, window))
        return self.codec(run).decode(latents, [request.seed for request in requests])

    @property
    def encoded_shape(self) -> tuple[int, int]:
        return len(self.layout.mean), self.latent_frames

    def draws(self, requests: Sequence[Request], number: int = 0) -> Draw:
        """The noise of the window `number` of each sound."""
        return Draw.of_seeds([seed_of(request.seed, "window", number) for request in requests])

    def length(self, run: Run) -> int:
        seconds = run.sampling.seconds
        return min(max(1, round(seconds * self.sample_rate)), self.num_samples) if seconds else self.num_samples

    def conditions(self, requests: Sequence[Request], seconds: Sequence[float], run: Run) -> Conditions:
        """What the net is told of sounds that start at 0 and last `seconds`, on the run's device."""
        network = self.params.network
        captions = [request.caption for request in requests]
        states = self.told(captions, run) if self.text else [None] * len(requests)
        ends = torch.tensor(seconds)
        conditions = Conditions(
            *padded(states, network.text_tokens, network.text_width),
            torch.stack([label_weights(request.labels, self.labels) for request in requests]),
            torch.stack([torch.zeros_like(ends), ends], 1),
            torch.ones(len(requests), 2, dtype=torch.bool),
        )
        return Conditions(*(value.to(run.device) for value in conditions))

    @classmethod
    def components(cls, config: Config, directory: Path, whole: Path) -> dict[str, Any]:
        found = registry.latent_components(config.params.sampling, directory, whole)
        autoencoder = found["autoencoder"]
        channels, _, bands = autoencoder.latent_shape(config.frames)
        if {len(config.mean), len(config.deviation)} != {channels * bands}:
            raise UserError(
                f"{directory / checkpoint.CONFIG}: mean and deviation must have {channels * bands} values, one a channel"
            )
        layout = Layout(bands, torch.tensor(config.mean), torch.tensor(config.deviation), autoencoder.scaling_factor)
        return {**found, "layout": layout}


def sample(model: AudioDiT, requests: Sequence[Request], lengths: Sequence[int], run: Run) -> list[Tensor]:
    """x0 [channels, frames] of each request, on the CPU, for sounds of `lengths` samples; moves `model.net`.

    A sound up to the trained length has all frames of the latents: the net is told where it ends. A longer one has windows, of
    which each keeps the last frames of the one before (`sampling.overlap`, or more in the last) and generates the rest. Each is
    told to start at 0 and to last as long as the longest training clip: what follows that in the latents was silence.
    """
    places = [window_starts(length, model, run.sampling.overlap) for length in lengths]
    model.net.to(run.device)
    with torch.no_grad(), evaluating(model.net):
        x0 = list(_window(model, requests, lengths, 0, run, Given(), slice(None)))
        for number in range(1, max(map(len, places))):
            longer = [item for item, starts in enumerate(places) if number < len(starts)]
            for item in longer:
                x0[item] = x0[item][:, : places[item][number - 1] + told_frames(model)]
            whole = [model.num_samples] * len(longer)
            before = [x0[item][:, places[item][number] :] for item in longer]
            canvas, keep = torch.zeros(len(longer), *model.encoded_shape), torch.zeros(len(longer), 1, model.latent_frames).bool()
            for item, known in enumerate(before):
                canvas[item, :, : known.shape[1]], keep[item, :, : known.shape[1]] = known, True
            given = Given(canvas, keep=keep)
            found = _window(model, [requests[item] for item in longer], whole, number, run, given, slice(None)).cpu()
            for item, known, window in zip(longer, before, found, strict=True):
                x0[item] = torch.cat([x0[item], window[:, known.shape[1] :]], 1)
    return x0


def told_frames(model: AudioDiT) -> int:
    """Latents that lie whole within the longest training clip."""
    return max(1, model.num_samples // model.samples_per_latent)


def window_starts(length: int, model: AudioDiT, overlap: float) -> list[int]:
    """First latent of each window of a sound of `length` samples; the last window is the first that reaches the sound's end.

    It ends with the sound, but for a part of a latent, so that it is not told to be shorter than the others.
    """
    size = told_frames(model)
    last = math.ceil(max(0, length - model.num_samples) / model.samples_per_latent)
    return [*range(0, last, size - min(max(1, round(overlap * size)), size - 1)), last]


def _window(
    model: AudioDiT, requests: Sequence[Request], lengths: Sequence[int], number: int, run: Run, given: Given, items: slice
) -> Tensor:
    """One window [N, channels, frames] of each sound, which is told to last `lengths` samples, from `items` of what is given."""
    sampling, flow = run.sampling, model.params.flow
    seconds = [min(length, model.num_samples) / model.sample_rate for length in lengths]
    conditions = model.conditions(requests, seconds, run)
    denoise = in_precision(guided(model.net, conditions, hidden(conditions), sampling.guidance_scale), run)
    if sampling.solver == "dpm++_sde":
        steps = solvers.stable_audio(sampling.num_steps, run.device)
    elif flow.objective == "v":
        steps = solvers.velocity(sampling.num_steps)
    else:
        steps = solvers.flow(sampling.num_steps, sampling.solver, shift_of(flow, model.latent_frames))
    draw = model.draws(requests, number)
    return given.sample(items, given.steps(steps), denoise, model.encoded_shape, draw, run.device).cpu()


def shift_of(flow: FlowParams, frames: int) -> float:
    """How far times are moved towards noise for latents of `frames` frames."""
    return max(1.0, length_shift(frames, flow.base_frames)) if flow.base_frames else 1.0


load = AudioDiT.load


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
    autoencoder = registry.load_latent_codec(inputs / AUTOENCODER)
    about = read_about(directory, autoencoder.digest)
    item_seconds, frames = about.num_samples / autoencoder.sample_rate, about.num_samples // autoencoder.samples_per_frame
    shape, train = autoencoder.latent_shape(frames), list(known.train)
    known.learn_conditions(FAMILY, start, inputs / "text")

    def span(clip_id: str) -> tuple[float, float]:
        """What the net is told: start and end in the recording, or 0 and the clip's length (of an unknown one, the latents')."""
        row = known.facts[clip_id]
        begin = row["start"] if params.network.start else 0.0
        return begin, begin + (row["seconds"] or item_seconds)

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
        standard = layout(
            shape,
            autoencoder.scaling_factor,
            (posteriors.read(train.index(one)) for one in chosen),
            params.standardise == "together",
        )
    torch.manual_seed(params.seed)
    net = build_net(params, shape, len(known.labels))
    vocoder = registry.chosen_vocoder(params.sampling, parts, autoencoder.spec)
    longest = max(known.facts[clip_id]["seconds"] or item_seconds for clip_id in train)
    model = AudioDiT(params, net, autoencoder, frames, longest, standard, vocoder, **known.conditions)
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
    shape, items, network = registry.latent_shape(document, FAMILY), params.batch_size, params.network
    noise = (items, 2, *shape), (items, network.text_tokens, network.text_width)
    told = (
        torch.ones(items, network.text_tokens).bool(),
        torch.zeros(items, labels),
        torch.zeros(items, 2),
        torch.ones(items, 2).bool(),
    )
    solver = sampling.solver
    passes_per_step = 1 if params.flow.objective == "v" or solver == "dpm++_sde" else solvers.PASSES[solver]
    module = DiTModule(params, net, layout(shape, 1.0), shape[1], steps=1)
    return rehearsal(module, noise, told, passes_per_step * guided_passes(sampling, True))
