"""Train the family on crops of the training clips' waves (the mean of their channels) and their log-mels."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from soundmill.audio import mel
from soundmill.errors import UserError
from soundmill.models.catalog import waves_of
from soundmill.models.components.unet1d.params import SamplingParams
from soundmill.models.components.unet1d.vocoder.network import VocoderNet
from soundmill.models.components.unet1d.vocoder.training import VocoderModule
from soundmill.models.components.waves.source import Pairs, deviation_of, gather_waves, log_mels_of
from soundmill.models.diffusion_vocoder.model import FAMILY, VocodingModel
from soundmill.models.diffusion_vocoder.params import TrainParams
from soundmill.models.family import Prepared, Rehearsal
from soundmill.models.params import read_clip_plan
from soundmill.models.preparing import Clips, rehearsal
from soundmill.training.loader import crop_places


def prepare(params: TrainParams, ctx: Any, clips: Path, parts: Path, catalog: Path, start: VocodingModel | None) -> Prepared:
    """A training that starts from another keeps its scale."""
    known = Clips.read(params, ctx, catalog)
    _, (wave, rate) = next(waves_of(clips, set(known.train)))
    if params.mel.sample_rate != rate:
        raise UserError(f"{FAMILY}.train.mel.sample_rate is {params.mel.sample_rate}, but {clips} has {rate}; make them agree")

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
    """See models/family.py."""
    length, items = params.crop_frames * params.mel.hop_length, params.batch_size

    def values(rng: torch.Generator) -> tuple[torch.Tensor, ...]:
        log_mels = torch.randn(items, params.mel.n_mels, params.crop_frames, generator=rng)
        return log_mels, torch.randn(items, length, generator=rng)

    crops = read_clip_plan(document, FAMILY)["clip_seconds"] * params.mel.sample_rate / length  # in a sound
    return rehearsal(VocoderModule(net, params, steps=1), values, sampling.num_steps * crops)
