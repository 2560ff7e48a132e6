"""Make RAVE for its stage: train it on the training clips, then find the principal components and the rank of its latents.

Or take one as it is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from soundmill import hashing, terminal
from soundmill.audio import figures
from soundmill.models.catalog import choose_by_hash, durations_of, read_weights, waves_of
from soundmill.models.components.contracts import MadeComponent, save_codec
from soundmill.models.components.pca import Components, components
from soundmill.models.components.rave import codec as codecs
from soundmill.models.components.rave.codec import RaveCodec
from soundmill.models.components.rave.network import RaveNet
from soundmill.models.components.rave.params import AugmentationParams, RaveParams
from soundmill.models.components.rave.training import RaveModule, describe_training, phase_of
from soundmill.models.components.waves.samples import of_clips
from soundmill.models.components.waves.source import WaveCrops, gather_waves
from soundmill.models.samples import sampling
from soundmill.training import checkpoint
from soundmill.training.device import pick_device, use_threads
from soundmill.training.fitting import fit_averaged
from soundmill.training.loader import Order, crop_places
from soundmill.training.monitoring import HeldOut
from soundmill.training.seeds import seed_of

LEAST_SPREAD = 1e-6  # deviation of a latent that is constant
COMPONENT_CLIPS = 1024  # at most, for the principal components
FIDELITIES = (0.8, 0.9, 0.95, 0.99)  # whose ranks are reported
LOWEST_HZ, HIGHEST_HZ = 20.0, 2000.0  # of the all-pass filter's poles
RADIUS = 0.99


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
    draw = partial(of_clips, model, clips, valid or train, pick_device(params.hardware.accelerator))
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
    return MadeComponent(partial(save_codec, model, source=facts), fitted.points, metrics, weights.steps, draw)


def _taken(params: RaveParams, rate: int, ctx: Any, clips: Path, shown: Sequence[str]) -> MadeComponent:
    """The codec `weights.start_from`."""
    model = codecs.load(params.check_start(ctx.home, sample_rate=rate))
    metrics = {"parameters": sum(weight.numel() for weight in model.net.parameters()), **_sizes(model)}
    draw = partial(of_clips, model, clips, shown, pick_device(params.hardware.accelerator))
    return MadeComponent(partial(save_codec, model, source={"taken_from": params.weights.start_from}), [], metrics, 0, draw)


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


def draw_crops(seed: int, batch_size: int, step: int) -> Tensor:
    """Random numbers for each crop of a whole batch, [batch_size, 4] in [0, 1), float64.

    In order: start of the crop, whether to mangle its phases, the filter's frequency, and the seed of the noise.
    """
    rng = torch.Generator().manual_seed(seed_of(seed, "augmentation", step))
    augmentations = torch.rand(batch_size, 3, generator=rng, dtype=torch.float64)
    return torch.cat([crop_places(seed, batch_size, step).double()[:, None], augmentations], 1)


@dataclass(frozen=True)
class AugmentedCrops:
    """A source of crops [b, channels, num_samples]; `drawn` as from `draw_crops`. `augmentation` None: unchanged crops.

    As in its authors' rave/dataset.py: random phase mangling, and dequantisation.
    """

    crops: WaveCrops
    sample_rate: int
    augmentation: AugmentationParams | None

    def batch(self, items: np.ndarray, drawn: np.ndarray) -> tuple[Tensor]:
        (waves,) = self.crops.batch(items, drawn[:, 0])
        if self.augmentation is not None:
            for wave, (_, mangled, frequency, noise) in zip(waves.numpy(), drawn.tolist(), strict=True):
                if mangled < self.augmentation.phase_mangle:
                    wave[:] = phase_mangled(wave, LOWEST_HZ * (HIGHEST_HZ / LOWEST_HZ) ** frequency, self.sample_rate)
                if (bits := self.augmentation.dequantise_bits) is not None:
                    wave += np.random.default_rng(int(noise * 2**53)).random(wave.shape, np.float32) * np.float32(2.0**-bits)
        return (waves,)


def phase_mangled(wave: np.ndarray, hertz: float, sample_rate: int) -> np.ndarray:
    """A wave [channels, T] through a two-pole all-pass filter at `hertz`: changes the phases, keeps the magnitudes."""
    from scipy.signal import lfilter

    poles = [1.0, -2 * RADIUS * np.cos(2 * np.pi * hertz / sample_rate), RADIUS**2]
    return lfilter(poles[::-1], poles, wave)
