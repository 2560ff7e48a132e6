"""Make RAVE for its stage: train it on the training clips, then find the principal components and the rank of its latents.

Or take one as it is.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from soundmill import hashing, terminal
from soundmill.audio import figures
from soundmill.models.catalog import beginnings, choose_by_hash, durations_of, read_weights, waves_of
from soundmill.models.components.contracts import MadeComponent
from soundmill.models.components.pca import Components, components
from soundmill.models.components.rave import codec as codecs
from soundmill.models.components.rave.augmentation import AugmentedCrops, draw_crops
from soundmill.models.components.rave.codec import RaveCodec
from soundmill.models.components.rave.network import RaveNet
from soundmill.models.components.rave.params import RaveParams
from soundmill.models.components.rave.training import RaveModule, describe_training, phase_of
from soundmill.models.components.waves.samples import beside_real
from soundmill.models.components.waves.source import WaveCrops, gather_waves
from soundmill.models.samples import Samples, sampling
from soundmill.training import checkpoint
from soundmill.training.device import evaluating, pick_device, use_threads
from soundmill.training.fitting import fit_averaged
from soundmill.training.loader import Order
from soundmill.training.validation import HeldOut

SHOWN = 4
LEAST_SPREAD = 1e-6  # deviation of a latent that is constant
COMPONENT_CLIPS = 1024  # at most, for the principal components
FIDELITIES = (0.8, 0.9, 0.95, 0.99)  # whose ranks are reported


def make(params: RaveParams, ctx: Any, clips: Path, mels: Path, catalog: Path) -> MadeComponent:
    splits, weights = read_weights(catalog), params.weights
    use_threads(params.hardware.threads)
    _, (_, rate) = next(waves_of(clips, set(splits["train"])))
    if not weights.steps:
        return _taken(params, rate, ctx, clips, list(splits["valid"] or splits["train"]))

    def source_of(clip_ids: Sequence[str], num_samples: int = weights.num_samples) -> WaveCrops:
        return WaveCrops(gather_waves(clips, clip_ids, ctx.scratch), num_samples)

    torch.manual_seed(weights.seed)
    net = RaveNet(params.network)
    model = RaveCodec(params.network, rate, net, 2, params.fidelity, params.network.latent_channels)
    started_from = _start(net, params, rate, ctx) if weights.start_from else None
    module = RaveModule(weights, net.with_norms())
    if params.network.pca and not started_from:
        net.start_from_components(source_of(list(splits["train"])).whole(), "autoencoder.network.pca")
    parameters, discriminator_parameters = (sum(w.numel() for w in one.parameters()) for one in (net, module.discriminators))
    train, valid = list(splits["train"]), choose_by_hash(list(splits["valid"]), weights.validate_batches * weights.batch_size)
    minutes = sum(durations_of(clips, train).values()) / 60
    terminal.say(f"{ctx.name}: {parameters:,} parameters, discriminators {discriminator_parameters:,}")
    for line in describe_training(minutes, len(train), weights, rate):
        terminal.say(f"{ctx.name}: {line}")
    draw = partial(samples, model, clips, valid or train, pick_device(params.hardware.accelerator))
    fitted = fit_averaged(
        module,
        AugmentedCrops(source_of(train), rate, weights.augmentation),
        Order(weights.seed, splits["train"], weights.batch_size),
        partial(draw_crops, weights.seed, weights.batch_size),
        params.hardware,
        ctx,
        item_seconds=weights.num_samples / rate,
        held_out=HeldOut(AugmentedCrops(source_of(valid), rate, None), len(valid)) if valid else None,
        started_from=started_from,
        sampling=sampling(weights.samples_every_steps, ctx, draw),
    )
    fitted.load_into(module, weights.use)
    net.without_norms().eval()
    model.to(pick_device(params.hardware.accelerator))
    model.phase = phase_of(weights, fitted.facts)
    # The encoder is frozen since the end of phase 1 and nothing is averaged, so these components stay valid.
    latent_components = components(means(model, source_of(choose_by_hash(train, COMPONENT_CLIPS))))
    fit_latents(model, latent_components)
    _show_fidelity(latent_components, ctx)
    ranks = {f"rank_{fidelity:g}": latent_components.rank(fidelity) for fidelity in FIDELITIES}
    terminal.say(
        f"{ctx.name}: {model.rank} of {params.network.latent_channels} latents keep {params.fidelity:.0%} of their variance"
    )
    facts = fitted.codec_facts(weights, started_from, len(train), parameters)
    metrics = {
        "parameters": parameters,
        "discriminator_parameters": discriminator_parameters,
        "minutes": round(minutes, 2),
        **_sizes(model),
        **ranks,
        "steps": weights.steps,
        **fitted.metrics,
    }
    return MadeComponent(partial(codecs.save, model, source=facts), fitted.points, metrics, weights.steps, draw)


def _taken(params: RaveParams, rate: int, ctx: Any, clips: Path, shown: Sequence[str]) -> MadeComponent:
    """The codec `weights.start_from`."""
    model = codecs.load(params.check_start(ctx.home, sample_rate=rate))
    metrics = {"parameters": sum(weight.numel() for weight in model.net.parameters()), **_sizes(model)}
    draw = partial(samples, model, clips, shown, pick_device(params.hardware.accelerator))
    return MadeComponent(partial(codecs.save, model, source={"taken_from": params.weights.start_from}), [], metrics, 0, draw)


def _start(net: RaveNet, params: RaveParams, rate: int, ctx: Any) -> str:
    """Load the weights of the codec `weights.start_from`; returns their digest."""
    where = params.check_start(ctx.home, sample_rate=rate)
    net.load_state_dict(codecs.load(where).net.state_dict())
    net.center.zero_(), net.rotation.copy_(torch.eye(len(net.rotation))), net.spread.fill_(1)
    terminal.say(f"{ctx.name}: starts from {params.weights.start_from}")
    return hashing.file_digest(where / checkpoint.WEIGHTS)


def _sizes(model: RaveCodec) -> dict[str, Any]:
    values = {"phase": model.phase, "rank": model.rank, "latent_rate": model.latent_rate}
    return values | {"latent_values_per_second": model.latent_rate * model.rank}


@torch.no_grad()
def means(model: RaveCodec, source: WaveCrops) -> Iterator[Tensor]:
    """Posterior means [latent_channels, frames] of the first crop of each clip, on the CPU."""
    for item in range(len(source.waves)):
        (waves,) = source.batch(np.array([item]), np.zeros(1))
        yield model.net.posterior(model.net.pqmf.analysis(waves.to(model.net.center.device)))[0][0].cpu()


def fit_latents(model: RaveCodec, latent_components: Components) -> None:
    """Set a codec's principal components, its rank by its fidelity, and the scale of the kept components to unit deviation.

    Components left out are drawn from the standard normal, the prior of the KL divergence.
    """
    model.rank = latent_components.rank(model.fidelity)
    model.net.center.copy_(latent_components.mean), model.net.rotation.copy_(latent_components.rotation)
    deviations = latent_components.variances.sqrt().clamp_min(LEAST_SPREAD)
    model.net.spread.fill_(1)[: model.rank].copy_(deviations[: model.rank])


def _show_fidelity(latent_components: Components, ctx: Any) -> None:
    """Log the share of variance by the number of latents, as a curve and a figure."""

    def draw() -> None:
        points = [(count, share) for count, share in enumerate(latent_components.kept.tolist(), 1)]
        for count, share in points:
            ctx.tracking.log_curve({"fidelity": share}, count)
        ctx.tracking.log_figure(figures.draw_curves({"share of variance": points}, "fidelity by number of latents"), "fidelity")

    ctx.show("the fidelity", draw)


def samples(model: RaveCodec, clips: Path, clip_ids: Sequence[str], device: torch.device, step: int) -> Samples:
    """Real clips and their reconstructions."""
    waves = torch.from_numpy(beginnings(clips, clip_ids, SHOWN)).mean(1, keepdim=True)
    model.to(device)
    with evaluating(model.net):
        decoded = model.decode(model.encode(waves.to(device))).cpu()[..., : waves.shape[2]]
    return beside_real(waves, decoded, model.sample_rate, step)
