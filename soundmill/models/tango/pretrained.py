"""Autoencoders and vocoders that others trained, in the layout of AudioLDM's repositories: a folder `vae`, a folder `vocoder`.

Weights come from safetensors only.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from soundmill import hub
from soundmill import params as strict
from soundmill.audio.mel import MelSpec
from soundmill.errors import UserError
from soundmill.models.tango import vocoder
from soundmill.models.tango.autoencoder import Autoencoder, build_autoencoder
from soundmill.models.tango.params import AutoencoderNetParams, LoadedParams, VocoderNetParams
from soundmill.models.tango.vocoder import Vocoder

VAE = ("vae/config.json", "vae/diffusion_pytorch_model.safetensors")
VOCODER = ("vocoder/config.json", "vocoder/model.safetensors")
LICENCE = (
    "these weights have a licence of their own, which holds for what is made with them (AudioLDM's: CC BY-NC-SA 4.0, no "
    "commercial use)"
)


def load(
    wanted: LoadedParams, network: AutoencoderNetParams, spec: MelSpec, home: Path, digests: Path | None = None
) -> tuple[Autoencoder, dict[str, Any]]:
    """The autoencoder that `wanted` names (see hub.find), and what identifies its files.

    Its log-mels are neither centred nor scaled. One that is not built as `network` says is a UserError.
    """
    directory, facts = _find(wanted, VAE, "autoencoder", home, digests)
    net, scaling_factor = _load_vae(directory / "vae", network)
    return Autoencoder(network, spec, net, 0.0, 1.0, scaling_factor), facts


def load_vocoder(
    wanted: LoadedParams, network: VocoderNetParams, spec: MelSpec, home: Path, digests: Path | None = None
) -> tuple[Vocoder, dict[str, Any]]:
    """The vocoder that `wanted` names, and what identifies its files.

    One that is not built as `network` says, or is for other spectrograms than `spec`'s, is a UserError.
    """
    directory, facts = _find(wanted, VOCODER, "vocoder", home, digests)
    return Vocoder(network, spec, _load_vocoder(directory / "vocoder", network, spec)), facts


def _find(
    wanted: LoadedParams, files: tuple[str, ...], section: str, home: Path, digests: Path | None
) -> tuple[Path, dict[str, Any]]:
    remedies = f"put {', '.join(files)} into a directory and set {section}.weights.name to that, or train one (`kind: train`)"
    directory, commit = hub.find(wanted.name, wanted.revision, home, files, partial(_missing, files), remedies)
    return directory, {"name": wanted.name, "revision": commit, "digest": hub.digest(directory, files, digests)}


def _missing(files: tuple[str, ...], directory: Path) -> str | None:
    absent = [file for file in files if not (directory / file).is_file()]
    return f"{', '.join(absent)} (weights in other formats can run code, and are not read)" if absent else None


def _load_vae(directory: Path, network: AutoencoderNetParams) -> tuple[nn.Module, float]:
    """The net, and its scaling factor: that is of these weights, and no other model's."""
    from diffusers import AutoencoderKL

    with _explained(directory):
        config = strict.read_json(directory / "config.json", "get it anew")
        scaling_factor = config.get("scaling_factor") if isinstance(config, dict) else None
        net, told = AutoencoderKL.from_pretrained(
            directory, use_safetensors=True, local_files_only=True, torch_dtype=torch.float32, output_loading_info=True
        )
    _check_whole(directory, told)
    if not isinstance(scaling_factor, float) or not 0 < scaling_factor < float("inf"):
        raise UserError(f"{directory / 'config.json'}: scaling_factor must be a number above 0, found {scaling_factor!r}")
    expected = build_autoencoder(network).config
    keys = ("in_channels", "out_channels", "block_out_channels", "layers_per_block", "latent_channels", "norm_num_groups")
    keys += ("down_block_types", "up_block_types", "act_fn", "mid_block_add_attention", "use_quant_conv", "use_post_quant_conv")
    _compare(directory, {key: (_plain(net.config[key]), _plain(expected[key])) for key in keys}, "autoencoder.network")
    shifts = [key for key in ("shift_factor", "latents_mean", "latents_std") if net.config.get(key) is not None]
    if shifts:
        raise UserError(f"{directory / 'config.json'}: its latents are shifted ({', '.join(shifts)}), which is not supported here")
    return net.eval(), scaling_factor


def _load_vocoder(directory: Path, params: VocoderNetParams, spec: MelSpec) -> nn.Module:
    from transformers import SpeechT5HifiGan

    with _explained(directory):
        net, told = SpeechT5HifiGan.from_pretrained(
            directory, use_safetensors=True, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    _check_whole(directory, told)
    vocoder.check_config(net.config, spec, str(directory))
    found = vocoder.sizes_of(net.config).model_dump()
    _compare(directory, {key: (found[key], value) for key, value in params.model_dump().items()}, "vocoder.network")
    slope, usual = net.config.leaky_relu_slope, vocoder.build_vocoder(params, spec.n_mels, spec.sample_rate).config.leaky_relu_slope
    _compare(directory, {"leaky_relu_slope": (slope, usual)}, "this program")
    return net.eval()


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _compare(directory: Path, values: dict[str, tuple[Any, Any]], other: str) -> None:
    """`values`: key → what the configuration has, what it must be."""
    differing = [f"{key} is {found}, {other} has {wanted}" for key, (found, wanted) in values.items() if found != wanted]
    if differing:
        raise UserError(f"{directory / 'config.json'}: {'; '.join(differing)}; make them agree")


def _check_whole(directory: Path, told: dict[str, Any]) -> None:
    """The libraries fill what is missing with random numbers, and leave out what they do not know."""
    missing, unknown = sorted(told["missing_keys"]), sorted(told["unexpected_keys"])
    if missing or unknown or told["mismatched_keys"]:
        kind, names = ("lack", missing) if missing else ("have other shapes or more than", unknown or ["a matrix"])
        raise UserError(
            f"{directory}: its weights {kind} what config.json says ({max(len(names), 1)} tensors, the first {names[0]!r}); "
            "its files do not belong together: get it anew"
        )


@contextmanager
def _explained(directory: Path) -> Iterator[None]:
    """The libraries' errors as one of ours, without their warnings and bars: what matters of them is checked, and an error."""
    from diffusers.utils import logging as diffusers_logging
    from safetensors import SafetensorError
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    diffusers_logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{directory}: cannot be loaded ({type(error).__name__}: {reason})") from None
