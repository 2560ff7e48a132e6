"""Sounds of other than unit variance (Karras et al. 2022, section 5): the noise is scaled to them, and the net sees both as of unit
variance. With quiet waves and noise of unit variance, nearly all of a path would be noise.

A deviation may also be a list: the standard deviations at frequencies from 0 to half the sample rate. Then the noise has the
spectrum of the sounds, the net sees them whitened, and half of the times of v-diffusion have more signal than noise at every
frequency.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from soundmill.diffusion.paths import Net

Deviation = float | Sequence[float]


def normalised(waves: Tensor, deviation: Deviation) -> Tensor:
    """Waves [..., T] divided by their standard deviation; a list whitens them: a filter without delay, in a circle."""
    if isinstance(deviation, Sequence):
        return torch.fft.irfft(torch.fft.rfft(waves) / _gains(waves, deviation), n=waves.shape[-1])
    return waves / deviation


def scaled(waves: Tensor, deviation: Deviation) -> Tensor:
    """The inverse of `normalised`."""
    if isinstance(deviation, Sequence):
        return torch.fft.irfft(torch.fft.rfft(waves) * _gains(waves, deviation), n=waves.shape[-1])
    return deviation * waves


def on_unit_variance(net: Net, deviation: Deviation) -> Net:
    """The net for sounds of this deviation, of a net for those of unit variance; both predict v."""
    return lambda xt, t: scaled(net(normalised(xt, deviation), t).to(xt.dtype), deviation)


def _gains(waves: Tensor, deviation: Sequence[float]) -> Tensor:
    """At the frequencies of a Fourier transform of waves [..., T]: [T // 2 + 1]."""
    known = torch.tensor(deviation, device=waves.device, dtype=waves.dtype)
    bins = waves.shape[-1] // 2 + 1
    return torch.nn.functional.interpolate(known[None, None], bins, mode="linear", align_corners=True)[0, 0]
