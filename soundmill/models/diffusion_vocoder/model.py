"""A diffusion vocoder: its model and checkpoint, and its training.

It is trained on crops of the training clips' waves (the mean of their channels) and their log-mels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from soundmill.audio import mel
from soundmill.models.catalog import waves_of
from soundmill.models.components.unet1d.params import SamplingParams
from soundmill.models.components.unet1d.vocoder.vocoder import DiffusionVocoder, VocoderModule, VocoderNet
from soundmill.models.components.vocoding import ByLogMels
from soundmill.models.components.waves.source import Pairs, deviation_of, gather_waves, log_mels_of
from soundmill.models.diffusion_vocoder import TrainParams
from soundmill.models.family import FamilyConfig, Prepared, Rehearsal
from soundmill.models.params import read_clip_plan
from soundmill.models.preparing import Clips, rehearsal
from soundmill.models.trained import TrainedModel
from soundmill.training.loader import crop_places

FAMILY = "diffusion_vocoder"


class Config(FamilyConfig):
    family: Literal["diffusion_vocoder"] = FAMILY
    params: TrainParams
    channels: int = Field(ge=1, le=64)
    sigma_data: float = Field(1.0, gt=0)  # earlier checkpoints lack it


def build_net(params: TrainParams, channels: int, num_labels: int = 0) -> VocoderNet:
    return VocoderNet(params.network, params.mel)


@dataclass
class VocodingModel(ByLogMels, TrainedModel):
    """A `Model` (models/family.py) that reconstructs, one channel at a time."""

    config, build_net = Config, staticmethod(build_net)

    channels: int
    sigma_data: float = 1.0  # standard deviation of the waves, by which the net's input is divided

    @property
    def sample_rate(self) -> int:
        return self.params.mel.sample_rate

    @property
    def vocoder(self) -> DiffusionVocoder:
        return DiffusionVocoder(self.params.network, self.params.sampling, self.params.mel, self.net, self.sigma_data)


load = VocodingModel.load


def prepare(params: TrainParams, ctx: Any, clips: Path, parts: Path, catalog: Path, start: VocodingModel | None) -> Prepared:
    """A training that starts from another keeps its scale."""
    known = Clips.read(params, ctx, catalog)
    _, (wave, rate) = next(waves_of(clips, set(known.train)))
    params.check_spec(None, rate, str(clips))

    def source_of(clip_ids: Sequence[str]) -> Pairs:
        waves = gather_waves(clips, clip_ids, ctx.scratch, partial(mel.levelled, spec=params.mel))
        return Pairs(log_mels_of(waves, params.mel, ctx.scratch), waves, params.crop_frames, params.mel)

    sigma_data = deviation_of(params, start, lambda: source_of(list(known.train)).waves, FAMILY)
    torch.manual_seed(params.seed)
    model = VocodingModel(params, VocoderNet(params.network, params.mel), len(wave), sigma_data)
    module = VocoderModule(model.net, params, known.steps, sigma_data=sigma_data)
    draw, seconds = partial(crop_places, params.seed, params.batch_size), params.crop_frames * params.mel.hop_length / rate
    return known.prepared(module, model, source_of, draw, seconds, {}, known.shown(clips))


def rehearse(document: dict[str, Any], params: TrainParams, sampling: SamplingParams, net: VocoderNet, labels: int) -> Rehearsal:
    length, items = params.crop_frames * params.mel.hop_length, params.batch_size
    noise = (items, params.mel.n_mels, params.crop_frames), (items, length)  # log-mels and waves
    crops = read_clip_plan(document, FAMILY)["clip_seconds"] * params.mel.sample_rate / length  # in a sound
    return rehearsal(VocoderModule(net, params, steps=1), noise, (), sampling.num_steps * crops)
