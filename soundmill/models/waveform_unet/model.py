"""A U-Net of waves: its model and checkpoint, and its training on crops of the training clips, with all their channels."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from soundmill.diffusion import solvers
from soundmill.diffusion.paths import Deviation, Net, on_unit_variance, scaled
from soundmill.diffusion.sampling import Condition, Draw, Given, guided, slerp
from soundmill.models.components.text_states import states as text_states
from soundmill.models.components.text_states.states import TextConfig, Texts
from soundmill.models.components.unet1d.network import PathModule, UNet1d
from soundmill.models.components.waves.source import WaveCrops, deviation_of, form_of, gather_waves
from soundmill.models.family import FamilyConfig, Prepared, Rehearsal, Request, Run
from soundmill.models.params import read_clip_plan
from soundmill.models.preparing import Captioned, Clips, guided_passes, rehearsal
from soundmill.models.sounds import in_precision, mask_of, noise_of, sampled
from soundmill.models.trained import TrainedModel
from soundmill.models.waveform_unet import SamplingParams, TrainParams
from soundmill.training.loader import Arrays, Batch, Source
from soundmill.training.seeds import seed_of

FAMILY = "waveform_unet"
TIMED_TOKENS = 24  # tokens per caption when timing a step


class Config(FamilyConfig):
    family: Literal["waveform_unet"] = FAMILY
    params: TrainParams
    sample_rate: int
    channels: int = Field(ge=1, le=64)
    labels: list[str]
    text: TextConfig | None
    sigma_data: PositiveFloat | Annotated[list[PositiveFloat], Field(min_length=2)] = 1.0  # earlier checkpoints lack it


def build_net(params: TrainParams, channels: int, num_labels: int) -> UNet1d:
    text = {"text_width": params.text.width, "null_tokens": params.text.null_tokens} if params.condition == "caption" else {}
    labels = {"num_labels": num_labels} if params.condition == "label" else {}
    return UNet1d(params.network, params.transform, channels, channels, **labels, **text)


@dataclass
class WaveformUNet(TrainedModel):
    config, weights, build_net = Config, "unet.safetensors", staticmethod(build_net)

    sample_rate: int
    channels: int
    sigma_data: Deviation = 1.0  # of the waves, by which the net's input is divided

    @property
    def num_samples(self) -> int:
        return self.params.num_samples

    def generate(self, requests: Sequence[Request], run: Run) -> Tensor:
        """Noise → waves; a request without label or caption is unconditional."""
        return self._made(requests, run, Given(noise=self._noise(requests)))

    def transform(self, waves: Tensor, requests: Sequence[Request], run: Run) -> Tensor:
        """Restyle by `amount`, or if `keep` is set regenerate everything else; shorter waves are padded with silence."""
        sampling, length = run.sampling, waves.shape[2]
        kept = None if sampling.keep is None else mask_of([*sampling.keep, [length, self.num_samples]], self.num_samples)
        given = Given(self._padded(waves), sampling.amount, kept, sampling.resamples, self._noise(requests))
        return self._made(requests, run, given)[..., :length]

    def interpolate(self, ends: tuple[Request, Request], waves: Tensor | None, shares: Sequence[float], run: Run) -> Tensor:
        """See models/family.py; recordings are mixed, noised by `amount` and denoised."""
        first, second = noise_of(ends, self.channels, self.num_samples)
        noise = scaled(torch.stack([slerp(first, second, share) for share in shares]), self.sigma_data)
        given, length = Given(noise=noise), self.num_samples
        if waves is not None:
            sounds = torch.stack([torch.lerp(*self._padded(waves), share) for share in shares])
            given, length = Given(sounds, run.sampling.amount, noise=noise), waves.shape[2]
        return self._made([ends[0]] * len(shares), run, given)[..., :length]

    def _noise(self, requests: Sequence[Request]) -> Tensor:
        return scaled(noise_of(requests, self.channels, self.num_samples), self.sigma_data)

    def _padded(self, waves: Tensor) -> Tensor:
        return torch.nn.functional.pad(waves, (0, self.num_samples - waves.shape[2]))

    def _made(self, requests: Sequence[Request], run: Run, given: Given) -> Tensor:
        """Waves [N, channels, num_samples] of what `given` begins with."""

        def work(items: slice) -> Tensor:
            condition, null = self._conditions(requests[items], run)
            scale = run.sampling.guidance_scale if condition else 1.0
            denoise = on_unit_variance(in_precision(guided(self.net, condition, null, scale), run), self.sigma_data)
            steps = given.steps(solvers.continuous(self.params.path, run.sampling.num_steps))
            draw = Draw.of_seeds([request.seed for request in requests[items]], self.sigma_data)
            return given.sample(items, steps, denoise, (self.channels, self.num_samples), draw, run.device)

        return sampled(self.net, len(requests), run, work)

    def _conditions(self, requests: Sequence[Request], run: Run) -> tuple[Condition, Condition]:
        """The conditions of the requests, and the null condition, as the network takes them."""
        if self.condition == "none":
            return (), ()
        if self.condition == "labels":
            weights = self.vectors(requests, run).to(run.device)
            return (weights,), (torch.zeros_like(weights),)
        captions = [request.caption for request in requests]
        values, mask = text_states.pad(self.states(captions, run))
        text = values.float().to(run.device), mask.to(run.device)
        dropped = torch.tensor([not caption for caption in captions], device=run.device)
        return (*text, dropped), (*text, torch.ones_like(dropped))


load = WaveformUNet.load


class WaveformModule(PathModule):
    """A batch: waves [b, channels, T], and label weights, or text states, their mask and a mask of items without caption."""

    def __init__(self, params: TrainParams, net: nn.Module, steps: int, sigma_data: Deviation = 1.0):
        super().__init__(net, params, steps, params.accumulate, sigma_data, params.path)

    def target(self, step: int, batch: Batch) -> tuple[Net, Tensor]:
        x0, *condition = batch.values
        chance = self.uniform(len(x0), self.rng("condition", step))
        dropped = chance < self.params.condition_dropout
        if self.params.condition == "label":
            condition = [condition[0] * ~dropped[:, None]]
        elif self.params.condition == "caption":
            states, mask, without = condition
            condition = [states.float(), mask, without | dropped]
        return lambda xt, level: self.net(xt, level, *condition), x0


def _states(texts: Texts, numbers: Sequence[int | None]) -> tuple[Tensor, ...]:
    """States of captions, their mask, and a mask of items without caption [b]."""
    return *texts.padded(numbers), torch.tensor([number is None for number in numbers])


def draw(params: TrainParams, step: int) -> Tensor:
    """Random numbers for the start of each crop, and for its caption: [B] or [B, 2], in [0, 1)."""
    drawn = torch.rand(params.batch_size, 2, generator=torch.Generator().manual_seed(seed_of(params.seed, "crop", step)))
    if params.crop == "start":
        drawn[:, 0] = 0
    return drawn if params.condition == "caption" else drawn[:, 0]


def prepare(params: TrainParams, ctx: Any, clips: Path, parts: Path, catalog: Path, start: WaveformUNet | None) -> Prepared:
    """Reads text/ in `parts` if conditioned on captions. A training that starts from another keeps its labels and scale."""
    known = Clips.read(params, ctx, catalog)
    channels, rate = form_of(params, clips, known.train, start)
    known.learn_conditions(FAMILY, start, parts / "text")

    def waves_of_clips(clip_ids: Sequence[str]) -> Arrays:
        return gather_waves(clips, clip_ids, ctx.scratch, channels=channels)

    def source_of(clip_ids: Sequence[str]) -> Source:
        crops = WaveCrops(waves_of_clips(clip_ids), params.num_samples)
        if not known.text:
            return known.labelled(crops, clip_ids)
        return Captioned(crops, known.captions_of(clip_ids), partial(_states, known.texts))

    sigma_data = deviation_of(params, start, lambda: waves_of_clips(list(known.train)), FAMILY)
    torch.manual_seed(params.seed)
    net = build_net(params, channels, len(known.labels))
    model = WaveformUNet(params, net, rate, channels, sigma_data, **known.conditions)
    module = WaveformModule(params, net, known.steps, sigma_data)
    return known.prepared(module, model, source_of, partial(draw, params), params.num_samples / rate, known.counts)


def rehearse(document: dict[str, Any], params: TrainParams, sampling: SamplingParams, net: UNet1d, labels: int) -> Rehearsal:
    channels = read_clip_plan(document, FAMILY)["channels"]
    items, told = params.batch_size, ()
    noise = [(items, channels, params.num_samples)]
    if params.condition == "label":
        told = (torch.zeros(items, labels),)
    elif params.condition == "caption":
        noise.append((items, TIMED_TOKENS, params.text.width))
        told = torch.ones(items, TIMED_TOKENS).bool(), torch.zeros(items).bool()
    module = WaveformModule(params, net, steps=1)
    return rehearsal(module, noise, told, guided_passes(sampling, params.condition != "none"))
