"""HiFi-GAN by transformers: from log-mels to sound, where one was trained here or loaded.

On disk it is a directory: `model.safetensors` in transformers' own names, and `config.json` with all else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from soundmill.audio.mel import MelSpec
from soundmill.audio.pieces import pieces
from soundmill.models.components.contracts import (
    VOCODER_WEIGHTS,
    VocoderConfig,
    check_vocoder_spec,
    read_vocoder,
    save_vocoder,
)
from soundmill.models.components.hifigan.params import HifiGanParams, NetworkParams
from soundmill.training import weights

PIECE_FRAMES = 1024  # of a sound that are in the net at once


class HifiGanConfig(VocoderConfig):
    kind: Literal["hifigan"]
    network: NetworkParams


@dataclass
class HifiGan:
    """A `Vocoder` (components/contracts.py): the net, in evaluation mode and float32, without norms of weights."""

    network: NetworkParams
    spec: MelSpec
    net: nn.Module

    def to(self, device: torch.device | str) -> HifiGan:
        self.net.to(device)
        return self

    def vocode(self, log_mels: Tensor, seed: int = 0) -> Tensor:
        """Waves [N, 1, frames · hop_length] of log-mels [N, n_mels, frames]; not clipped."""
        return torch.cat(list(self.pieces(log_mels)), 2)

    def pieces(self, log_mels: Tensor) -> Iterator[Tensor]:
        """The same, piece by piece, each from as many more frames as the net sees."""
        for piece in pieces([log_mels], PIECE_FRAMES, self.network.context):
            with torch.no_grad():
                yield piece.inner(synthesise(self.net, piece.values, self.spec.hop_length)[:, None], self.spec.hop_length)


def network(params: HifiGanParams, spec: dict[str, Any]) -> Any:
    return build_vocoder(params.network, spec["n_mels"], spec["sample_rate"])


def build_vocoder(params: NetworkParams, n_mels: int, sample_rate: int) -> Any:
    """The net, initialised from torch's global generator: 55,264,897 parameters at AudioLDM's sizes."""
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    return SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=n_mels,
            sampling_rate=sample_rate,
            upsample_initial_channel=params.channels,
            upsample_rates=params.rates,
            upsample_kernel_sizes=params.kernels,
            resblock_kernel_sizes=params.resblock_kernels,
            resblock_dilation_sizes=params.resblock_dilations,
            normalize_before=False,  # log-mels go in as they are
        )
    )


def sizes_of(config: Any) -> NetworkParams:
    """The sizes in a configuration of transformers'."""
    return NetworkParams(
        channels=config.upsample_initial_channel,
        rates=list(config.upsample_rates),
        kernels=list(config.upsample_kernel_sizes),
        resblock_kernels=list(config.resblock_kernel_sizes),
        resblock_dilations=[list(dilations) for dilations in config.resblock_dilation_sizes],
    )


def synthesise(net: nn.Module, log_mel: Tensor, hop_length: int) -> Tensor:
    """Waves [B, frames · hop_length] for log-mels [B, n_mels, frames].

    Kernels that differ from their rate by an odd number leave some samples more at the end (32 at AudioLDM's sizes): they are cut.
    """
    return net(log_mel.transpose(1, 2))[:, : log_mel.shape[2] * hop_length]


def check_config(config: Any, spec: MelSpec, where: str) -> None:
    """UserError where a net of transformers' is for another sample rate, number of bands or hop: more it does not say."""
    hop = math.prod(config.upsample_rates)
    wants = {"sample_rate": config.sampling_rate, "n_mels": config.model_in_dim, "hop_length": hop}
    check_vocoder_spec(where, wants, spec, ["log-mels normalised by constants of its own"] if config.normalize_before else [])


def save(model: HifiGan, directory: Path, source: dict[str, Any]) -> dict[str, Any]:
    """As contracts.py says; `source`: plain values."""
    config = HifiGanConfig(kind="hifigan", network=model.network, mel_spec=model.spec, source=source)
    return save_vocoder(directory, config, model.net)


def load(directory: Path, spec: MelSpec | None) -> HifiGan:
    """The vocoder that `save` wrote; one for other log-mels than `spec`'s, or weights of another net, are a UserError."""
    saved = read_vocoder(directory, HifiGanConfig, spec)
    net = build_vocoder(saved.network, saved.mel_spec.n_mels, saved.mel_spec.sample_rate)
    return HifiGan(saved.network, saved.mel_spec, weights.fill(net, directory / VOCODER_WEIGHTS))
