"""The vocoder with an inverse STFT. On disk: a directory with `model.safetensors`, and `config.json` with everything else."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from soundmill.audio.invert import corrected, griffin_lim, speckle
from soundmill.audio.mel import MelSpec, SpectrogramParams
from soundmill.audio.pieces import pieces
from soundmill.models.components import vocoding
from soundmill.models.components.contracts import VocoderConfig, read_vocoder
from soundmill.models.components.istft.network import SPECKLE_MEDIAN, SPECKLE_SPREAD, MagnitudeNet, VocosNet, ended
from soundmill.models.components.istft.params import IstftParams, NetworkParams, SamplingParams
from soundmill.models.components.vocoding import FrameVocoder
from soundmill.training import checkpoint
from soundmill.training.seeds import seed_of

PHASE_SEED = 0  # the phases that Griffin-Lim starts from are the same for every clip


class IstftConfig(VocoderConfig):
    kind: Literal["istft"]
    network: NetworkParams
    sampling: SamplingParams | None


@dataclass
class Istft(FrameVocoder):
    """A `Vocoder` (components/contracts.py)."""

    network: NetworkParams
    sampling: SamplingParams | None  # of magnitudes; None: the net makes waves

    @property
    def context(self) -> int:
        windows = 0 if self.sampling else -(-self.spec.n_fft // self.spec.hop_length)  # frames that the inverse STFT overlaps
        return super().context + windows

    def config(self, source: dict[str, Any]) -> IstftConfig:
        return IstftConfig(kind="istft", network=self.network, sampling=self.sampling, mel_spec=self.spec, source=source)

    def synthesise(self, log_mels: Tensor) -> Tensor:
        return self.net(ended(log_mels))

    def vocode(self, log_mels: Tensor, seed: int = 0) -> Tensor:
        """Waves [N, 1, frames · hop_length] of log-mels [N, n_mels, frames]; not clipped. `seed`: of the grain."""
        if self.sampling is None:
            return super().vocode(log_mels)
        num_samples = log_mels.shape[2] * self.spec.hop_length
        log_mels = ended(log_mels)
        magnitude, spread = self._magnitudes(log_mels)
        if self.sampling.grain:
            magnitude = drawn(magnitude, self.sampling.grain * spread, self.spec, seed_of(seed, "grain"))
        magnitude = corrected(magnitude, log_mels.cpu(), self.spec)
        iterations, momentum = self.sampling.iterations, self.sampling.momentum
        return griffin_lim(magnitude, self.spec, num_samples, iterations, momentum, PHASE_SEED)[:, None]

    def pieces(self, log_mels: Tensor) -> Iterator[Tensor]:
        """`vocode` in pieces; a single one if Griffin-Lim finds the phases, since it needs the whole sound."""
        return super().pieces(log_mels) if self.sampling is None else iter([self.vocode(log_mels)])

    @torch.no_grad()
    def _magnitudes(self, log_mels: Tensor) -> tuple[Tensor, ...]:
        """Medians and spreads [N, bins, frames] of log-mels [N, n_mels, frames], on the CPU."""
        parts = [
            [piece.inner(values).cpu() for values in self.net(piece.values)]
            for piece in pieces([log_mels], vocoding.PIECE_FRAMES, self.context)
        ]
        return tuple(torch.cat(values, 2) for values in zip(*parts, strict=True))


def drawn(median: Tensor, spread: Tensor, spec: MelSpec, seed: int) -> Tensor:
    """Magnitudes [B, bins, frames] drawn with these medians and spreads.

    They follow the STFT of white noise, so that neighbouring bins and frames are correlated as in sounds; with the spread of noise,
    they are the magnitudes of noise.
    """
    grain = speckle(spec, median.shape[2], seed).clamp_min(1e-6).log()
    return median * (spread * ((grain - SPECKLE_MEDIAN) / SPECKLE_SPREAD)).exp()


def build(params: NetworkParams, spec: MelSpec) -> nn.Module:
    """The net, initialised from torch's global generator."""
    return MagnitudeNet(params, spec) if params.head == "magnitude" else VocosNet(params, spec)


def network(params: IstftParams, spec: dict[str, Any]) -> nn.Module:
    return build(params.network, SpectrogramParams(**spec).spec)


def load(directory: Path, spec: MelSpec | None) -> Istft:
    saved = read_vocoder(directory, IstftConfig, spec)
    net = checkpoint.load_weights(lambda: build(saved.network, saved.mel_spec), directory / checkpoint.WEIGHTS)
    return Istft(saved.network, saved.mel_spec, net, saved.sampling)
