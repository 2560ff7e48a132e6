"""Train the family on crops of the training clips' waves; clips shorter than a crop are left out."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from soundmill.audio import mel
from soundmill.errors import UserError
from soundmill.models.catalog import durations_of, waves_of
from soundmill.models.components.diffwave import prior
from soundmill.models.components.diffwave.network import DiffWaveNet
from soundmill.models.components.diffwave.params import SamplingParams
from soundmill.models.components.diffwave.training import DiffWaveModule
from soundmill.models.components.diffwave.vocoder import schedule
from soundmill.models.components.waves.source import Pairs, WaveCrops, deviation_of, gather_waves, log_mels_of
from soundmill.models.diffwave import model as models
from soundmill.models.diffwave.model import FAMILY, Generating, Vocoding
from soundmill.models.diffwave.params import TrainParams
from soundmill.models.family import Prepared, Rehearsal
from soundmill.models.params import read_clip_plan
from soundmill.models.preparing import Clips, rehearsal
from soundmill.training.loader import Source, crop_places
from soundmill.training.starting import compare


def prepare(
    params: TrainParams, ctx: Any, clips: Path, parts: Path, catalog: Path, start: Vocoding | Generating | None
) -> Prepared:
    """A training that starts from another keeps its labels and scale; UserError if the rate or mel spec differs."""
    schedule(params.noise, params.sampling)  # raises before the training if they do not fit
    params.check_spec(None)
    known = Clips.read(params, ctx, catalog)
    seconds, weights = durations_of(clips, [*known.train, *known.valid]), known.train
    _, (_, rate) = next(waves_of(clips, set(weights)))
    check_rate(params, rate, clips, start)
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
        return known.told(source(params, rate, clips, clip_ids, ctx.scratch), clip_ids)

    sigma_data = deviation_of(params, start, lambda: gather_waves(clips, list(known.train), ctx.scratch), FAMILY)
    torch.manual_seed(params.seed)
    net = models.build_net(params, len(known.labels))
    model = models.kind_of(params)(params, net, rate, sigma_data, **known.conditions)
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


def check_rate(params: TrainParams, rate: int, clips: Path, start: Vocoding | Generating | None) -> None:
    """UserError if the sample rate of mels or of the start checkpoint differs from the clips', or its mel spec differs."""
    if params.condition == "mel" and params.mel.sample_rate != rate:
        raise UserError(f"{FAMILY}.train.mel.sample_rate is {params.mel.sample_rate}, but {clips} has {rate}; make them agree")
    if start:
        mels = params.condition == "mel"
        theirs = {"sample_rate": start.sample_rate, "mel": start.params.mel.model_dump() if mels else {}}
        compare(params.start_from, theirs, {"sample_rate": rate, "mel": params.mel.model_dump() if mels else {}})


def source(params: TrainParams, rate: int, clips: Path, clip_ids: Sequence[str], scratch: Path) -> Source:
    """The source of crops for DiffWaveModule, without labels."""
    if params.condition != "mel":
        return WaveCrops(gather_waves(clips, clip_ids, scratch), params.crop_samples(rate))
    waves = gather_waves(clips, clip_ids, scratch, partial(mel.levelled, spec=params.mel))
    log_mels = log_mels_of(waves, params.mel, scratch)
    if params.noise.prior == "mel":
        waves = gather_waves(clips, clip_ids, scratch / "whitened", partial(prior.whitened, spec=params.mel))
    return Pairs(log_mels, waves, params.crop_frames, params.mel)


def rehearse(document: dict[str, Any], params: TrainParams, sampling: SamplingParams, net: DiffWaveNet, labels: int) -> Rehearsal:
    """See models/family.py."""
    clips = read_clip_plan(document, FAMILY)
    mels, length = params.condition == "mel", params.crop_samples(clips["sample_rate"])
    module = DiffWaveModule(params, net, params.noise, steps=1, spec=params.mel if mels else None)

    def values(rng: torch.Generator) -> tuple[Tensor, ...]:
        waves = torch.randn(params.batch_size, 1, length, generator=rng)
        condition = torch.randn(params.batch_size, params.mel.n_mels, params.crop_frames, generator=rng)
        told = (waves, torch.zeros(params.batch_size, params.text_width or labels))
        return {"mel": (condition, waves[:, 0]), "none": (waves,)}.get(params.condition, told)

    crops = clips["clip_seconds"] / params.crop_seconds if mels else 1.0  # in a sound
    return rehearsal(module, values, len(schedule(params.noise, sampling)[0]) * crops)
