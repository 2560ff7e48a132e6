"""MelGAN as a vocoder. On disk it is a directory: `model.safetensors`, and `config.json` with all else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from soundmill.audio.mel import MelSpec
from soundmill.audio.pieces import pieces
from soundmill.models.components.contracts import VOCODER_WEIGHTS, VocoderConfig, read_vocoder, save_vocoder
from soundmill.models.components.melgan.network import MelGanNet
from soundmill.models.components.melgan.params import MelGanParams, NetworkParams
from soundmill.training import weights

PIECE_FRAMES = 1024  # of a sound that are in the net at once


class MelGanConfig(VocoderConfig):
    kind: Literal["melgan"]
    network: NetworkParams


@dataclass
class MelGan:
    """A `Vocoder` (components/contracts.py): the net, in evaluation mode and float32, without norms of weights."""

    network: NetworkParams
    spec: MelSpec
    net: nn.Module

    def to(self, device: torch.device | str) -> MelGan:
        self.net.to(device)
        return self

    def vocode(self, log_mels: Tensor, seed: int = 0) -> Tensor:
        """Waves [N, 1, frames · hop_length] of log-mels [N, n_mels, frames]."""
        return torch.cat(list(self.pieces(log_mels)), 2)

    def pieces(self, log_mels: Tensor) -> Iterator[Tensor]:
        """The same, piece by piece, each from as many more frames as the net sees."""
        for piece in pieces([log_mels], PIECE_FRAMES, self.network.context):
            with torch.no_grad():
                yield piece.inner(self.net(piece.values)[:, None], self.spec.hop_length)


def network(params: MelGanParams, spec: dict[str, Any]) -> nn.Module:
    return MelGanNet(params.network, spec["n_mels"])


def save(model: MelGan, directory: Path, source: dict[str, Any]) -> dict[str, Any]:
    """As contracts.py says; `source`: plain values."""
    config = MelGanConfig(kind="melgan", network=model.network, mel_spec=model.spec, source=source)
    return save_vocoder(directory, config, model.net)


def load(directory: Path, spec: MelSpec | None) -> MelGan:
    """The vocoder that `save` wrote; one for other log-mels than `spec`'s, or weights of another net, are a UserError."""
    saved = read_vocoder(directory, MelGanConfig, spec)
    net = MelGanNet(saved.network, saved.mel_spec.n_mels)
    return MelGan(saved.network, saved.mel_spec, weights.fill(net, directory / VOCODER_WEIGHTS))
