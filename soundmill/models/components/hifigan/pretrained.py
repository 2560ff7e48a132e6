"""Load AudioLDM's vocoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from soundmill.audio.mel import MelSpec
from soundmill.models.components.hifigan import vocoder
from soundmill.models.components.hifigan.params import NetworkParams
from soundmill.models.components.hifigan.vocoder import HifiGan
from soundmill.models.components.loaded import LoadedParams, check_whole, compare, explained, find

FILES = ("vocoder/config.json", "vocoder/model.safetensors")


def load(
    weights: LoadedParams, network: NetworkParams, spec: MelSpec, home: Path, digests: Path | None = None
) -> tuple[HifiGan, dict[str, Any]]:
    """The vocoder that `weights` names, and the identity of its files.

    UserError if its architecture differs from `network`, or its mel spec from `spec`.
    """
    directory, facts = find(weights, FILES, "vocoder", home, digests)
    return HifiGan(network, spec, _load_net(directory / "vocoder", network, spec)), facts


def _load_net(directory: Path, params: NetworkParams, spec: MelSpec) -> nn.Module:
    from transformers import SpeechT5HifiGan

    with explained(directory):
        net, loading = SpeechT5HifiGan.from_pretrained(
            directory, use_safetensors=True, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    check_whole(directory, loading)
    vocoder.check_config(net.config, spec, str(directory))
    sizes = vocoder.sizes_of(net.config).model_dump()
    compare(directory, {key: (sizes[key], value) for key, value in params.model_dump().items()}, "vocoder.network")
    slope, expected_slope = (
        net.config.leaky_relu_slope,
        vocoder.build_vocoder(params, spec.n_mels, spec.sample_rate).config.leaky_relu_slope,
    )
    compare(directory, {"leaky_relu_slope": (slope, expected_slope)}, "this program")
    return net.eval()
