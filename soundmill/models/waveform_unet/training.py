"""Train the family on crops of the training clips' waves, with all their channels."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from soundmill.diffusion.deviation import Deviation
from soundmill.models.catalog import waves_of
from soundmill.models.components.text_states.states import Texts
from soundmill.models.components.unet1d.training import VelocityModule
from soundmill.models.components.waves.source import WaveCrops, deviation_of, gather_waves
from soundmill.models.family import Prepared, Rehearsal
from soundmill.models.params import read_clip_plan, read_sections
from soundmill.models.preparing import Captioned, Clips, rehearsal
from soundmill.models.waveform_unet import model as models
from soundmill.models.waveform_unet.model import FAMILY, WaveformUNet
from soundmill.models.waveform_unet.params import TrainParams
from soundmill.training.loader import Arrays, Batch, Source
from soundmill.training.seeds import seed_of
from soundmill.training.starting import compare

TIMED_TOKENS = 24  # tokens per caption when timing a step


class WaveformModule(VelocityModule):
    """A batch: waves [b, channels, T], and label weights, or text states, their mask and a mask of items without caption."""

    def __init__(self, params: TrainParams, net: torch.nn.Module, steps: int, sigma_data: Deviation = 1.0):
        super().__init__(net, params, steps, params.accumulate, sigma_data)

    def loss(self, step: int, batch: Batch) -> Tensor:
        x0, *condition = batch.values
        chance = self.uniform(len(x0), self.rng("condition", step))
        dropped = chance < self.params.condition_dropout
        if self.params.condition == "label":
            condition = [condition[0] * ~dropped[:, None]]
        elif self.params.condition == "caption":
            states, mask, without = condition
            condition = [states.float(), mask, without | dropped]
        return self.v_loss(lambda xt, level: self.net(xt, level, *condition), x0, step)


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
    _, (wave, rate) = next(waves_of(clips, set(known.train)))
    channels = len(wave)
    if start:
        compare(params.start_from, _form(start.sample_rate, start.channels), _form(rate, channels))
    if params.condition == "label":
        known.know_labels(start, f"set {FAMILY}.train.condition to `none` or `caption`")
    text = None
    if params.condition == "caption":
        remedy = f"set {FAMILY}.train.condition to `none` or `label`"
        text = known.read_texts(parts / "text", params.text.width, remedy, "text.width")

    def waves_of_clips(clip_ids: Sequence[str]) -> Arrays:
        return gather_waves(clips, clip_ids, ctx.scratch, channels=channels)

    def source_of(clip_ids: Sequence[str]) -> Source:
        crops = WaveCrops(waves_of_clips(clip_ids), params.num_samples)
        return Captioned(crops, known.captions_of(clip_ids), _states) if text else known.labelled(crops, clip_ids)

    sigma_data = deviation_of(params, start, lambda: waves_of_clips(list(known.train)), FAMILY)
    torch.manual_seed(params.seed)
    net = models.build_net(params, channels, len(known.labels))
    model = WaveformUNet(params, net, rate, channels, known.labels, text, sigma_data, known.texts)
    module = WaveformModule(params, net, known.steps, sigma_data)
    counts = {"captions": len(known.captions)} if text else {"labels": len(known.labels)}
    save, draws = partial(models.save, model), partial(draw, params)
    return known.prepared(module, model, source_of, draws, params.num_samples / rate, save, counts)


def _form(rate: int, channels: int) -> dict[str, int]:
    return {"sample_rate": rate, "channels": channels}


def rehearse(document: dict[str, Any], num_labels: int) -> Rehearsal:
    """See models/family.py."""
    params, _, sampling = read_sections(document, FAMILY, TrainParams)
    channels = read_clip_plan(document, FAMILY)["channels"]
    labels = num_labels if params.condition == "label" else 0
    module = WaveformModule(params, models.build_net(params, channels, labels), steps=1)

    def values(rng: torch.Generator) -> tuple[Tensor, ...]:
        items = params.batch_size
        waves = torch.randn(items, channels, params.num_samples, generator=rng)
        states = torch.randn(items, TIMED_TOKENS, params.text.width, generator=rng)
        mask, without = torch.ones(items, TIMED_TOKENS, dtype=torch.bool), torch.zeros(items, dtype=torch.bool)
        return waves, *{"label": (torch.zeros(items, labels),), "caption": (states, mask, without), "none": ()}[params.condition]

    guided = sampling.guidance_scale != 1 and params.condition != "none"
    return rehearsal(module, params.batch_size, values, params.batch_size * params.accumulate, sampling.num_steps * (1 + guided))
