"""Train the family on crops of the training clips' waves, with all their channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from soundmill import manifest, shards
from soundmill import params as strict
from soundmill.diffusion.velocity import Deviation
from soundmill.errors import UserError
from soundmill.models.catalog import choose_by_hash, read_labels, read_weights, waves_of
from soundmill.models.components.text_states import states as text_states
from soundmill.models.components.text_states.states import Texts
from soundmill.models.components.unet1d.training import VelocityModule
from soundmill.models.components.waves.source import WaveCrops, gather_waves, wave_deviation, wave_deviation_per_frequency
from soundmill.models.family import Prepared, Rehearsal
from soundmill.models.labels import Labelled, known_labels, label_weights
from soundmill.models.params import read_sections
from soundmill.models.requests import of_captions, of_grid
from soundmill.models.waveform_unet import model as models
from soundmill.models.waveform_unet.model import FAMILY, WaveformUNet
from soundmill.models.waveform_unet.params import TrainParams
from soundmill.training.loader import Arrays, Batch, Order, Source
from soundmill.training.seeds import seed_of
from soundmill.training.starting import compare
from soundmill.training.validation import HeldOut

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


@dataclass(frozen=True)
class Captioned:
    """A source that appends the states of one caption per item, their mask, and a mask of items without caption [b].

    `drawn` [b, 2] in [0, 1): for the other source, and to select a caption.
    """

    source: Source
    captions: Sequence[Sequence[int]]  # numbers of each item's captions
    texts: Texts

    def batch(self, items: np.ndarray, drawn: np.ndarray) -> tuple[Tensor, ...]:
        chosen = [self._caption(item, which) for item, which in zip(items, drawn[:, 1].tolist(), strict=True)]
        without = torch.tensor([number is None for number in chosen])
        return *self.source.batch(items, drawn[:, 0]), *self.texts.padded(chosen), without

    def _caption(self, item: int, which: float) -> int | None:
        captions = self.captions[item]
        return captions[int(which * len(captions))] if captions else None


def draw(params: TrainParams, step: int) -> Tensor:
    """Random numbers for the start of each crop, and for its caption: [B] or [B, 2], in [0, 1)."""
    drawn = torch.rand(params.batch_size, 2, generator=torch.Generator().manual_seed(seed_of(params.seed, "crop", step)))
    if params.crop == "start":
        drawn[:, 0] = 0
    return drawn if params.condition == "caption" else drawn[:, 0]


def prepare(params: TrainParams, ctx: Any, clips: Path, parts: Path, catalog: Path, start: WaveformUNet | None) -> Prepared:
    """Reads text/ in `parts` if conditioned on captions. A training that starts from another keeps its labels and scale."""
    splits = read_weights(catalog)
    _, (wave, rate) = next(waves_of(clips, set(splits["train"])))
    channels = len(wave)
    if start:
        compare(params.start_from, _form(start.sample_rate, start.channels), _form(rate, channels))
    clip_labels = {clip_id: labels for of_split in read_labels(catalog).values() for clip_id, labels in of_split.items()}
    labels = []
    if params.condition == "label":
        train_labels = [clip_labels[clip_id] for clip_id in splits["train"]]
        labels = known_labels(
            train_labels, start.labels if start else (), catalog, f"set {FAMILY}.train.condition to `none` or `caption`"
        )
    captions = _captions(catalog) if params.condition == "caption" else {}
    all_captions = sorted({caption for clip_captions in captions.values() for caption in clip_captions})
    texts = text = None
    if params.condition == "caption":
        texts = text_states.read_texts(parts / "text", all_captions, "zeros", params.text.width, ctx.scratch)
        text = text_states.read_config(parts / "text")

    def waves_of_clips(clip_ids: Sequence[str]) -> Arrays:
        return gather_waves(clips, clip_ids, ctx.scratch, channels=channels)

    def source_of(clip_ids: Sequence[str]) -> Source:
        crops = WaveCrops(waves_of_clips(clip_ids), params.num_samples)
        if params.condition == "label":
            return Labelled(crops, torch.stack([label_weights(clip_labels[clip_id], labels) for clip_id in clip_ids]))
        if texts is not None:
            numbers = {caption: number for number, caption in enumerate(all_captions)}
            return Captioned(crops, [[numbers[one] for one in captions[clip_id]] for clip_id in clip_ids], texts)
        return crops

    sigma_data = start.sigma_data if start else 1.0
    if params.unit_variance and not start:
        measure = wave_deviation_per_frequency if params.unit_variance == "per_frequency" else wave_deviation
        sigma_data = measure(waves_of_clips(list(splits["train"])), f"{FAMILY}.train.unit_variance")
    torch.manual_seed(params.seed)
    net = models.build_net(params, channels, len(labels))
    model = WaveformUNet(params, net, rate, channels, labels, text, sigma_data, texts)
    order = Order(params.seed, splits["train"], params.batch_size)
    steps = params.steps or -(-order.steps(params.epochs) // params.accumulate)
    unseen = choose_by_hash(list(splits["valid"]), params.validate_batches * params.batch_size)
    samples = of_captions(params.grid, params.seed, all_captions) if texts else of_grid(params.grid, params.seed, labels)
    return Prepared(
        WaveformModule(params, net, steps, sigma_data),
        model,
        source_of(list(splits["train"])),
        order,
        partial(draw, params),
        params.num_samples / rate,
        clip_ids=list(splits["train"]),
        counts={"captions": len(all_captions)} if texts else {"labels": len(labels)},
        samples=samples,
        columns=params.grid.columns,
        held_out=HeldOut(source_of(unseen), len(unseen)) if unseen else None,
        save=partial(models.save, model),
    )


def _form(rate: int, channels: int) -> dict[str, int]:
    return {"sample_rate": rate, "channels": channels}


def _captions(catalog: Path) -> Mapping[str, list[str]]:
    """Captions by clip id; UserError if no clip has one."""
    rows = shards.read_table(catalog, manifest.CATALOG, ["clip_id", "captions"]).to_pylist()
    captions = {row["clip_id"]: [caption for caption in row["captions"] or [] if caption] for row in rows}
    if not any(captions.values()):
        raise UserError(f"{catalog}: no clip has a caption; set {FAMILY}.train.condition to `none` or `label`")
    return captions


def rehearse(document: dict[str, Any], num_labels: int) -> Rehearsal:
    """See models/family.py."""
    params, _, sampling = read_sections(document, FAMILY, TrainParams)
    channels = strict.section(document, f"clips.{document['families'][FAMILY]['clips']}", "params.yaml")["channels"]
    labels = num_labels if params.condition == "label" else 0
    module = WaveformModule(params, models.build_net(params, channels, labels), steps=1)

    def batch(step: int) -> Batch:
        rng, items = torch.Generator().manual_seed(step), params.batch_size
        waves = torch.randn(items, channels, params.num_samples, generator=rng)
        states = torch.randn(items, TIMED_TOKENS, params.text.width, generator=rng)
        mask, without = torch.ones(items, TIMED_TOKENS, dtype=torch.bool), torch.zeros(items, dtype=torch.bool)
        condition = {"label": (torch.zeros(items, labels),), "caption": (states, mask, without), "none": ()}[params.condition]
        return Batch(step, np.zeros(items, np.int64), (waves, *condition))

    guided = sampling.guidance_scale != 1 and params.condition != "none"
    return Rehearsal(module, batch, clips=params.batch_size * params.accumulate, passes=sampling.num_steps * (1 + guided))
