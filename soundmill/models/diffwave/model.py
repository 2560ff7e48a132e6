"""DiffWave: its models and checkpoint, and its training on crops of the training clips' waves.

Clips shorter than a crop are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from soundmill.audio import mel
from soundmill.diffusion.sampling import Draw, sample
from soundmill.diffusion.solvers import ancestral
from soundmill.errors import UserError
from soundmill.models import family
from soundmill.models.catalog import durations_of, waves_of
from soundmill.models.components import vocoding
from soundmill.models.components.diffwave import SamplingParams, vocoder
from soundmill.models.components.diffwave.vocoder import DiffWave, DiffWaveModule, DiffWaveNet, schedule
from soundmill.models.components.text_states.states import TextConfig
from soundmill.models.components.waves.source import Pairs, WaveCrops, deviation_of, gather_waves, log_mels_of
from soundmill.models.diffwave import TrainParams
from soundmill.models.family import FamilyConfig, Prepared, Rehearsal, Request, Run
from soundmill.models.params import read_clip_plan
from soundmill.models.preparing import Clips, rehearsal
from soundmill.models.sounds import in_precision, sampled
from soundmill.models.trained import TrainedModel
from soundmill.training.checkpoint import compare
from soundmill.training.loader import Source, crop_places
from soundmill.training.seeds import seed_of

FAMILY = "diffwave"


class Config(FamilyConfig):
    family: Literal["diffwave"] = FAMILY
    params: TrainParams
    sample_rate: int
    labels: list[str]
    text: TextConfig | None = None  # if conditioned on captions; earlier checkpoints lack it
    sigma_data: float = Field(1.0, gt=0)  # earlier checkpoints lack it


def build_net(params: TrainParams, channels: int, num_labels: int) -> DiffWaveNet:
    spec = params.mel if params.condition == "mel" else None
    return DiffWaveNet(params.network, spec, {"label": num_labels, "caption": params.text_width}.get(params.condition))


@dataclass
class _DiffWaveModel(TrainedModel):
    config, channels, build_net = Config, 1, staticmethod(build_net)

    sample_rate: int
    sigma_data: float = 1.0  # standard deviation of the waves, by which the net's input is divided


class Vocoding(vocoding.ByLogMels, _DiffWaveModel):
    """By log-mels: it reconstructs."""

    @property
    def vocoder(self) -> DiffWave:
        params = self.params
        return DiffWave(params.network, params.noise, params.sampling, params.mel, self.net)


class Generating(_DiffWaveModel):
    """Of whole crops, by label, by caption or unconditional: it generates."""

    @property
    def num_samples(self) -> int:
        return self.params.crop_samples(self.sample_rate)

    def generate(self, requests: Sequence[Request], run: Run) -> Tensor:
        """Noise → waves; the condition is a request's caption, or averages its labels, or is a label drawn by its seed."""
        betas, timesteps = schedule(self.params.noise, run.sampling)

        def work(items: slice) -> Tensor:
            part = requests[items]
            condition = self._conditions(part, run)
            denoise = in_precision(lambda xt, t: self.net(xt, t, condition), run)
            draw = Draw.of_seeds([request.seed for request in part])
            noise = draw.noise((self.channels, self.num_samples)).to(run.device)
            return self.sigma_data * sample(ancestral(betas, timesteps, 1 / self.sigma_data), denoise, noise, draw)

        return sampled(self.net, len(requests), run, work)

    def _conditions(self, requests: Sequence[Request], run: Run) -> Tensor | None:
        if self.condition == "none":
            return None
        if self.labels:
            drawn = [np.random.default_rng(seed_of(one.seed, "label")).integers(len(self.labels)) for one in requests]
            pairs = zip(requests, drawn, strict=True)
            requests = [replace(one, labels=one.labels or (self.labels[label],)) for one, label in pairs]
        return self.vectors(requests, run).to(run.device)


