"""Train the family on crops of the training clips' waves, with all their channels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from soundmill import params as strict
from soundmill.models.catalog import beginnings, choose_by_hash, read_weights, waves_of
from soundmill.models.components.unet1d.training import VelocityModule
from soundmill.models.components.waves.source import WaveCrops, gather_waves, wave_deviation
from soundmill.models.family import Prepared, Rehearsal
from soundmill.models.params import read_sections
from soundmill.models.upsampler import model as models
from soundmill.models.upsampler.model import FAMILY, Upsampler, without_upper_band
from soundmill.models.upsampler.params import TrainParams
from soundmill.training.loader import Batch, Order, crop_places
from soundmill.training.starting import compare
from soundmill.training.validation import HeldOut


class UpsamplerModule(VelocityModule):
    """A batch: waves [b, channels, T]."""

    def loss(self, step: int, batch: Batch) -> Tensor:
        (waves,) = batch.values
        with torch.autocast(self.device.type, enabled=False):
            low = without_upper_band(waves.float(), self.params.factor) / self.sigma_data
        return self.v_loss(lambda xt, level: self.net(xt, level, beside=low), waves, step)


def prepare(params: TrainParams, ctx: Any, clips: Path, parts: Path, catalog: Path, start: Upsampler | None) -> Prepared:
    """A training that starts from another keeps its scale."""
    splits = read_weights(catalog)
    _, (wave, rate) = next(waves_of(clips, set(splits["train"])))
    channels = len(wave)
    if start:
        theirs = {"sample_rate": start.sample_rate, "channels": start.channels}
        compare(params.start_from, theirs, {"sample_rate": rate, "channels": channels})

    def source_of(clip_ids: Sequence[str]) -> WaveCrops:
        return WaveCrops(gather_waves(clips, clip_ids, ctx.scratch, channels=channels), params.num_samples)

    train, sigma_data = source_of(list(splits["train"])), start.sigma_data if start else 1.0
    if params.unit_variance and not start:
        sigma_data = wave_deviation(train.waves, f"{FAMILY}.train.unit_variance")
    torch.manual_seed(params.seed)
    model = Upsampler(params, models.build_net(params, channels), rate, channels, sigma_data)
    order = Order(params.seed, splits["train"], params.batch_size)
    unseen = choose_by_hash(list(splits["valid"]), params.validate_batches * params.batch_size)
    shown = beginnings(clips, unseen or list(splits["train"]), params.grid.columns * params.grid.rows // 2)
    return Prepared(
        UpsamplerModule(model.net, params, params.steps or order.steps(params.epochs), sigma_data=sigma_data),
        model,
        train,
        order,
        partial(_places, params),
        params.num_samples / rate,
        clip_ids=list(splits["train"]),
        counts={},
        samples=torch.from_numpy(shown)[..., : params.num_samples],
        columns=params.grid.columns,
        held_out=HeldOut(source_of(unseen), len(unseen)) if unseen else None,
        save=partial(models.save, model),
    )


def _places(params: TrainParams, step: int) -> Tensor:
    """Relative start of each crop, [B] in [0, 1)."""
    return torch.zeros(params.batch_size) if params.crop == "start" else crop_places(params.seed, params.batch_size, step)


def rehearse(document: dict[str, Any], num_labels: int) -> Rehearsal:
    """See models/family.py."""
    params, _, sampling = read_sections(document, FAMILY, TrainParams)
    clips = strict.section(document, f"clips.{document['families'][FAMILY]['clips']}", "params.yaml")

    def batch(step: int) -> Batch:
        shape = params.batch_size, clips["channels"], params.num_samples
        waves = torch.randn(shape, generator=torch.Generator().manual_seed(step))
        return Batch(step, np.zeros(params.batch_size, np.int64), (waves,))

    windows = max(1.0, clips["clip_seconds"] * clips["sample_rate"] / params.num_samples)
    module = UpsamplerModule(models.build_net(params, clips["channels"]), params, steps=1)
    return Rehearsal(module, batch, clips=params.batch_size, passes=round(sampling.num_steps * windows))
