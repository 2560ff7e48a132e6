"""Load AudioLDM's vocoder."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from soundmill.audio.mel import MelSpec
from soundmill.models.components.hifigan import vocoder
from soundmill.models.components.hifigan.params import NetworkParams
from soundmill.models.components.hifigan.vocoder import HifiGan
from soundmill.models.components.loaded import LoadedParams, check_whole, compare, explained, find, locate

FILES = ("vocoder/config.json", "vocoder/model.safetensors")


def load(
    weights: LoadedParams, network: NetworkParams, spec: MelSpec, home: Path, digests: Path | None = None
) -> tuple[HifiGan, dict[str, Any]]:
    """The vocoder that `weights` names, and the identity of its files.

    UserError if its architecture differs from `network`, or its mel spec from `spec`.
    """
    directory, facts = find(weights, FILES, "vocoder", home, digests)
    return HifiGan(network, spec, _load_net(directory / "vocoder", network, spec)), facts


def check(weights: LoadedParams, network: NetworkParams, spec: MelSpec, home: Path) -> None:
    """UserError as `load`, from the configuration alone."""
    from transformers import SpeechT5HifiGanConfig

    directory = locate(weights, FILES, "vocoder", home)[0] / "vocoder"
    with explained(directory):
        config = SpeechT5HifiGanConfig.from_pretrained(directory, local_files_only=True)
    _check_config(config, directory, network, spec)


def _load_net(directory: Path, params: NetworkParams, spec: MelSpec) -> nn.Module:
    from transformers import SpeechT5HifiGan

    with explained(directory):
        net, loading = SpeechT5HifiGan.from_pretrained(
            directory, use_safetensors=True, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    check_whole(directory, loading)
    _check_config(net.config, directory, params, spec)
    return net.eval()


def _check_config(config: Any, directory: Path, params: NetworkParams, spec: MelSpec) -> None:
    vocoder.check_config(config, spec, str(directory))
    sizes = vocoder.sizes_of(config).model_dump()
    compare(directory, {key: (sizes[key], value) for key, value in params.model_dump().items()}, "vocoder.network")
    slope, expected_slope = (
        config.leaky_relu_slope,
        vocoder.build_vocoder(params, spec.n_mels, spec.sample_rate).config.leaky_relu_slope,
    )
    compare(directory, {"leaky_relu_slope": (slope, expected_slope)}, "this program")
