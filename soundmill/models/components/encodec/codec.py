"""EnCodec as a `LatentCodec` (components/contracts.py).

Latents are the encoder's output before quantisation; decoding rounds them to codes, so a sound that is encoded and decoded is the
library's. Its weights have transformers' names. They are taken in that library's layout, as MusicGen's, or as a codec of this
project.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import EncodecConfig as LibraryConfig
from transformers import EncodecModel, PreTrainedConfig

from soundmill import hub, terminal
from soundmill.audio.mel import MelSpec
from soundmill.models.catalog import read_weights
from soundmill.models.components.contracts import CodecConfig, LoadedParams, restore_codec, save_codec
from soundmill.models.components.encodec import EncodecParams, NetworkParams
from soundmill.models.components.making import MadeComponent, check_published, compare, find, find_saved, pretrained, size
from soundmill.models.components.waves.source import NetworkCodec, check_waves, of_clips, padded
from soundmill.training.device import pick_device, use_threads

NO_VARIANCE = -30.0  # ln; latents have no distribution, and minus infinity does not survive arithmetic


class EncodecConfig(CodecConfig):
    kind: Literal["encodec"] = "encodec"
    network: NetworkParams
    bandwidth: float
    scaling_factor: float = 1.0  # always 1


@dataclass
class EncodecCodec(NetworkCodec):
    config = EncodecConfig

    network: NetworkParams
    bandwidth: float  # kbit/s
    net: Any  # transformers' EncodecModel

    @torch.no_grad()
    def encode(self, waves: Tensor) -> Tensor:
        """Latents [N, latent_channels, T / samples_per_frame] of waves [N, channels, T]."""
        return self.net.encoder(waves)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Waves [N, channels, T] in [−1, 1] of the codes nearest to latents."""
        quantizer = self.net.quantizer
        return self.net.decoder(quantizer.decode(quantizer.encode(latents, self.bandwidth))).clamp(-1, 1)

    def posterior(self, waves: Sequence[np.ndarray], num_samples: int) -> Tensor:
        """See components/contracts.py: [N, 2, latent_channels, num_samples / samples_per_frame, 1]."""
        mean = self.encode(padded(waves, num_samples, self.samples_per_frame).to(next(self.net.parameters()).device)).float()
        return torch.stack([mean, torch.full_like(mean, NO_VARIANCE)], 1)[..., None]


def network(params: EncodecParams, spec: MelSpec, channels: int) -> Any:
    return build(params.network)


def library_config(params: NetworkParams) -> Any:
    """transformers' EncodecConfig of these sizes."""
    return LibraryConfig(
        num_filters=params.channels,
        upsampling_ratios=params.ratios,
        hidden_size=params.latent_channels,
        codebook_size=params.codebook_size,
        codebook_dim=params.latent_channels,
        target_bandwidths=params.bandwidths,
        use_causal_conv=params.causal,
        use_conv_shortcut=params.conv_shortcut,
        audio_channels=params.audio_channels,
        sampling_rate=params.sample_rate,
    )


def build(params: NetworkParams) -> Any:
    """The network, initialised from torch's global generator; MusicGen's has 56,884,674 parameters, without the codebooks."""
    return EncodecModel(library_config(params)).eval()


load = partial(restore_codec, EncodecCodec, network)


LICENCE = "these weights have their own licence (MusicGen's: CC BY-NC 4.0, no commercial use); it also applies to what they make"
FILES = ("config.json", "model.safetensors")


def make(params: EncodecParams, ctx: Any, clips: Path, mels: Path, catalog: Path) -> MadeComponent:
    splits, network = read_weights(catalog), params.network
    use_threads(params.hardware.threads)
    check_waves(params, clips, list(splits["train"]))
    net, facts = load_published(params.weights, network, ctx.home, ctx.digests)
    terminal.say(f"{ctx.name}: {LICENCE}")
    device = pick_device(params.hardware.accelerator)
    model = EncodecCodec(network, params.bandwidth, net).to(device)
    metrics = {"parameters": size(net), **model.metrics, "bandwidth": params.bandwidth}
    draw = partial(of_clips, model, clips, list(splits["valid"] or splits["train"]), device)
    return MadeComponent(partial(save_codec, model, source={"kind": "load", **facts}), metrics, draw)


def load_published(
    weights: LoadedParams, network: NetworkParams, home: Path, digests: Path | None = None
) -> tuple[Any, dict[str, Any]]:
    """The network that `weights` names (see hub.find), and the identity of its files. UserError if it is not as `network` says."""
    if saved := find_saved(weights, EncodecConfig, network, home):
        return load(saved[0]).net, saved[1]
    directory, facts = find(weights, FILES, "autoencoder", home, digests)
    _check_config(directory, network)
    return pretrained(EncodecModel, directory), facts


def _check_config(directory: Path, network: NetworkParams, spec: MelSpec | None = None) -> None:
    theirs = LibraryConfig().to_dict() | hub.read_config(directory / "config.json")
    ours, general = library_config(network).to_dict(), PreTrainedConfig().to_dict()
    keys = [key for key in ours if key not in general or key == "model_type"]
    compare(directory, {key: (theirs[key], ours[key]) for key in keys}, "autoencoder.network")


check = partial(check_published, "autoencoder", FILES, _check_config, EncodecConfig)
