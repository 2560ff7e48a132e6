"""RAVE as a `Codec` (components/contracts.py): encodes waves to the principal components of its posterior, and decodes them.

It is trained in two phases (phases.py); then the principal components and the rank of its latents are found.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from soundmill import terminal
from soundmill.audio import figures
from soundmill.audio.mel import MelSpec
from soundmill.errors import UserError
from soundmill.models.catalog import choose_by_hash, durations_of, read_weights, waves_of
from soundmill.models.components import rave
from soundmill.models.components.contracts import CodecConfig, restore_codec, save_codec
from soundmill.models.components.making import MadeComponent, fit_crops, held_out, size, started
from soundmill.models.components.pca import Components, components
from soundmill.models.components.rave.network import RaveNet
from soundmill.models.components.rave.phases import AugmentedCrops, RaveModule, describe_training, draw_crops
from soundmill.models.components.waves.source import SavedWaveCodec, WaveCrops, crops_of, of_clips, padded
from soundmill.training.device import pick_device, use_threads

LEAST_SPREAD = 1e-6  # deviation of a latent that is constant
COMPONENT_CLIPS = 1024  # at most, for the principal components
FIDELITIES = (0.8, 0.9, 0.95, 0.99)  # whose ranks are reported
EDIT = re.compile(r"(\d{1,6})=([+*]?)([+-]?\d{1,12}(?:\.\d{0,12})?(?:e[+-]?\d{1,2})?)", re.IGNORECASE)
LARGEST = torch.finfo(torch.float32).max


class Edit(NamedTuple):
    """A manual edit of latents before decoding."""

    dimension: int  # 0: the component with the largest variance
    how: Literal["", "+", "*"]
    value: float


def parse_edits(texts: Sequence[str], count: int) -> list[Edit]:
    """Parse `0=1.5` (set), `0=+0.5` (add) or `0=*2` (multiply) for one of `count` latents; UserError for anything else."""
    edits = []
    for text in texts:
        match = EDIT.fullmatch(text.strip())
        if not match:
            raise UserError(
                f"--latent {text[:100]!r}: write DIM=VALUE to set a latent, DIM=+VALUE to add to it, DIM=*VALUE to scale it"
            )
        if int(match[1]) >= count:
            raise UserError(f"--latent {text[:100]!r}: this model has latents 0 to {count - 1}, ordered by variance")
        value = float(match[3])
        if abs(value) > LARGEST:
            raise UserError(f"--latent {text[:100]!r}: {value:g} is beyond {LARGEST:.3g}; latents have unit deviation")
        edits.append(Edit(int(match[1]), match[2], value))
    return edits


def edited(latents: Tensor, edits: Sequence[Edit]) -> Tensor:
    """Latents [N, count, T] with the edits applied in order."""
    result = latents.clone()
    for dimension, how, value in edits:
        if how == "":
            result[:, dimension] = value
        elif how == "+":
            result[:, dimension] += value
        else:
            result[:, dimension] *= value
    return result


class RaveConfig(CodecConfig):
    kind: Literal["rave"] = "rave"
    network: rave.NetworkParams
    sample_rate: int
    phase: Literal[1, 2]  # in which the weights were trained
    fidelity: float
    rank: int  # number of components kept
    scaling_factor: float = 1.0  # always 1: the components have unit deviation


@dataclass
class RaveCodec(SavedWaveCodec):
    """Latents are the first `rank` principal components, with unit deviation."""

    config, spec = RaveConfig, None  # uses no log-mels

    network: rave.NetworkParams
    sample_rate: int
    net: RaveNet
    phase: int
    fidelity: float
    rank: int
    channels: int = 1

    @property
    def latent_channels(self) -> int:
        return self.rank

    @property
    def metrics(self) -> dict[str, float]:
        return {"phase": self.phase, "rank": self.rank, **super().metrics}

    @property
    def noisy(self) -> bool:
        """Whether the decoder uses its noise branch, if it has one."""
        return self.phase == 2 or self.network.pca

    @torch.no_grad()
    def components(self, waves: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of all principal components [N, latent_channels, ⌈T / samples_per_frame⌉] of waves [N, 1, T]."""
        if waves.shape[1] != 1:
            raise ValueError(f"waves of {waves.shape[1]} channels, but this codec takes one: give their mean")
        whole = F.pad(waves, (0, -waves.shape[2] % self.samples_per_frame))
        mean, deviation = self.net.posterior(self.net.pqmf.analysis(whole))
        scaled_rotation = self.net.rotation / self.net.spread[:, None]
        return self.net.components_of(mean.float()), scaled_rotation.square() @ deviation.float().square()

    def encode(self, waves: Tensor) -> Tensor:
        """Latents [N, rank, ⌈T / samples_per_frame⌉] of waves [N, 1, T]."""
        return self.components(waves)[0][:, : self.rank]

    @torch.no_grad()
    def decode(self, latents: Tensor, seed: int = 0) -> Tensor:
        """Waves [N, 1, T] in [−1, 1] from latents; every item gets the same random components left out and the same noise."""
        rng = torch.Generator().manual_seed(seed)
        count, rank, length = latents.shape
        left_out = torch.randn(1, self.network.latent_channels - rank, length, generator=rng).expand(count, -1, -1)
        components = torch.cat([latents.float(), left_out.to(latents)], 1)
        noise = self.net.draw_noise(components[:1].cpu(), rng) if self.noisy else None
        noise = None if noise is None else noise.expand(count, -1, -1, -1).to(components)
        bands = self.net.decoder(self.net.latents_of(components), noise)
        return self.net.pqmf.synthesis(bands).clamp(-1, 1)

    def edit(self, waves: Tensor, edits: Sequence[Edit], seed: int = 0) -> Tensor:
        """Encode waves [N, 1, T], edit the latents and decode them; same length."""
        return self.decode(edited(self.encode(waves), edits), seed)[..., : waves.shape[2]]

    def posterior(self, waves: Sequence[np.ndarray], num_samples: int) -> Tensor:
        """See components/contracts.py: [N, 2, rank, num_samples / samples_per_frame, 1]."""
        whole = padded(waves, num_samples, self.samples_per_frame)
        mean, variance = self.components(whole.to(self.net.center.device))
        return torch.stack([mean[:, : self.rank], variance[:, : self.rank].log()], 1)[..., None]


