"""Load an AutoencoderOobleck in diffusers' layout, the directory `vae` of Stable Audio Open; or a codec that this project wrote."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from soundmill import params as strict
from soundmill.audio.mel import MelSpec
from soundmill.models.components.loaded import LoadedParams, check_whole, compare, explained, find, find_saved, locate
from soundmill.models.components.oobleck import codec as codecs
from soundmill.models.components.oobleck.codec import OobleckCodec, build
from soundmill.models.components.oobleck.params import NetworkParams

FILES = ("vae/config.json", "vae/diffusion_pytorch_model.safetensors")
KEYS = ("encoder_hidden_size", "downsampling_ratios", "channel_multiples", "decoder_channels", "decoder_input_channels")
KEYS += ("audio_channels", "sampling_rate")


def load(
    weights: LoadedParams, network: NetworkParams, home: Path, digests: Path | None = None
) -> tuple[OobleckCodec, dict[str, Any]]:
    """The codec that `weights` names (see hub.find), and the identity of its files. UserError if it is not as `network` says."""
    from diffusers import AutoencoderOobleck

    if saved := find_saved(weights, codecs.OobleckConfig, network, home):
        return codecs.load(saved[0]), saved[1]
    directory, facts = find(weights, FILES, "autoencoder", home, digests)
    _check_config(directory / "vae", network)
    with explained(directory / "vae"):
        net, loading = AutoencoderOobleck.from_pretrained(
            directory / "vae", use_safetensors=True, local_files_only=True, torch_dtype=torch.float32, output_loading_info=True
        )
    check_whole(directory / "vae", loading)
    return OobleckCodec(network, net.eval()), facts


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


def check(weights: LoadedParams, network: NetworkParams, spec: MelSpec, home: Path) -> None:
    """UserError as `load`, from the configuration alone."""
    if not find_saved(weights, codecs.OobleckConfig, network, home):
        _check_config(locate(weights, FILES, "autoencoder", home)[0] / "vae", network)


def _check_config(directory: Path, network: NetworkParams) -> None:
    from diffusers import AutoencoderOobleck

    with explained(directory), torch.device("meta"):
        theirs = AutoencoderOobleck.from_config(AutoencoderOobleck.load_config(directory, local_files_only=True)).config
        ours = build(network).config
    compare(directory, {key: (theirs[key], ours[key]) for key in KEYS}, "autoencoder.network")
