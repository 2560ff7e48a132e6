"""The vocoder with an inverse STFT. On disk it is a directory: `model.safetensors`, and `config.json` with all else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from soundmill.audio.invert import corrected, griffin_lim, speckle
from soundmill.audio.mel import MelSpec, SpectrogramParams
from soundmill.audio.pieces import pieces
from soundmill.models.components.contracts import VocoderConfig, read_vocoder, save_vocoder
from soundmill.models.components.istft.network import SPECKLE_MEDIAN, SPECKLE_SPREAD, MagnitudeNet, VocosNet, ended
from soundmill.models.components.istft.params import IstftParams, NetworkParams, SamplingParams
from soundmill.training import checkpoint
from soundmill.training.seeds import seed_of

PIECE_FRAMES = 1024  # of a sound that are in the net at once
PHASE_SEED = 0  # the phases that Griffin-Lim starts from are the same for every clip


class IstftConfig(VocoderConfig):
    kind: Literal["istft"]
    network: NetworkParams
    sampling: SamplingParams | None


@dataclass
class Istft:
    """A `Vocoder` (components/contracts.py): the net, in evaluation mode and float32."""

    network: NetworkParams
    sampling: SamplingParams | None  # of magnitudes
    spec: MelSpec
    net: nn.Module

    def to(self, device: torch.device | str) -> Istft:
        self.net.to(device)
        return self

    def vocode(self, log_mels: Tensor, seed: int = 0) -> Tensor:
        """Waves [N, 1, frames · hop_length] of log-mels [N, n_mels, frames]; not clipped. `seed`: of the grain."""
        if self.sampling is None:
            return torch.cat(list(self.pieces(log_mels)), 2)
        num_samples = log_mels.shape[2] * self.spec.hop_length
        log_mels = ended(log_mels)
        parts = [
            tuple(piece.inner(values).cpu() for values in self._through(piece.values))
            for piece in pieces([log_mels], PIECE_FRAMES, self.network.context)
        ]
        magnitude, spread = (torch.cat(values, 2) for values in zip(*parts, strict=True))
        if self.sampling.grain:
            magnitude = drawn(magnitude, self.sampling.grain * spread, self.spec, seed_of(seed, "grain"))
        magnitude = corrected(magnitude, log_mels.cpu(), self.spec)
        iterations, momentum = self.sampling.iterations, self.sampling.momentum
        return griffin_lim(magnitude, self.spec, num_samples, iterations, momentum, PHASE_SEED)[:, None]

    def pieces(self, log_mels: Tensor) -> Iterator[Tensor]:
        """The same: whole where Griffin-Lim finds the phases, else piece by piece, each from as many more frames as are seen."""
        if self.sampling is not None:
            yield self.vocode(log_mels)
            return
        hop, around = self.spec.hop_length, self.network.context + -(-self.spec.n_fft // self.spec.hop_length)
        for piece in pieces([log_mels], PIECE_FRAMES, around):
            yield piece.inner(self._through(ended(piece.values))[:, None], hop)

    @torch.no_grad()
    def _through(self, log_mels: Tensor) -> Any:
        return self.net(log_mels)


def drawn(median: Tensor, spread: Tensor, spec: MelSpec, seed: int) -> Tensor:
    """Magnitudes [B, bins, frames] drawn with these medians and spreads.

    What is drawn is white noise, whose magnitudes hang together between bins and frames as those of a sound do: where the spread is
    that of noise they become noise's.
    """
    grain = speckle(spec, median.shape[2], seed).clamp_min(1e-6).log()
    return median * (spread * ((grain - SPECKLE_MEDIAN) / SPECKLE_SPREAD)).exp()


def build(params: NetworkParams, spec: MelSpec) -> nn.Module:
    """The net, initialised from torch's global generator."""
    return MagnitudeNet(params, spec) if params.head == "magnitude" else VocosNet(params, spec)


def network(params: IstftParams, spec: dict[str, Any]) -> nn.Module:
    return build(params.network, SpectrogramParams(**spec).spec)


def save(model: Istft, directory: Path, source: dict[str, Any]) -> dict[str, Any]:
    """As contracts.py says; `source`: plain values."""
    parts = {"network": model.network, "sampling": model.sampling}
    return save_vocoder(directory, IstftConfig(kind="istft", mel_spec=model.spec, source=source, **parts), model.net)


def load(directory: Path, spec: MelSpec | None) -> Istft:
    """The vocoder that `save` wrote; one for other log-mels than `spec`'s, or weights of another net, are a UserError."""
    saved = read_vocoder(directory, IstftConfig, spec)
    net = checkpoint.load_weights(build(saved.network, saved.mel_spec), directory / checkpoint.WEIGHTS)
    return Istft(saved.network, saved.sampling, saved.mel_spec, net)
