"""RAVE's encoder (bands of a wave to a posterior) and decoder (latents to bands): Caillon & Esling 2021, and its authors' v2.

Every convolution is zero-padded to keep the length divided by its stride; a causal one only at the start. The lookahead of a layer
beyond the end of a frame (`ahead`) becomes its delay when streaming (models/live.py).
"""

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soundmill.models.components.pca import Pca
from soundmill.models.components.rave import NetworkParams

ATTENUATION_DB = 100.0
SEARCHED = (0.9, 1.5)  # range of the cut-off search, in units of pi / (2 bands)


class Pqmf(nn.Module):
    """A pseudo-quadrature mirror filter bank (Nguyen 1994): splits a wave into `bands` signals at 1 / `bands` of its rate.

    Near-perfect reconstruction: no delay, and an error about 60 dB below the signal. Computed in polyphase form.

    `ahead` is the lookahead in frames of `bands` samples: of analysis ahead[0], of synthesis ahead[1].
    """

    def __init__(self, bands: int):
        super().__init__()
        self.bands = bands
        filters = filter_bank(bands)
        reach = filters.shape[1] // 2
        back, forth = -(-reach // bands), max(0, -(-(reach - bands + 1) // bands))  # frames that a filter reaches into
        self.ahead = forth, back
        self.register_buffer("forward_taps", _polyphase(filters, back, back + forth + 1))
        backward = _polyphase(bands * filters, back, back + forth + 1).permute(1, 0, 2).flip(2)
        self.register_buffer("backward_taps", backward.contiguous())

    def analysis(self, waves: Tensor) -> Tensor:
        """Bands [N, bands, T / bands] of waves [N, 1, T]; T is a multiple of `bands`."""
        with torch.autocast(waves.device.type, enabled=False):
            frames = F.pad(fold(waves.float(), self.bands), (self.ahead[1], self.ahead[0]))
            bands = F.conv1d(frames, self.forward_taps)
            return bands * flips(self.bands, bands.shape[2]).to(bands)

    def synthesis(self, bands: Tensor) -> Tensor:
        """Waves [N, 1, T] of bands [N, bands, T / bands]."""
        with torch.autocast(bands.device.type, enabled=False):
            bands = bands.float() * flips(self.bands, bands.shape[2]).to(bands)
            return unfold(F.conv1d(F.pad(bands, (self.ahead[0], self.ahead[1])), self.backward_taps))


def fold(waves: Tensor, bands: int) -> Tensor:
    """[N, 1, T] as frames of `bands` samples [N, bands, T / bands]."""
    return waves.reshape(waves.shape[0], -1, bands).transpose(1, 2)


def unfold(frames: Tensor) -> Tensor:
    return frames.transpose(1, 2).reshape(frames.shape[0], 1, -1)


def flips(bands: int, frames: int, first: int = 0) -> Tensor:
    """−1 where an odd band has an odd frame, counted from `first`, else 1: undoes the spectral inversion of the odd bands."""
    odd = torch.arange(bands)[:, None] * (torch.arange(frames) + first)[None]
    return 1.0 - 2.0 * (odd % 2)


def _polyphase(filters: np.ndarray, back: int, frames: int) -> Tensor:
    """Taps [bands, bands, frames] over folded samples, of filters [bands, 2 · reach + 1] around 0."""
    bands, reach = len(filters), filters.shape[1] // 2
    at = (back - np.arange(frames))[None, :] * bands - np.arange(bands)[:, None] + reach
    inside = (at >= 0) & (at < filters.shape[1])
    return torch.from_numpy(np.where(inside, filters[:, at.clip(0, filters.shape[1] - 1)], 0.0).astype(np.float32))


@lru_cache(maxsize=4)
def filter_bank(bands: int) -> np.ndarray:
    """Analysis filters [bands, taps], an odd number of taps centred on time 0; synthesis uses them time-reversed, times `bands`."""
    taps = prototype(bands)
    time = np.arange(len(taps)) - len(taps) // 2
    band = np.arange(bands)[:, None]
    phase = np.where(band % 2, -1, 1) * math.pi / 4
    return 2 * taps * np.cos((2 * band + 1) * math.pi / (2 * bands) * time + phase)


def prototype(bands: int) -> np.ndarray:
    """A Kaiser-windowed low pass; its cut-off minimises its autocorrelation at multiples of 2 · bands samples.

    For 16 bands 377 taps, cut off at 0.1075 rad.
    """
    from scipy.optimize import minimize_scalar

    def leaking(cutoff: float) -> float:
        taps = low_pass(cutoff)
        autocorrelation = np.convolve(taps, taps, "full")[len(taps) - 1 :: 2 * bands]
        return float(np.abs(autocorrelation[1:]).max())

    # The number of taps jumps with the cut-off, so search a grid first and refine between the neighbours of its minimum.
    grid = math.pi / (2 * bands) * np.linspace(*SEARCHED, 121)
    place = int(np.clip(np.argmin([leaking(cutoff) for cutoff in grid]), 1, len(grid) - 2))
    found = minimize_scalar(leaking, bounds=grid[[place - 1, place + 1]], method="bounded", options={"xatol": 1e-9})
    return low_pass(found.x)


def low_pass(cutoff: float) -> np.ndarray:
    """A low pass with unit gain at 0, whose pass band and transition band are both `cutoff` rad wide."""
    from scipy.signal import firwin, kaiserord

    count, beta = kaiserord(ATTENUATION_DB, cutoff / math.pi)
    return firwin(count | 1, cutoff, window=("kaiser", beta), scale=True, fs=2 * math.pi)


SLOPE = 0.2  # of the leaky ReLUs
LEAST_DEVIATION = 1e-4
QUIET = -5.0  # bias of the noise gains before the sigmoid, so that noise starts quiet
CERTAIN = -3.0  # bias of the raw deviations if the means start from principal components: a deviation of 0.05
LEAST_LENGTH = 1e-12  # so that a kernel of zeros stays one


class Normed(nn.Module):
    """A mixin for torch's convolutions, which use `kernel()` as their weight: weight normalisation (Salimans & Kingma 2016).

    A kernel's length and direction are separate parameters.
    """

    weight: nn.Parameter
    length: nn.Parameter | None

    def norm(self) -> None:
        self.length = nn.Parameter(_lengths(self.weight).detach())

    def fold(self) -> None:
        """Replace weight and length by the kernel itself."""
        self.weight.data, self.length = self.kernel().detach(), None

    def silence(self) -> None:
        """Make the kernel 0; with weight normalisation it keeps its direction, so that it can learn."""
        nn.init.zeros_(self.weight if self.length is None else self.length)

    def kernel(self) -> Tensor:
        return self.weight if self.length is None else self.weight * (self.length / _lengths(self.weight))


def _lengths(weight: Tensor) -> Tensor:
    """Norms [N, 1, …] of the kernels along the first axis."""
    return torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.ndim)), keepdim=True).clamp_min(LEAST_LENGTH)


