"""Vocoders whose net computes the samples of a frame from that frame and its neighbours, in one pass."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from soundmill.audio.mel import MelSpec
from soundmill.audio.pieces import pieces

PIECE_FRAMES = 1024  # that the net processes at once


@dataclass
class FrameVocoder:
    """A `Vocoder` (components/contracts.py): the net, in evaluation mode and float32, without weight norms."""

    network: Any  # sizes of the net, with its `context`
    spec: MelSpec
    net: nn.Module

    def to(self, device: torch.device | str) -> Self:
        self.net.to(device)
        return self

    @property
    def context(self) -> int:
        """Frames on either side that the samples of a frame depend on."""
        return self.network.context

    def synthesise(self, log_mels: Tensor) -> Tensor:
        """Waves [N, frames · hop_length] of log-mels [N, n_mels, frames]."""
        return self.net(log_mels)

    def vocode(self, log_mels: Tensor, seed: int = 0) -> Tensor:
        """Waves [N, 1, frames · hop_length] of log-mels [N, n_mels, frames]; not clipped."""
        return torch.cat(list(self.pieces(log_mels)), 2)

    def pieces(self, log_mels: Tensor) -> Iterator[Tensor]:
        """`vocode` piece by piece, each computed with its context."""
        for piece in pieces([log_mels], PIECE_FRAMES, self.context):
            with torch.no_grad():
                yield piece.inner(self.synthesise(piece.values)[:, None], self.spec.hop_length)
