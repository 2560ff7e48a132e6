"""Load AudioLDM's autoencoder."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from soundmill import params
from soundmill.audio.mel import MelSpec
from soundmill.errors import UserError
from soundmill.models.components.loaded import LoadedParams, check_whole, compare, explained, find, locate
from soundmill.models.components.mel_autoencoder.autoencoder import Autoencoder, build_autoencoder
from soundmill.models.components.mel_autoencoder.params import AutoencoderNetParams

FILES = ("vae/config.json", "vae/diffusion_pytorch_model.safetensors")


def load(
    weights: LoadedParams, network: AutoencoderNetParams, spec: MelSpec, home: Path, digests: Path | None = None
) -> tuple[Autoencoder, dict[str, Any]]:
    """The autoencoder that `weights` names (see hub.find), and the identity of its files.

    Its log-mels are not standardised. UserError if its architecture differs from `network`.
    """
    directory, facts = find(weights, FILES, "autoencoder", home, digests)
    net, scaling_factor = _load_vae(directory / "vae", network)
    return Autoencoder(network, spec, net, 0.0, 1.0, scaling_factor), facts


def check(weights: LoadedParams, network: AutoencoderNetParams, spec: MelSpec, home: Path) -> None:
    """UserError as `load`, from the configuration alone."""
    from diffusers import AutoencoderKL

    network.check_spec(spec)
    directory = locate(weights, FILES, "autoencoder", home)[0] / "vae"
    with explained(directory), torch.device("meta"):
        net = AutoencoderKL.from_config(AutoencoderKL.load_config(directory, local_files_only=True))
    _check_config(net, directory, network)


def _load_vae(directory: Path, network: AutoencoderNetParams) -> tuple[nn.Module, float]:
    """The network and its scaling factor, which belongs to these weights."""
    from diffusers import AutoencoderKL

    with explained(directory):
        config = params.read_json(directory / "config.json", "download it again")
        scaling_factor = config.get("scaling_factor") if isinstance(config, dict) else None
        net, loading = AutoencoderKL.from_pretrained(
            directory, use_safetensors=True, local_files_only=True, torch_dtype=torch.float32, output_loading_info=True
        )
    check_whole(directory, loading)
    if not isinstance(scaling_factor, float) or not 0 < scaling_factor < float("inf"):
        raise UserError(f"{directory / 'config.json'}: scaling_factor must be a number above 0, found {scaling_factor!r}")
    _check_config(net, directory, network)
    return net.eval(), scaling_factor


def _check_config(net: nn.Module, directory: Path, network: AutoencoderNetParams) -> None:
    expected = build_autoencoder(network).config
    keys = ("in_channels", "out_channels", "block_out_channels", "layers_per_block", "latent_channels", "norm_num_groups")
    keys += ("down_block_types", "up_block_types", "act_fn", "mid_block_add_attention", "use_quant_conv", "use_post_quant_conv")
    compare(directory, {key: (_plain(net.config[key]), _plain(expected[key])) for key in keys}, "autoencoder.network")
    shifts = [key for key in ("shift_factor", "latents_mean", "latents_std") if net.config.get(key) is not None]
    if shifts:
        raise UserError(f"{directory / 'config.json'}: its latents are shifted ({', '.join(shifts)}), which is not supported")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
