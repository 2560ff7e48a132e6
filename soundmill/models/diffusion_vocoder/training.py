"""Train the family on crops of the training clips' waves (the mean of their channels) and their log-mels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from soundmill import params as strict
from soundmill.audio import mel
from soundmill.errors import UserError
from soundmill.models.catalog import beginnings, choose_by_hash, read_weights, waves_of
from soundmill.models.components.unet1d.vocoder.network import VocoderNet
from soundmill.models.components.unet1d.vocoder.training import VocoderModule
from soundmill.models.components.waves.source import Pairs, gather_waves, log_mels_of, wave_deviation
from soundmill.models.diffusion_vocoder import model as models
from soundmill.models.diffusion_vocoder.model import FAMILY, VocodingModel
from soundmill.models.diffusion_vocoder.params import TrainParams
from soundmill.models.family import Prepared, Rehearsal
from soundmill.models.params import read_sections
from soundmill.training.loader import Batch, Order, crop_places
from soundmill.training.validation import HeldOut


def prepare(params: TrainParams, ctx: Any, clips: Path, parts: Path, catalog: Path, start: VocodingModel | None) -> Prepared:
    """A training that starts from another keeps its scale."""
    splits = read_weights(catalog)
    _, (wave, rate) = next(waves_of(clips, set(splits["train"])))
    if params.mel.sample_rate != rate:
        raise UserError(f"{FAMILY}.train.mel.sample_rate is {params.mel.sample_rate}, but {clips} has {rate}; make them agree")

    def source_of(clip_ids: Sequence[str]) -> Pairs:
        waves = gather_waves(clips, clip_ids, ctx.scratch, partial(mel.levelled, spec=params.mel))
        return Pairs(log_mels_of(waves, params.mel, ctx.scratch), waves, params.crop_frames, params.mel)

    train, sigma_data = source_of(list(splits["train"])), start.sigma_data if start else 1.0
    if params.unit_variance and not start:
        sigma_data = wave_deviation(train.waves, f"{FAMILY}.train.unit_variance")
    torch.manual_seed(params.seed)
    model = VocodingModel(params, VocoderNet(params.network, params.mel), len(wave), sigma_data)
    order = Order(params.seed, splits["train"], params.batch_size)
    unseen = choose_by_hash(list(splits["valid"]), params.validate_batches * params.batch_size)
    shown = beginnings(clips, unseen or list(splits["train"]), params.grid.columns * params.grid.rows // 2)
    return Prepared(
        VocoderModule(model.net, params, params.steps or order.steps(params.epochs), sigma_data=sigma_data),
        model,
        train,
        order,
        partial(crop_places, params.seed, params.batch_size),
        params.crop_frames * params.mel.hop_length / rate,
        clip_ids=list(splits["train"]),
        counts={},
        samples=torch.from_numpy(shown),
        columns=params.grid.columns,
        held_out=HeldOut(source_of(unseen), len(unseen)) if unseen else None,
        save=partial(models.save, model),
    )


def rehearse(document: dict[str, Any], num_labels: int) -> Rehearsal:
    """See models/family.py."""
    params, _, sampling = read_sections(document, FAMILY, TrainParams)
    clips = strict.section(document, f"clips.{document['families'][FAMILY]['clips']}", "params.yaml")
    length = params.crop_frames * params.mel.hop_length

    def batch(step: int) -> Batch:
        rng, items = torch.Generator().manual_seed(step), params.batch_size
        log_mels = torch.randn(items, params.mel.n_mels, params.crop_frames, generator=rng)
        return Batch(step, np.zeros(items, np.int64), (log_mels, torch.randn(items, length, generator=rng)))

    crops = clips["clip_seconds"] * params.mel.sample_rate / length  # in a sound
    passes = round(sampling.num_steps * crops)
    module = VocoderModule(VocoderNet(params.network, params.mel), params, steps=1)
    return Rehearsal(module, batch, clips=params.batch_size, passes=passes)
