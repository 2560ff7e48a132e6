"""v-diffusion over continuous noise levels in [0, 1] (Salimans & Ho 2022, appendix D).

At level s, xt = cos(sπ/2)·x0 + sin(sπ/2)·noise: level 0 is the sound, level 1 pure noise.

The net works on x0 of unit variance. Where x0 has another standard deviation, `sigma_data`, the noise is scaled to it, and the net
gets xt / sigma_data and predicts v / sigma_data (Karras et al. 2022, section 5, scale the net's input likewise). So half of the
levels have more signal than noise; with quiet waves and noise of unit variance, nearly all levels would be noise.

`sigma_data` may also be a list: the standard deviations at frequencies from 0 to half the sample rate. Then the noise has the
spectrum of the sounds, x0 and xt are whitened for the net, and half of the levels have more signal than noise at every frequency.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from soundmill.diffusion import inpainting
from soundmill.diffusion.objectives import Net, diffuse, target

Deviation = float | Sequence[float]  # of all samples, or at evenly spaced frequencies from 0 to half the sample rate


def alpha_sigma(level: float) -> tuple[float, float]:
    """Signal and noise scale at a level: exactly (1, 0) at level 0 and (0, 1) at level 1."""
    if level in (0.0, 1.0):
        return 1.0 - level, level
    return math.cos(level * math.pi / 2), math.sin(level * math.pi / 2)


def loss(net: Net, x0: Tensor, level: Tensor, noise: Tensor, sigma_data: Deviation = 1.0) -> Tensor:
    """Mean squared error of v / sigma_data = net(xt / sigma_data, level); x0, noise [B, …], level [B].

    A net that outputs 0 has expected loss (1 + Var x0 / sigma_data²) / 2.
    """
    x0 = normalised(x0, sigma_data)
    angle = level.reshape(-1, *[1] * (x0.ndim - 1)) * (math.pi / 2)
    alpha, sigma = angle.cos(), angle.sin()
    output = net(diffuse(x0, noise, alpha, sigma), level)
    return (output.float() - target("v", x0, noise, alpha, sigma)).square().mean()


def sample(net: Net, noise: Tensor, num_steps: int, sigma_data: Deviation = 1.0) -> Tensor:
    """Denoise standard normal `noise` [B, …] in `num_steps` evenly spaced steps (DDIM with eta 0; Song et al. 2021).

    `net(xt / sigma_data, level [B])` predicts v / sigma_data. Nothing is clipped.
    """
    return _denoise(net, scaled(noise, sigma_data), _levels(num_steps, 1.0), sigma_data)


def restyle(net: Net, sounds: Tensor, noise: Tensor, num_steps: int, amount: float, sigma_data: Deviation = 1.0) -> Tensor:
    """Add noise of level `amount` to sounds [B, …] and denoise them (Meng et al. 2022); 0 changes nothing, 1 keeps nothing."""
    if amount == 0:
        return sounds
    alpha, sigma = alpha_sigma(amount)
    return _denoise(net, alpha * sounds + sigma * scaled(noise, sigma_data), _levels(num_steps, amount), sigma_data)


def inpaint(
    net: Net,
    sounds: Tensor,
    keep: Tensor,
    rngs: Sequence[torch.Generator],
    num_steps: int,
    resamples: int = 1,
    sigma_data: Deviation = 1.0,
) -> Tensor:
    """Regenerate sounds [B, …] where `keep` (boolean, broadcast) is false; see diffusion/inpainting.py."""

    def step(xt: Tensor, now: float, after: float) -> Tensor:
        return _step(net, xt, now, after, sigma_data)

    draw = inpainting.drawing(sounds, rngs)
    return inpainting.inpaint(
        step, alpha_sigma, _levels(num_steps, 1.0), sounds, keep, lambda: scaled(draw(), sigma_data), resamples
    )


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


def _gains(waves: Tensor, deviation: Sequence[float]) -> Tensor:
    """At the frequencies of a Fourier transform of waves [..., T]: [T // 2 + 1]."""
    known = torch.tensor(deviation, device=waves.device, dtype=waves.dtype)
    bins = waves.shape[-1] // 2 + 1
    return torch.nn.functional.interpolate(known[None, None], bins, mode="linear", align_corners=True)[0, 0]


def slerp(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Spherical interpolation between two noises (Shoemake 1985); a `share` of 0 is the first, 1 the second."""
    angle = torch.arccos(torch.nn.functional.cosine_similarity(first.flatten(), second.flatten(), dim=0).clamp(-1, 1))
    if angle < 1e-6:
        return torch.lerp(first, second, share)
    return (torch.sin((1 - share) * angle) * first + torch.sin(share * angle) * second) / torch.sin(angle)


def _levels(num_steps: int, start: float) -> list[float]:
    return [start * (num_steps - step) / num_steps for step in range(num_steps + 1)]


def _denoise(net: Net, xt: Tensor, levels: Sequence[float], sigma_data: Deviation) -> Tensor:
    for now, after in pairwise(levels):
        xt = _step(net, xt, now, after, sigma_data)
    return xt


def _step(net: Net, xt: Tensor, now: float, after: float, sigma_data: Deviation) -> Tensor:
    """One DDIM step from level `now` to `after`."""
    level = torch.full((len(xt),), now, device=xt.device, dtype=xt.dtype)
    v = scaled(net(normalised(xt, sigma_data), level).to(xt.dtype), sigma_data)
    (alpha, sigma), (to_alpha, to_sigma) = (alpha_sigma(one) for one in (now, after))
    return to_alpha * (alpha * xt - sigma * v) + to_sigma * (sigma * xt + alpha * v)
