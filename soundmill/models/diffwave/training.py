"""Train the family on crops of the training clips' waves; clips shorter than a crop are left out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from soundmill import params as strict
from soundmill.audio import mel
from soundmill.errors import UserError
from soundmill.models.catalog import beginnings, choose_by_hash, durations_of, read_labels, read_weights, waves_of
from soundmill.models.components.diffwave import prior
from soundmill.models.components.diffwave.training import DiffWaveModule
from soundmill.models.components.diffwave.vocoder import schedule
from soundmill.models.components.waves.source import Pairs, WaveCrops, gather_waves, log_mels_of, wave_deviation
from soundmill.models.diffwave import model as models
from soundmill.models.diffwave.model import FAMILY, Generating, Vocoding
from soundmill.models.diffwave.params import TrainParams
from soundmill.models.family import Prepared, Rehearsal
from soundmill.models.labels import Labelled, known_labels, label_weights
from soundmill.models.params import read_sections
from soundmill.models.requests import of_grid
from soundmill.training.loader import Batch, Order, Source, crop_places
from soundmill.training.starting import compare
from soundmill.training.validation import HeldOut


def prepare(
    params: TrainParams, ctx: Any, clips: Path, parts: Path, catalog: Path, start: Vocoding | Generating | None
) -> Prepared:
    """A training that starts from another keeps its labels and scale; UserError if the rate or mel spec differs."""
    schedule(params.noise, params.sampling)  # raises before the training if they do not fit
    params.check_spec(None)
    splits = read_weights(catalog)
    seconds = durations_of(clips, [*splits["train"], *splits["valid"]])
    _, (_, rate) = next(waves_of(clips, set(splits["train"])))
    check_rate(params, rate, clips, start)
    length = params.crop_samples(rate)
    long = {split: [one for one in splits[split] if round(seconds[one] * rate) >= length] for split in ("train", "valid")}
    if not long["train"]:
        longest = max(seconds[one] for one in splits["train"])
        raise UserError(
            f"{clips}: none of {len(splits['train'])} training clips is as long as a crop of {params.crop_seconds:g} s, the "
            f"longest has {longest:g} s; lower {FAMILY}.train.crop_seconds, or fill clips with silence "
            f"(`clips.{clips.name}.tail: pad`)"
        )
    clip_labels = {clip_id: labels for of_split in read_labels(catalog).values() for clip_id, labels in of_split.items()}
    labels = []
    if params.condition == "label":
        train_labels = [clip_labels[clip_id] for clip_id in long["train"]]
        labels = known_labels(train_labels, start.labels if start else (), catalog, f"set {FAMILY}.train.condition to `none`")

    def source_of(clip_ids: Sequence[str]) -> Source:
        return source(params, rate, clips, clip_ids, [label_weights(clip_labels[one], labels) for one in clip_ids], ctx.scratch)

    train, sigma_data = source_of(long["train"]), start.sigma_data if start else 1.0
    if params.unit_variance and not start:
        waves = gather_waves(clips, long["train"], ctx.scratch)
        sigma_data = wave_deviation(waves, f"{FAMILY}.train.unit_variance")
    torch.manual_seed(params.seed)
    model = models.build_model(params, models.build_net(params, len(labels)), rate, labels, sigma_data)
    order = Order(params.seed, {clip_id: splits["train"][clip_id] for clip_id in long["train"]}, params.batch_size)
    steps = params.steps or order.steps(params.epochs)
    unseen = choose_by_hash(long["valid"], params.validate_batches * params.batch_size)
    return Prepared(
        DiffWaveModule(params, model.net, params.noise, steps, params.mel if params.condition == "mel" else None, sigma_data),
        model,
        train,
        order,
        partial(crop_places, params.seed, params.batch_size),
        length / rate,
        clip_ids=long["train"],
        counts={"dropped": len(splits["train"]) - len(long["train"]), "labels": len(labels)},
        samples=samples(params, clips, unseen or long["train"], labels),
        columns=params.grid.columns,
        held_out=HeldOut(source_of(unseen), len(unseen)) if unseen else None,
        save=partial(models.save, model),
    )


def check_rate(params: TrainParams, rate: int, clips: Path, start: Vocoding | Generating | None) -> None:
    """UserError if the sample rate of mels or of the start checkpoint differs from the clips', or its mel spec differs."""
    if params.condition == "mel" and params.mel.sample_rate != rate:
        raise UserError(f"{FAMILY}.train.mel.sample_rate is {params.mel.sample_rate}, but {clips} has {rate}; make them agree")
    if start:
        mels = params.condition == "mel"
        theirs = {"sample_rate": start.sample_rate, "mel": start.params.mel.model_dump() if mels else {}}
        compare(params.start_from, theirs, {"sample_rate": rate, "mel": params.mel.model_dump() if mels else {}})


def source(params: TrainParams, rate: int, clips: Path, clip_ids: Sequence[str], labels: Sequence[Tensor], scratch: Path) -> Source:
    """The source of crops for DiffWaveModule."""
    if params.condition == "mel":
        waves = gather_waves(clips, clip_ids, scratch, partial(mel.levelled, spec=params.mel))
        log_mels = log_mels_of(waves, params.mel, scratch)
        if params.noise.prior == "mel":
            waves = gather_waves(clips, clip_ids, scratch / "whitened", partial(prior.whitened, spec=params.mel))
        return Pairs(log_mels, waves, params.crop_frames, params.mel)
    crops = WaveCrops(gather_waves(clips, clip_ids, scratch), params.crop_samples(rate))
    return Labelled(crops, torch.stack(list(labels))) if params.condition == "label" else crops


def samples(params: TrainParams, clips: Path, clip_ids: Sequence[str], labels: Sequence[str]) -> Any:
    """Requests for the grid; for a vocoder real waves [N, 1, T] for half of its cells."""
    if params.condition != "mel":
        return of_grid(params.grid, params.seed, labels)
    return torch.from_numpy(beginnings(clips, clip_ids, params.grid.columns * params.grid.rows // 2).mean(1, keepdims=True))


def rehearse(document: dict[str, Any], num_labels: int) -> Rehearsal:
    """See models/family.py."""
    params, _, sampling = read_sections(document, FAMILY, TrainParams)
    clips = strict.section(document, f"clips.{document['families'][FAMILY]['clips']}", "params.yaml")
    rate, mels = clips["sample_rate"], params.condition == "mel"
    length, labels = params.crop_samples(rate), num_labels if params.condition == "label" else 0
    module = DiffWaveModule(params, models.build_net(params, labels), params.noise, steps=1, spec=params.mel if mels else None)

    def batch(step: int) -> Batch:
        rng = torch.Generator().manual_seed(step)
        waves = torch.randn(params.batch_size, 1, length, generator=rng)
        condition = torch.randn(params.batch_size, params.mel.n_mels, params.crop_frames, generator=rng)
        weights = torch.zeros(params.batch_size, labels)
        values = {"mel": (condition, waves[:, 0]), "label": (waves, weights), "none": (waves,)}[params.condition]
        return Batch(step, np.zeros(params.batch_size, np.int64), values)

    crops = clips["clip_seconds"] / params.crop_seconds if mels else 1.0  # in a sound
    passes = round(len(schedule(params.noise, sampling)[0]) * crops)
    return Rehearsal(module, batch, clips=params.batch_size, passes=passes)
