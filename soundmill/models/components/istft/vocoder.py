"""The vocoder with an inverse STFT; the weights have the names of Vocos (Siuzdak 2024, arXiv:2306.00814, gemelo-ai/vocos)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from soundmill.audio.invert import corrected, griffin_lim, mel_to_linear, speckle
from soundmill.audio.mel import MelSpec, SpectrogramParams
from soundmill.audio.pieces import pieces
from soundmill.models.components import vocoding
from soundmill.models.components.contracts import VocoderConfig, read_vocoder
from soundmill.models.components.istft import IstftParams, NetworkParams, SamplingParams
from soundmill.models.components.vocoding import FrameVocoder
from soundmill.training import checkpoint
from soundmill.training.seeds import seed_of

KERNEL = 7  # frames
LOUDEST = 100.0  # the largest magnitude of Vocos

# The median of ln(|noise| / mean |noise|), whose magnitudes are Rayleigh-distributed, and the mean absolute deviation from it.
SPECKLE_MEDIAN = -0.5 * math.log(math.pi / (4 * math.log(2)))
SPECKLE_SPREAD = 0.4840
LARGEST_CHANGE = 7.0  # nepers by which the net may change a median or a spread


def ended(log_mel: Tensor) -> Tensor:
    """Log-mels with the last frame repeated: a frame is at the centre of its window, so sounds would fade out in it."""
    return torch.cat([log_mel, log_mel[..., -1:]], 2)


class ConvNeXtBlock(nn.Module):
    """A residual block (Liu et al. 2022): a depthwise convolution over time, and two layers applied to each frame."""

    def __init__(self, width: int, hidden: int, scale: float):
        super().__init__()
        self.dwconv = nn.Conv1d(width, width, KERNEL, padding=KERNEL // 2, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1 = nn.Linear(width, hidden)
        self.pwconv2 = nn.Linear(hidden, width)
        self.gamma = nn.Parameter(torch.full((width,), scale))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm(self.dwconv(x).transpose(1, 2))
        return x + (self.gamma * self.pwconv2(gelu(self.pwconv1(inner)))).transpose(1, 2)


class Backbone(nn.Module):
    """Log-mels [B, n_mels, frames] to features [B, frames, width]."""

    def __init__(self, params: NetworkParams, n_mels: int):
        super().__init__()
        self.embed = nn.Conv1d(n_mels, params.width, KERNEL, padding=KERNEL // 2)
        self.norm = nn.LayerNorm(params.width, eps=1e-6)
        blocks = [ConvNeXtBlock(params.width, params.hidden, 1 / params.layers) for _ in range(params.layers)]
        self.convnext = nn.ModuleList(blocks)
        self.final_layer_norm = nn.LayerNorm(params.width, eps=1e-6)
        for layer in self.modules():
            if isinstance(layer, nn.Conv1d | nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, log_mel: Tensor) -> Tensor:
        x = self.norm(self.embed(log_mel).transpose(1, 2)).transpose(1, 2)
        for block in self.convnext:
            x = block(x)
        return self.final_layer_norm(x.transpose(1, 2))


class Head(nn.Module):
    """Features [B, frames, width] to two numbers of each bin, [B, bins, frames] each."""

    def __init__(self, width: int, bins: int):
        super().__init__()
        self.out = nn.Linear(width, 2 * bins)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        first, second = self.out(features).transpose(1, 2).chunk(2, 1)
        return first, second


class MagnitudeNet(nn.Module):
    """Log-mels [B, n_mels, frames] to the median of each bin's magnitude, and the spread of its logarithm, [B, bins, frames] each.

    The logarithm of the magnitude has a Laplace distribution; the spread is its mean absolute deviation from the median. An
    untrained net returns the magnitudes of `mel_to_linear` and the spread of noise. Bins outside all bands have median 0.
    """

    def __init__(self, params: NetworkParams, spec: MelSpec):
        super().__init__()
        self.spec = spec
        self.backbone, self.head = Backbone(params, spec.n_mels), Head(params.width, spec.n_fft // 2 + 1)
        nn.init.zeros_(self.head.out.weight)
        nn.init.zeros_(self.head.out.bias)

    def forward(self, log_mel: Tensor) -> tuple[Tensor, Tensor]:
        change, wider = (values.float().clamp(-LARGEST_CHANGE, LARGEST_CHANGE) for values in self.head(self.backbone(log_mel)))
        return mel_to_linear(log_mel.float(), self.spec) * change.exp(), SPECKLE_SPREAD * wider.exp()


class VocosNet(nn.Module):
    """Log-mels [B, n_mels, frames] to waves [B, (frames − 1) · hop_length], by the inverse STFT of magnitudes and phases."""

    def __init__(self, params: NetworkParams, spec: MelSpec):
        super().__init__()
        self.spec = spec
        self.backbone, self.head = Backbone(params, spec.n_mels), Head(params.width, spec.n_fft // 2 + 1)
        nn.init.trunc_normal_(self.head.out.weight, std=0.02)
        nn.init.zeros_(self.head.out.bias)

    def forward(self, log_mel: Tensor) -> Tensor:
        log_magnitude, phase = (values.float() for values in self.head(self.backbone(log_mel)))
        spectrum = torch.polar(log_magnitude.exp().clamp_max(LOUDEST), phase)
        spec = self.spec
        window = torch.hann_window(spec.win_length, device=spectrum.device)
        return torch.istft(spectrum, spec.n_fft, spec.hop_length, spec.win_length, window)


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
