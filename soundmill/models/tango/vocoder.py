"""HiFi-GAN by transformers: from log-mels to sound, where a trained one was loaded."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from soundmill.audio.mel import MelSpec
from soundmill.errors import UserError
from soundmill.models.tango.params import VocoderNetParams


def build_vocoder(params: VocoderNetParams, n_mels: int, sample_rate: int) -> Any:
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


def sizes_of(config: Any) -> VocoderNetParams:
    """The sizes in a configuration of transformers'."""
    return VocoderNetParams(
        channels=config.upsample_initial_channel,
        rates=list(config.upsample_rates),
        kernels=list(config.upsample_kernel_sizes),
        resblock_kernels=list(config.resblock_kernel_sizes),
        resblock_dilations=[list(dilations) for dilations in config.resblock_dilation_sizes],
    )


def check_spec(config: Any, spec: MelSpec, where: str) -> None:
    """A vocoder speaks of one kind of log-mels only: UserError for another sample rate, number of bands or hop."""
    hop = math.prod(config.upsample_rates)
    wants = {"sample_rate": config.sampling_rate, "n_mels": config.model_in_dim, "hop_length": hop}
    differing = [f"{key} {value}, not {getattr(spec, key)}" for key, value in wants.items() if value != getattr(spec, key)]
    if config.normalize_before:
        differing.append("log-mels normalised by constants of its own")
    if differing:
        raise UserError(
            f"{where}: this vocoder is for other spectrograms than these ({'; '.join(differing)}); change `spectrogram`, or set "
            "autoencoder.vocoder to null and take Griffin-Lim"
        )


@torch.no_grad()
def to_wave(vocoder: nn.Module, log_mel: Tensor, hop_length: int) -> Tensor:
    """Waves [B, frames · hop_length] for log-mels [B, n_mels, frames]; not clipped.

    Kernels that are not a multiple of their rate leave some samples more at the end (32 at AudioLDM's sizes): they are cut.
    """
    return vocoder(log_mel.transpose(1, 2))[:, : log_mel.shape[2] * hop_length]
