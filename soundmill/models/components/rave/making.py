"""RAVE as its stage publishes it: trained on the corpus's training clips, its latents ordered and counted, and measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from soundmill import hashing
from soundmill.audio import figures
from soundmill.models.catalog import beginnings, choose_by_hash, durations_of, read_weights, waves_of
from soundmill.models.components.contracts import Made
from soundmill.models.components.rave import codec as codecs
from soundmill.models.components.rave.augmentation import AugmentedCrops, draw_crops
from soundmill.models.components.rave.codec import RaveCodec
from soundmill.models.components.rave.fidelity import Components, components
from soundmill.models.components.rave.network import RaveNet
from soundmill.models.components.rave.params import RaveParams
from soundmill.models.components.rave.training import RaveModule, phase_of, told_before
from soundmill.models.components.waves.source import WaveCrops, gather_waves
from soundmill.models.samples import Samples, sampling
from soundmill.training import checkpoint
from soundmill.training.device import evaluating, pick_device, use_threads
from soundmill.training.fitting import fit_averaged
from soundmill.training.loader import Order
from soundmill.training.starting import compare
from soundmill.training.validation import HeldOut

SHOWN = 4
LEAST_SPREAD = 1e-6  # of a latent that nothing moves
COMPONENT_CLIPS = 1024  # that the latents' components are found on, at most
FIDELITIES = (0.8, 0.9, 0.95, 0.99)  # whose ranks are told


def make(params: RaveParams, ctx: Any, clips: Path, mels: Path, catalog: Path) -> Made:
    splits, wanted = read_weights(catalog), params.weights
    use_threads(params.hardware.threads)
    _, (_, rate) = next(waves_of(clips, set(splits["train"])))

    def source_of(clip_ids: Sequence[str], num_samples: int = wanted.num_samples) -> WaveCrops:
        return WaveCrops(gather_waves(clips, clip_ids, ctx.scratch), num_samples)

    torch.manual_seed(wanted.seed)
    net = RaveNet(params.network)
    model = RaveCodec(params.network, rate, net, 2, params.fidelity, params.network.latent_channels)
    begun = _start(net, params, rate, ctx) if wanted.start_from else None
    module = RaveModule(wanted, net.with_norms())
    parameters, judges = (sum(weight.numel() for weight in one.parameters()) for one in (net, module.discriminators))
    train, valid = list(splits["train"]), choose_by_hash(list(splits["valid"]), wanted.validate_batches * wanted.batch_size)
    minutes = sum(durations_of(clips, train).values()) / 60
    print(f"{ctx.name}: {parameters:,} parameters, discriminators {judges:,}", flush=True)
    for line in told_before(minutes, len(train), wanted, rate):
        print(f"{ctx.name}: {line}", flush=True)
    draw = partial(samples, model, clips, valid or train, pick_device(params.hardware.accelerator))
    fitted = fit_averaged(
        module,
        AugmentedCrops(source_of(train), rate, wanted.augmentation),
        Order(wanted.seed, splits["train"], wanted.batch_size),
        partial(draw_crops, wanted.seed, wanted.batch_size),
        params.hardware,
        ctx,
        held_out=HeldOut(AugmentedCrops(source_of(valid), rate, None), len(valid)) if valid else None,
        started_from=begun,
        sampling=sampling(wanted.samples_every_steps, ctx, draw),
    )
    fitted.take(module, wanted.use)
    net.without_norms().eval()
    model.to(pick_device(params.hardware.accelerator))
    model.phase = phase_of(wanted, fitted.facts)
    # The encoder has stood still since phase 1 ended, and nothing is averaged: these are the components of its end.
    found = components(means(model, source_of(choose_by_hash(train, COMPONENT_CLIPS))))
    fit_latents(model, found)
    _show_fidelity(found, ctx)
    ranks = {f"rank_{fidelity:g}": found.rank(fidelity) for fidelity in FIDELITIES}
    print(
        f"{ctx.name}: {model.rank} of {params.network.latent_channels} latents keep {params.fidelity:.0%} of their variance",
        flush=True,
    )
    begun_from = {"started_from": begun} if begun else {}
    facts = {**begun_from, **fitted.facts, "use": wanted.use, "steps": wanted.steps, "clips": len(train), "parameters": parameters}
    metrics = {
        "parameters": parameters,
        "discriminator_parameters": judges,
        "minutes": round(minutes, 2),
        "phase": model.phase,
        "rank": model.rank,
        **ranks,
        "latent_rate": model.latent_rate,
        "latent_values_per_second": model.latent_rate * model.rank,
        "steps": wanted.steps,
        **fitted.metrics,
    }
    return Made(partial(codecs.save, model, source=facts), fitted.points, metrics, wanted.steps, draw)


def _start(net: RaveNet, params: RaveParams, rate: int, ctx: Any) -> str:
    """Give the net the weights that `weights.start_from` names; returns the digest of that codec."""
    where = ctx.home / params.weights.start_from
    there = codecs.load(where)
    known, here = {"network": there.network.model_dump()}, {"network": params.network.model_dump()}
    compare(str(where), known | {"sample_rate": there.sample_rate}, here | {"sample_rate": rate})
    net.load_state_dict(there.net.state_dict())
    net.center.zero_(), net.rotation.copy_(torch.eye(len(net.rotation))), net.spread.fill_(1)
    print(f"{ctx.name}: starts from {params.weights.start_from}", flush=True)
    return hashing.file_digest(where / checkpoint.WEIGHTS)


@torch.no_grad()
def means(model: RaveCodec, source: WaveCrops) -> Iterator[Tensor]:
    """Posterior means [latent_channels, frames] of the beginnings of clips, one after another, on the CPU."""
    for item in range(len(source.waves)):
        (waves,) = source.batch(np.array([item]), np.zeros(1))
        yield model.net.posterior(model.net.pqmf.analysis(waves.to(model.net.center.device)))[0][0].cpu()


def fit_latents(model: RaveCodec, found: Components) -> None:
    """Give a codec its components, how many of them its fidelity asks for, and what brings these to unit deviation.

    Those left out are drawn from the standard normal, which the divergence has pulled latents to.
    """
    model.rank = found.rank(model.fidelity)
    model.net.center.copy_(found.mean), model.net.rotation.copy_(found.rotation)
    deviations = (found.variance * found.kept.diff(prepend=torch.zeros(1))).sqrt().clamp_min(LEAST_SPREAD)
    model.net.spread.fill_(1)[: model.rank].copy_(deviations[: model.rank])


def _show_fidelity(found: Components, ctx: Any) -> None:
    """The share of variance by the number of latents, as a curve and a picture."""

    def draw() -> None:
        points = [(count, share) for count, share in enumerate(found.kept.tolist(), 1)]
        for count, share in points:
            ctx.tracking.log_curve({"fidelity": share}, count)
        ctx.tracking.log_figure(figures.draw_curves({"share of variance": points}, "fidelity by number of latents"), "fidelity")

    ctx.show("the fidelity", draw)


def samples(model: RaveCodec, clips: Path, clip_ids: Sequence[str], device: torch.device, step: int) -> Samples:
    """Real clips beside what becomes of them."""
    waves = torch.from_numpy(beginnings(clips, clip_ids, SHOWN)).mean(1, keepdim=True)
    model.to(device)
    with evaluating(model.net):
        made = model.decode(model.encode(waves.to(device))).cpu()[..., : waves.shape[2]]
    sounds = [(wave.numpy(), model.sample_rate) for pair in zip(waves, made, strict=True) for wave in pair]
    titles = ["real", "decoded"] * len(waves)
    return Samples(figures.draw_waves(sounds, titles, 2, f"autoencoder after {step} steps"), titles, sounds)
