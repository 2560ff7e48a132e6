"""Train the family on crops of the training clips' waves, with all their channels."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from soundmill.diffusion.deviation import Deviation
from soundmill.diffusion.paths import Net
from soundmill.models.components.text_states.states import Texts
from soundmill.models.components.unet1d.network import UNet1d
from soundmill.models.components.unet1d.training import PathModule
from soundmill.models.components.waves.source import WaveCrops, deviation_of, form_of, gather_waves
from soundmill.models.family import Prepared, Rehearsal
from soundmill.models.params import read_clip_plan
from soundmill.models.preparing import Captioned, Clips, guided_passes, rehearsal
from soundmill.models.waveform_unet import model as models
from soundmill.models.waveform_unet.model import FAMILY, WaveformUNet
from soundmill.models.waveform_unet.params import SamplingParams, TrainParams
from soundmill.training.loader import Arrays, Batch, Source
from soundmill.training.seeds import seed_of

TIMED_TOKENS = 24  # tokens per caption when timing a step


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
    net = models.build_net(params, channels, len(known.labels))
    model = WaveformUNet(params, net, rate, channels, sigma_data, **known.conditions)
    module = WaveformModule(params, net, known.steps, sigma_data)
    return known.prepared(module, model, source_of, partial(draw, params), params.num_samples / rate, known.counts)


def rehearse(document: dict[str, Any], params: TrainParams, sampling: SamplingParams, net: UNet1d, labels: int) -> Rehearsal:
    """See models/family.py."""
    channels = read_clip_plan(document, FAMILY)["channels"]

    def values(rng: torch.Generator) -> tuple[Tensor, ...]:
        items = params.batch_size
        waves = torch.randn(items, channels, params.num_samples, generator=rng)
        states = torch.randn(items, TIMED_TOKENS, params.text.width, generator=rng)
        mask, without = torch.ones(items, TIMED_TOKENS, dtype=torch.bool), torch.zeros(items, dtype=torch.bool)
        return waves, *{"label": (torch.zeros(items, labels),), "caption": (states, mask, without), "none": ()}[params.condition]

    return rehearsal(WaveformModule(params, net, steps=1), values, guided_passes(sampling, params.condition != "none"))