def network(params: rave.RaveParams, spec: MelSpec, channels: int) -> RaveNet:
    """The network as trained, so that the parameters of weight normalisation count."""
    return RaveNet(params.network).with_norms()


load = partial(restore_codec, RaveCodec, lambda saved, spec, channels: RaveNet(saved.network))


def make(params: rave.RaveParams, ctx: Any, clips: Path, mels: Path, catalog: Path) -> MadeComponent:
    splits, weights = read_weights(catalog), params.weights
    use_threads(params.hardware.threads)
    _, (_, rate) = next(waves_of(clips, set(splits["train"])))
    device = pick_device(params.hardware.accelerator)
    if not weights.steps:
        model = load(params.check_start(ctx.home, sample_rate=rate))
        draw = partial(of_clips, model, clips, list(splits["valid"] or splits["train"]), device)
        save = partial(save_codec, model, source={"taken_from": weights.start_from})
        return MadeComponent(save, {"parameters": size(model.net), **model.metrics}, draw)

    source_of = partial(crops_of, clips, ctx.scratch, None, weights.num_samples)
    torch.manual_seed(weights.seed)
    net = RaveNet(params.network)
    model = RaveCodec(params.network, rate, net, 2, params.fidelity, params.network.latent_channels)
    start, started_from = started(params, ctx, load, sample_rate=rate)
    if start:
        net.load_state_dict(start.net.state_dict())
        net.center.zero_(), net.rotation.copy_(torch.eye(len(net.rotation))), net.spread.fill_(1)
    module = RaveModule(weights, net.with_norms())
    if params.network.pca and not started_from:
        net.start_from_components(source_of(list(splits["train"])).whole(), "autoencoder.network.pca")
    parameters, discriminator_parameters = size(net), size(module.discriminators)
    train = list(splits["train"])
    minutes = sum(durations_of(clips, train).values()) / 60
    terminal.say(f"{ctx.name}: {parameters:,} parameters, discriminators {discriminator_parameters:,}")
    for line in describe_training(minutes, len(train), weights, rate):
        terminal.say(f"{ctx.name}: {line}")
    draw = partial(of_clips, model, clips, held_out(splits, weights) or train, device)
    fitted = fit_crops(
        module,
        AugmentedCrops(source_of(train), rate, weights.augmentation),
        lambda clip_ids: AugmentedCrops(source_of(clip_ids), rate, None),
        splits,
        params,
        ctx,
        lambda crops: draw,
        item_seconds=weights.num_samples / rate,
        started_from=started_from,
        draw_items=draw_crops,
    )
    net.without_norms().eval()
    model.to(device)
    used = weights.use if isinstance(weights.use, int) else fitted.facts["weights"][weights.use]["step"]
    model.phase = 2 if used > weights.phase_1_steps else 1
    # The encoder is frozen since the end of phase 1 and nothing is averaged, so these components stay valid.
    latent_components = components(means(model, source_of(choose_by_hash(train, COMPONENT_CLIPS))))
    fit_latents(model, latent_components)
    _show_fidelity(latent_components, ctx)
    terminal.say(
        f"{ctx.name}: {model.rank} of {params.network.latent_channels} latents keep {params.fidelity:.0%} of their variance"
    )
    facts = fitted.codec_facts(weights, started_from, len(train), parameters)
    metrics = {
        "parameters": parameters,
        "discriminator_parameters": discriminator_parameters,
        "minutes": round(minutes, 2),
        **model.metrics,
        **{f"rank_{fidelity:g}": latent_components.rank(fidelity) for fidelity in FIDELITIES},
    }
    return MadeComponent(partial(save_codec, model, source=facts), metrics, draw, fitted)


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
