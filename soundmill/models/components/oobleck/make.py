"""Make Oobleck for its stage: train it on the training clips, or take or load it, and measure its latents."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from soundmill import hashing, terminal
from soundmill.models.catalog import choose_by_hash, read_weights
from soundmill.models.components.contracts import MadeComponent
from soundmill.models.components.oobleck import codec as codecs
from soundmill.models.components.oobleck import pretrained
from soundmill.models.components.oobleck.codec import OobleckCodec
from soundmill.models.components.oobleck.params import OobleckParams
from soundmill.models.components.oobleck.training import OobleckModule
from soundmill.models.components.waves.samples import check_waves, of_clips
from soundmill.models.components.waves.source import WaveCrops, gather_waves
from soundmill.models.samples import sampling
from soundmill.training import checkpoint
from soundmill.training.device import pick_device, use_threads
from soundmill.training.fitting import Fitted, fit_averaged
from soundmill.training.loader import Order, crop_places
from soundmill.training.validation import HeldOut

SCALING_CLIPS = 64
LICENCE = "these weights have their own licence, which also applies to what is generated with them: read it where they are from"


def make(params: OobleckParams, ctx: Any, clips: Path, mels: Path, catalog: Path) -> MadeComponent:
    splits, network, weights = read_weights(catalog), params.network, params.weights
    use_threads(params.hardware.threads)
    check_waves(clips, list(splits["train"]), network.audio_channels, network.sample_rate)
    device = pick_device(params.hardware.accelerator)
    shown = list(splits["valid"] or splits["train"])
    if weights.kind == "load":
        (model, facts), fitted = pretrained.load(weights, network, ctx.home, ctx.digests), None
        terminal.say(f"{ctx.name}: {LICENCE}")
    elif weights.steps:
        model, fitted, facts = _train(params, ctx, clips, splits)
    else:
        model, fitted, facts = codecs.load(params.check_start(ctx.home)), None, {"taken_from": weights.start_from}
    model.to(device)
    parameters = sum(weight.numel() for weight in model.net.parameters())
    metrics = {
        "parameters": parameters,
        "scaling_factor": model.scaling_factor,
        "latent_rate": model.latent_rate,
        "latent_values_per_second": model.latent_rate * network.latent_channels,
        **({**fitted.metrics, "steps": weights.steps} if fitted else {}),
    }
    return MadeComponent(
        partial(codecs.save, model, source={"kind": weights.kind, **facts}),
        fitted.points if fitted else [],
        metrics,
        weights.steps if fitted else 0,
        partial(of_clips, model, clips, shown, device),
    )


def _train(
    params: OobleckParams, ctx: Any, clips: Path, splits: dict[str, dict[str, float]]
) -> tuple[OobleckCodec, Fitted, dict[str, Any]]:
    network, weights = params.network, params.weights

    def source_of(clip_ids: Sequence[str]) -> WaveCrops:
        return WaveCrops(gather_waves(clips, clip_ids, ctx.scratch, channels=network.audio_channels), weights.num_samples)

    torch.manual_seed(weights.seed)
    model = OobleckCodec(network, codecs.build(network))
    module = OobleckModule(weights, model.net)
    started_from = None
    if weights.start_from:
        where = params.check_start(ctx.home)
        module.start_from(codecs.load(where).net.state_dict(), weights.start_from)
        terminal.say(f"{ctx.name}: starts from {weights.start_from}")
        started_from = hashing.file_digest(where / checkpoint.WEIGHTS)
    parameters = sum(weight.numel() for weight in model.net.parameters())
    train, valid = list(splits["train"]), choose_by_hash(list(splits["valid"]), weights.validate_batches * weights.batch_size)
    terminal.say(f"{ctx.name}: {len(train)} clips, {parameters:,} parameters, {weights.steps} steps of {weights.batch_size}")
    device = pick_device(params.hardware.accelerator)
    fitted = fit_averaged(
        module,
        source_of(train),
        Order(weights.seed, splits["train"], weights.batch_size),
        partial(crop_places, weights.seed, weights.batch_size),
        params.hardware,
        ctx,
        item_seconds=weights.num_samples / network.sample_rate,
        held_out=HeldOut(source_of(valid), len(valid)) if valid else None,
        started_from=started_from,
        sampling=sampling(weights.samples_every_steps, ctx, partial(of_clips, model, clips, valid or train, device)),
    )
    fitted.load_into(module, weights.use)
    model.net.eval()
    model.to(device)
    model.scaling_factor = round(1 / _deviation(model, source_of(choose_by_hash(train, SCALING_CLIPS))), 6)
    return model, fitted, fitted.codec_facts(weights, started_from, len(train), parameters)


def _deviation(model: OobleckCodec, source: WaveCrops) -> float:
    """Standard deviation of the unscaled latents of whole clips."""
    device = next(model.net.parameters()).device
    latents = [model.encode(crops.to(device)).flatten() for crops in source.whole()]
    return max(float(torch.cat(latents).double().std()), 1e-6)
