"""HiFi-GAN by transformers: from log-mels to sound, where one was trained here or loaded.

On disk it is a directory: `model.safetensors` in transformers' own names, and `config.json` with all else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from soundmill import params as strict
from soundmill.audio.mel import MelSpec
from soundmill.errors import UserError
from soundmill.models.components.hifigan.params import HifiGanParams, NetworkParams
from soundmill.training import weights

KIND = "hifigan"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
REMEDY = "make them agree, or take Griffin-Lim (`vocoder=griffin_lim`)"


class HifiGanConfig(BaseModel):
    """What `config.json` says: how the net is built, and which log-mels it speaks."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    kind: Literal["hifigan"]
    network: NetworkParams
    mel_spec: MelSpec
    source: dict[str, Any]  # `kind`: train | load, and what came of it


@dataclass
class HifiGan:
    """A `Vocoder` (components/contracts.py): the net, in evaluation mode and float32, without norms of weights."""

    network: NetworkParams
    spec: MelSpec
    net: nn.Module

    def to(self, device: torch.device | str) -> HifiGan:
        self.net.to(device)
        return self

    @torch.no_grad()
    def vocode(self, log_mels: Tensor) -> Tensor:
        """Waves [N, 1, frames · hop_length] of log-mels [N, n_mels, frames]; not clipped."""
        return synthesise(self.net, log_mels, self.spec.hop_length)[:, None]


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


def check_hop(network: NetworkParams, spec: MelSpec) -> None:
    """UserError where the net makes another number of samples of a frame than the spec has."""
    made = math.prod(network.rates)
    if made != spec.hop_length:
        raise UserError(
            f"vocoder.network.rates {network.rates} make {made} samples of a frame, and hop_length of its spectrogram is "
            f"{spec.hop_length}; make them agree"
        )


def check_config(config: Any, spec: MelSpec, where: str) -> None:
    """UserError where a net of transformers' is for another sample rate, number of bands or hop: more it does not say."""
    hop = math.prod(config.upsample_rates)
    wants = {"sample_rate": config.sampling_rate, "n_mels": config.model_in_dim, "hop_length": hop}
    differing = [f"{key} {value}, not {getattr(spec, key)}" for key, value in wants.items() if value != getattr(spec, key)]
    if config.normalize_before:
        differing.append("log-mels normalised by constants of its own")
    if differing:
        raise UserError(f"{where}: this vocoder is for other spectrograms than these ({'; '.join(differing)}); {REMEDY}")


def save(model: HifiGan, directory: Path, source: dict[str, Any]) -> dict[str, Any]:
    """Write the directory (made anew). `source`: plain values. Nothing more to tell: {}."""
    directory.mkdir(parents=True)
    weights.write(model.net.state_dict(), directory / WEIGHTS, {"format": "pt"})
    values = {
        "kind": KIND,
        "network": model.network.model_dump(mode="json"),
        "mel_spec": model.spec.model_dump(mode="json"),
        "source": source,
    }
    weights.write_json(values, directory / CONFIG)
    return {}


def config(directory: Path, spec: MelSpec) -> HifiGanConfig:
    """What a directory that `save` wrote says of itself; UserError where it is none, or for other log-mels than `spec`'s."""
    path = directory / CONFIG
    values = weights.read_json(path, "vocoder")
    saved = strict.parse(HifiGanConfig, values, str(path))
    wanted = spec.model_dump()
    differing = [f"{key} {value}, not {wanted[key]}" for key, value in saved.mel_spec.model_dump().items() if value != wanted[key]]
    if differing:
        raise UserError(f"{directory}: this vocoder is for other spectrograms than these ({'; '.join(differing)}); {REMEDY}")
    return saved


def load(directory: Path, spec: MelSpec) -> HifiGan:
    """The vocoder that `save` wrote; one for other log-mels than `spec`'s, or weights of another net, are a UserError."""
    saved = config(directory, spec)
    net = build_vocoder(saved.network, saved.mel_spec.n_mels, saved.mel_spec.sample_rate)
    return HifiGan(saved.network, saved.mel_spec, weights.fill(net, directory / WEIGHTS))