class Conv(Normed, nn.Conv1d):
    """A convolution without bias."""

    def __init__(self, below: int, above: int, kernel: int, causal: bool, stride: int = 1, dilation: int = 1, groups: int = 1):
        super().__init__(below, above, kernel, stride, dilation=dilation, groups=groups, bias=False)
        self.register_parameter("length", None)
        # Samples of a frame's window beyond the frame; negative: the window does not cover the frame.
        self.missing = (kernel - 1) * dilation + 1 - stride
        self.ahead = 0 if causal else max(0, self.missing // 2)

    def forward(self, signal: Tensor) -> Tensor:
        padded = F.pad(signal, (self.missing - self.ahead, self.ahead))
        return F.conv1d(padded, self.kernel(), None, self.stride, 0, self.dilation, self.groups)

    def seen(self, first: int, last: int) -> tuple[int, int]:
        """First and last input frame that output frames `first` to `last` depend on."""
        (stride,), (dilation,), (kernel,) = self.stride, self.dilation, self.kernel_size
        before = self.missing - self.ahead
        return first * stride - before, last * stride - before + (kernel - 1) * dilation


class Up(Normed, nn.ConvTranspose1d):
    """A transposed convolution without bias: upsamples by `ratio`, with a kernel of twice that length."""

    def __init__(self, below: int, above: int, ratio: int, causal: bool):
        super().__init__(below, above, 2 * ratio, ratio, bias=False)
        self.register_parameter("length", None)
        self.ratio, self.ahead = ratio, 0 if causal else ratio // 2  # samples of its output

    def forward(self, signal: Tensor) -> Tensor:
        upsampled = F.conv_transpose1d(signal, self.kernel(), None, self.ratio)
        return upsampled[..., self.ahead : self.ahead + self.ratio * signal.shape[2]]

    def seen(self, first: int, last: int) -> tuple[int, int]:
        """As `Conv.seen`."""
        return (first + self.ahead) // self.ratio - 1, (last + self.ahead) // self.ratio


class Residual(nn.Module):
    """A residual connection around layers of stride 1."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, signal: Tensor) -> Tensor:
        return signal + self.layers(signal)


def _unit(width: int, kernels: tuple[int, int], dilation: int, causal: bool) -> Residual:
    first, second = kernels
    convolutions = Conv(width, width, first, causal, dilation=dilation), Conv(width, width, second, causal)
    return Residual(_leaky(), convolutions[0], _leaky(), convolutions[1])


def _leaky() -> nn.LeakyReLU:
    return nn.LeakyReLU(SLOPE)


def encoder(params: NetworkParams) -> nn.Sequential:
    """Bands [N, bands, frames] to means and raw deviations, [N, 2 · latent_channels, frames / ratios]."""
    v1, causal, width = params.version == "v1", params.causal, params.channels
    layers: list[nn.Module] = [Conv(params.bands, width, 7, causal)]
    for ratio, dilations in zip(params.ratios, params.dilations, strict=True):
        if v1:
            layers += [nn.BatchNorm1d(width), _leaky(), Conv(width, 2 * width, 2 * ratio + 1, causal, stride=ratio)]
        else:
            layers += [_unit(width, (3, 1), dilation, causal) for dilation in dilations]
            layers += [_leaky(), Conv(width, 2 * width, 2 * ratio, causal, stride=ratio)]
        width *= 2
    kernel, groups = (5, 2) if v1 else (3, 1)
    return nn.Sequential(*layers, _leaky(), Conv(width, 2 * params.latent_channels, kernel, causal, groups=groups))


class Decoder(nn.Module):
    """Latents [N, latent_channels, T] to bands [N, bands, ratios · T]: a trunk with heads for wave, loudness and noise."""

    def __init__(self, params: NetworkParams):
        super().__init__()
        v1, causal = params.version == "v1", params.causal
        width = params.channels * 2 ** len(params.ratios)
        layers: list[nn.Module] = [Conv(params.latent_channels, width, 7 if v1 else 3, causal)]
        # As published: v1 has its ratios in the encoder's order, v2 in reverse.
        order = list(zip(params.ratios, params.dilations, strict=True))
        for ratio, dilations in order if v1 else order[::-1]:
            width //= 2
            layers += [_leaky(), Up(2 * width, width, ratio, causal)]
            layers += [_unit(width, (3, 3 if v1 else 1), dilation, causal) for dilation in dilations]
        self.trunk = nn.Sequential(*layers) if v1 else nn.Sequential(*layers, _leaky())
        self.wave = Conv(width, params.bands * (1 if v1 else 2), 7, causal)
        self.loudness = Conv(width, 1, 3, causal) if v1 else None
        self.noise = Noise(params, width) if params.noise else None

    def forward(self, latents: Tensor, noise: Tensor | None) -> Tensor:
        """`noise`, uniform in [−1, 1], is the input of the noise branch; None skips it."""
        hidden = self.trunk(latents)
        gains = self.noise.gains(hidden, latents) if self.noise is not None and noise is not None else None
        added = self.noise.shaped(gains, noise) if gains is not None else None
        return joined(self.wave(hidden), self.loudness(hidden) if self.loudness is not None else None, added)


def _seen(layer: nn.Module, first: int, last: int) -> tuple[int, int]:
    """`Conv.seen` for any layer; in a `Residual`, the layers see all that the identity path does."""
    if isinstance(layer, Residual):
        layer = layer.layers
    if isinstance(layer, nn.Sequential):
        for inner in reversed(layer):
            first, last = _seen(inner, first, last)
        return first, last
    return layer.seen(first, last) if isinstance(layer, Conv | Up) else (first, last)


def joined(wave: Tensor, loudness: Tensor | None, noise: Tensor | None) -> Tensor:
    """Bands from the outputs of the heads: v1 has a loudness, v2 a gain per band in the second half of `wave`."""
    if loudness is not None:
        bands = torch.tanh(wave) * gain(loudness)
        return bands if noise is None else bands + noise
    value, band_gain = wave.chunk(2, 1)
    bands = value * torch.sigmoid(band_gain)
    return torch.tanh(bands if noise is None else bands + noise)


def gain(value: Tensor) -> Tensor:
    """2 σ(x)^2.3 + 1e-7 (Engel et al. 2020, DDSP)."""
    return 2 * torch.sigmoid(value) ** 2.3 + 1e-7


def measured(bands: Tensor, parts: Tensor, filters: int) -> Tensor:
    """Values [N, bands · filters, T / frame] whose `gain` gives noise the level of bands [N, bands, T] in each part.

    `parts` are those of `parts_of_noise`. Levels are held between −100 dB and 6 dB of noise uniform in [−1, 1].
    """
    count, channels, frame = bands.shape[0], bands.shape[1], parts.shape[0]
    energies = parts.reshape(frame, filters, frame).square().sum(2).sum(0) / (3 * frame)  # of the noise: a variance of 1/3
    split = (bands.reshape(count, channels, -1, frame) @ parts).reshape(count, channels, -1, filters, frame)
    level = (split.square().mean(4) / energies + 1e-10).sqrt().clamp_max(1.99)
    return torch.logit((level / 2) ** (1 / 2.3)).transpose(2, 3).reshape(count, channels * filters, -1)


class Noise(nn.Module):
    """White noise filtered per band and frame, with gains interpolated over frequency (Engel et al. 2020, DDSP).

    With `pca`, the latents are principal components of the gains that make noise as loud as a sound in every part.
    """

    def __init__(self, net: NetworkParams, width: int):
        super().__init__()
        params, bands = net.noise, net.bands
        self.frame, self.bands, self.filters = math.prod(params.ratios), bands, params.filters
        widths = [width] * len(params.ratios) + [bands * params.filters]
        layers: list[nn.Module] = []
        for below, above, ratio in zip(widths, widths[1:], params.ratios, strict=False):
            layers += [Conv(below, above, 3, net.causal, stride=ratio), _leaky()]
        self.layers = nn.Sequential(*layers[:-1])
        self.register_buffer("parts", parts_of_noise(self.frame, params.filters), persistent=False)
        frames = math.prod(net.ratios) // self.frame
        self.pca = Pca(bands * params.filters, frames, net.latent_channels) if net.pca else None

    def measured(self, bands: Tensor) -> Tensor:
        """See the function `measured`."""
        return measured(bands, self.parts, self.filters)

    def gains(self, hidden: Tensor, latents: Tensor) -> Tensor:
        """Gains [N, bands · filters, frames / frame]."""
        return gain(self.layers(hidden) + (QUIET if self.pca is None else self.pca.decode(latents)))

    def shaped(self, gains: Tensor, noise: Tensor) -> Tensor:
        """Filtered noise [N, bands, T] from gains [N, bands · filters, T / frame] and noise [N, T / frame, bands, frame]."""
        split = (noise @ self.parts).unflatten(3, (self.filters, self.frame))
        loud = gains.transpose(1, 2).unflatten(2, (self.bands, self.filters))
        return (loud[..., None] * split).sum(3).transpose(1, 2).flatten(2)


def parts_of_noise(frame: int, filters: int) -> Tensor:
    """Matrix [frame, filters · frame] that splits a frame of white noise into `filters` frequency parts, which add up to it.

    Part i is the noise after circular filtering with a triangle centred at i / (filters − 1) of the band.
    """
    position = np.linspace(0, filters - 1, frame // 2 + 1)
    triangles = np.maximum(1 - np.abs(position[None] - np.arange(filters)[:, None]), 0)
    spectra = np.fft.rfft(np.eye(frame))
    parts = np.concatenate([np.fft.irfft(spectra * triangle, frame) for triangle in triangles], 1)
    return torch.from_numpy(parts.astype(np.float32))


class RaveNet(nn.Module):
    """The filter bank, the encoder and the decoder.

    With weight normalisation, v1 has 17,612,369 parameters and v2 31,536,000 at the published sizes.
    """

    def __init__(self, params: NetworkParams):
        super().__init__()
        self.samples_per_latent = params.samples_per_latent
        self.pqmf, self.encoder, self.decoder = Pqmf(params.bands), encoder(params), Decoder(params)
        # From latents to principal components, of which the kept ones have unit deviation; set after training.
        self.register_buffer("center", torch.zeros(params.latent_channels))
        self.register_buffer("rotation", torch.eye(params.latent_channels))
        self.register_buffer("spread", torch.ones(params.latent_channels))
        self.normed = ["encoder", "decoder"] if params.version == "v2" else ["decoder.trunk", "decoder.wave", "decoder.loudness"]

    def posterior(self, bands: Tensor) -> tuple[Tensor, Tensor]:
        """Means and deviations [N, latent_channels, T] of bands [N, bands, T · ratios]."""
        mean, value = self.encoder(bands).chunk(2, 1)
        if self.pca is not None:
            mean, value = mean + self.pca.encode(self.decoder.noise.measured(bands)), value + CERTAIN
        return mean, F.softplus(value) + LEAST_DEVIATION

    @property
    def pca(self) -> Pca | None:
        return self.decoder.noise.pca if self.decoder.noise is not None else None

    def start_from_components(self, waves: Iterable[Tensor], key: str) -> None:
        """Make it encode waves [N, 1, T] to principal components, and decode them to noise; all else is learned from there.

        UserError, which names the parameter `key`, if the waves are silent.
        """
        noise = self.decoder.noise
        noise.pca.fit((noise.measured(self.pqmf.analysis(some)) for some in waves), key)
        for last in (self.encoder[-1], self.decoder.wave, noise.layers[-1]):
            last.silence()

    def receptive_field(self) -> tuple[int, int]:
        """Band frames before and after a frame that its reconstruction depends on, with the filter bank, without the noise.

        For the first frame of a latent.
        """
        first, last = -self.pqmf.ahead[0], self.pqmf.ahead[1]  # of the synthesis filters
        for layer in (self.decoder.wave, self.decoder.trunk, self.encoder):
            first, last = _seen(layer, first, last)
        return self.pqmf.ahead[1] - first, last + self.pqmf.ahead[0]

    def components_of(self, latents: Tensor) -> Tensor:
        """Principal components [N, latent_channels, T] from latents."""
        return self.rotation @ (latents - self.center[:, None]) / self.spread[:, None]

    def latents_of(self, components: Tensor) -> Tensor:
        return self.rotation.T @ (components * self.spread[:, None]) + self.center[:, None]

    def draw_noise(self, latents: Tensor, rng: torch.Generator | None) -> Tensor | None:
        """Uniform noise in [−1, 1] for the decoder's noise branch; None if it has none."""
        branch = self.decoder.noise
        if branch is None:
            return None
        frames = latents.shape[2] * self.samples_per_latent // branch.bands // branch.frame
        drawn = torch.rand(latents.shape[0], frames, branch.bands, branch.frame, generator=rng, device=rng and rng.device)
        return 2 * drawn.to(latents) - 1

    def with_norms(self) -> Self:
        """Apply weight normalisation, as in training; v1's encoder has batch norms instead."""
        for layer in self._convolutions():
            layer.norm()
        return self

    def without_norms(self) -> Self:
        """Fold weight normalisation into the kernels."""
        for layer in self._convolutions():
            layer.fold()
        return self

    def _convolutions(self) -> list[Normed]:
        modules = (module for name in self.normed for module in self.get_submodule(name).modules())
        return [module for module in modules if isinstance(module, Normed)]
