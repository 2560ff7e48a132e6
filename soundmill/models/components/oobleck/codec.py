"""Oobleck as a `LatentCodec` (components/contracts.py); its weights have diffusers' names.

It is trained, or taken in diffusers' layout, the directory `vae` of Stable Audio Open, or as a codec of this project.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderOobleck
from torch import Tensor, nn

from soundmill import params as strict
from soundmill import terminal
from soundmill.audio.mel import MelSpec
from soundmill.models.catalog import read_weights
from soundmill.models.components import making
from soundmill.models.components.contracts import CodecConfig, LoadedParams, restore_codec, save_codec
from soundmill.models.components.oobleck import NetworkParams, OobleckParams, TrainedParams
from soundmill.models.components.waves.source import NetworkCodec, check_waves, crops_of, fit_codec, of_clips, padded
from soundmill.training.device import pick_device, use_threads
from soundmill.training.loader import Batch
from soundmill.training.module import TrainingModule


class OobleckConfig(CodecConfig):
    kind: Literal["oobleck"] = "oobleck"
    network: NetworkParams


@dataclass
class OobleckCodec(NetworkCodec):
    config = OobleckConfig

    network: NetworkParams
    net: Any  # diffusers' AutoencoderOobleck

    @torch.no_grad()
    def encode(self, waves: Tensor) -> Tensor:
        """Scaled posterior means [N, latent_channels, T / samples_per_frame] of waves [N, channels, T]."""
        return self.net.encode(waves).latent_dist.mean.float() * self.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Waves [N, channels, T] in [−1, 1] of scaled latents."""
        return self.net.decode(latents / self.scaling_factor).sample.float().clamp(-1, 1)

    @torch.no_grad()
    def posterior(self, waves: Sequence[np.ndarray], num_samples: int) -> Tensor:
        """See components/contracts.py: [N, 2, latent_channels, num_samples / samples_per_frame, 1]."""
        device = next(self.net.parameters()).device
        found = self.net.encode(padded(waves, num_samples, self.samples_per_frame).to(device)).latent_dist
        return torch.stack([found.mean.float(), found.logvar.float()], 1)[..., None]


def network(params: OobleckParams, spec: MelSpec, channels: int) -> Any:
    return build(params.network)


def build(params: NetworkParams) -> Any:
    """The network, initialised from torch's global generator; at Stable Audio Open's sizes it has 156,112,514 parameters."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.nn.utils.weight_norm` is deprecated", FutureWarning)
        return AutoencoderOobleck(
            encoder_hidden_size=2 * params.latent_channels,  # mean and deviation of each latent
            downsampling_ratios=params.ratios,
            channel_multiples=params.multiples,
            decoder_channels=params.channels,
            decoder_input_channels=params.latent_channels,
            audio_channels=params.audio_channels,
            sampling_rate=params.sample_rate,
        )


load = partial(restore_codec, OobleckCodec, network)


LICENCE = "these weights have their own licence, which also applies to what is generated with them: read it where they are from"
FILES = ("vae/config.json", "vae/diffusion_pytorch_model.safetensors")
KEYS = ("encoder_hidden_size", "downsampling_ratios", "channel_multiples", "decoder_channels", "decoder_input_channels")
KEYS += ("audio_channels", "sampling_rate")


class OobleckModule(TrainingModule):
    """A batch: waves [b, channels, T], encoded, sampled from their posteriors and decoded.

    The distance is auraloss's spectral one; the published codec also had discriminators.
    """

    def __init__(self, params: TrainedParams, net: nn.Module):
        from auraloss.freq import MultiResolutionSTFTLoss

        super().__init__(net, params, params.steps)
        self.distance = MultiResolutionSTFTLoss(fft_sizes=[2048, 512, 128], hop_sizes=[512, 128, 32], win_lengths=[2048, 512, 128])

    def loss(self, step: int, batch: Batch) -> Tensor:
        (waves,) = batch.values
        waves = waves.float()
        posterior = self.net.encode(waves).latent_dist
        noise = self.noise_like(posterior.mean.float(), self.rng("posterior", step))
        rebuilt = self.net.decode(posterior.mean + posterior.std * noise).sample.float()
        with torch.autocast(waves.device.type, enabled=False):
            return self.distance(rebuilt, waves) + self.params.kl_weight * kl_divergence(posterior)


def kl_divergence(posterior: Any) -> Tensor:
    """KL divergence from the standard normal in nats, summed over the channels of a latent; mean over latents."""
    return 0.5 * posterior.kl().float()


def make(params: OobleckParams, ctx: Any, clips: Path, mels: Path, catalog: Path) -> making.MadeComponent:
    splits, network, weights = read_weights(catalog), params.network, params.weights
    use_threads(params.hardware.threads)
    check_waves(params, clips, list(splits["train"]))
    device, fitted = pick_device(params.hardware.accelerator), None
    if weights.kind == "load":
        model, facts = load_published(weights, network, ctx.home, ctx.digests)
        terminal.say(f"{ctx.name}: {LICENCE}")
    elif not weights.steps:
        model, facts = load(params.check_start(ctx.home)), {"taken_from": weights.start_from}
    else:
        torch.manual_seed(weights.seed)
        model = OobleckCodec(network, build(network))
        module = OobleckModule(weights, model.net)
        start, started_from = making.started(params, ctx, load)
        if start:
            module.start_from(start.net.state_dict(), weights.start_from)
        source_of = partial(crops_of, clips, ctx.scratch, network.audio_channels, weights.num_samples)
        draw = partial(of_clips, model, clips, making.held_out(splits, weights) or list(splits["train"]), device)
        fitted, facts = fit_codec(model, module, source_of, splits, params, ctx, draw, started_from)
    model.to(device)
    metrics = {"parameters": making.size(model.net), "scaling_factor": model.scaling_factor, **model.metrics}
    save = partial(save_codec, model, source={"kind": weights.kind, **facts})
    draw = partial(of_clips, model, clips, list(splits["valid"] or splits["train"]), device)
    return making.MadeComponent(save, metrics, draw, fitted)


def load_published(
    weights: LoadedParams, network: NetworkParams, home: Path, digests: Path | None = None
) -> tuple[OobleckCodec, dict[str, Any]]:
    """The codec that `weights` names (see hub.find), and the identity of its files. UserError if it is not as `network` says."""
    if saved := making.find_saved(weights, OobleckConfig, network, home):
        return load(saved[0]), saved[1]
    directory, facts = making.find(weights, FILES, "autoencoder", home, digests)
    _check_config(directory / "vae", network)
    net = making.pretrained(AutoencoderOobleck, directory / "vae")
    return OobleckCodec(network, net), facts


def network_of(config: Mapping[str, Any], file: Path) -> NetworkParams:
    """The sizes that `vae/config.json` states; UserError names the file if they are not supported."""
    values = {
        "channels": config.get("decoder_channels"),
        "ratios": config.get("downsampling_ratios"),
        "multiples": config.get("channel_multiples"),
        "latent_channels": config.get("decoder_input_channels"),
        "audio_channels": config.get("audio_channels"),
        "sample_rate": config.get("sampling_rate"),
    }
    return strict.parse(NetworkParams, values, str(file))


def _check_config(directory: Path, network: NetworkParams, spec: MelSpec | None = None) -> None:
    theirs = making.configured(AutoencoderOobleck, directory)
    with torch.device("meta"):
        ours = build(network).config
    making.compare(directory, {key: (theirs[key], making.plain(ours[key])) for key in KEYS}, "autoencoder.network")


check = partial(making.check_published, "autoencoder", FILES, _check_config, OobleckConfig)