def kind_of(params: TrainParams) -> type[Vocoding] | type[Generating]:
    return Vocoding if params.condition == "mel" else Generating


def load(directory: Path) -> Vocoding | Generating:
    return kind_of(family.read_config(directory, Config).params).load(directory)


def prepare(
    params: TrainParams, ctx: Any, clips: Path, parts: Path, catalog: Path, start: Vocoding | Generating | None
) -> Prepared:
    """A training that starts from another keeps its labels and scale; UserError if the rate or mel spec differs."""
    known = Clips.read(params, ctx, catalog)
    seconds, weights = durations_of(clips, [*known.train, *known.valid]), known.train
    _, (_, rate) = next(waves_of(clips, set(weights)))
    params.check_spec(None, rate, str(clips))
    if start:
        mels = params.condition == "mel"
        theirs = {"sample_rate": start.sample_rate, "mel": start.params.mel.model_dump() if mels else {}}
        compare(params.start_from, theirs, {"sample_rate": rate, "mel": params.mel.model_dump() if mels else {}})
    length = params.crop_samples(rate)
    known.train = {one: weight for one, weight in weights.items() if round(seconds[one] * rate) >= length}
    known.valid = [one for one in known.valid if round(seconds[one] * rate) >= length]
    if not known.train:
        longest = max(seconds[one] for one in weights)
        raise UserError(
            f"{clips}: none of {len(weights)} training clips is as long as a crop of {params.crop_seconds:g} s, the "
            f"longest has {longest:g} s; lower {FAMILY}.train.crop_seconds, or fill clips with silence "
            f"(`clips.{clips.name}.tail: pad`)"
        )
    known.learn_conditions(FAMILY, start, parts / "text")

    def source_of(clip_ids: Sequence[str]) -> Source:
        """Crops for DiffWaveModule, and what is told of each."""
        if params.condition != "mel":
            return known.told(WaveCrops(gather_waves(clips, clip_ids, ctx.scratch), length), clip_ids)
        waves = gather_waves(clips, clip_ids, ctx.scratch, partial(mel.levelled, spec=params.mel))
        log_mels = log_mels_of(waves, params.mel, ctx.scratch)
        if params.noise.prior == "mel":
            waves = gather_waves(clips, clip_ids, ctx.scratch / "whitened", partial(vocoder.whitened, spec=params.mel))
        return Pairs(log_mels, waves, params.crop_frames, params.mel)

    sigma_data = deviation_of(params, start, lambda: gather_waves(clips, list(known.train), ctx.scratch), FAMILY)
    torch.manual_seed(params.seed)
    net = build_net(params, 1, len(known.labels))
    model = kind_of(params)(params, net, rate, sigma_data, **known.conditions)
    spec = params.mel if params.condition == "mel" else None
    return known.prepared(
        DiffWaveModule(params, net, params.noise, known.steps, spec, sigma_data),
        model,
        source_of,
        known.drawing(partial(crop_places, params.seed, params.batch_size)),
        length / rate,
        {"dropped": len(weights) - len(known.train), **known.counts},
        known.shown(clips).mean(1, keepdim=True) if spec else None,
    )


def rehearse(document: dict[str, Any], params: TrainParams, sampling: SamplingParams, net: DiffWaveNet, labels: int) -> Rehearsal:
    clips = read_clip_plan(document, FAMILY)
    mels, length = params.condition == "mel", params.crop_samples(clips["sample_rate"])
    module = DiffWaveModule(params, net, params.noise, steps=1, spec=params.mel if mels else None)
    items, told = params.batch_size, ()
    noise = [(items, params.mel.n_mels, params.crop_frames), (items, length)] if mels else [(items, 1, length)]
    if params.condition in ("label", "caption"):
        told = (torch.zeros(items, params.text_width or labels),)
    crops = clips["clip_seconds"] / params.crop_seconds if mels else 1.0  # in a sound
    return rehearsal(module, noise, told, len(schedule(params.noise, sampling)[0]) * crops)
