"""Diffusion of the velocity v on a half circle, over noise levels in [0, 1] (Salimans & Ho 2022, appendix D).

At level s a sound is cos(sπ/2)·x0 + sin(sπ/2)·noise: 0 is the sound itself, 1 is noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from soundmill.diffusion.objectives import Net, diffuse, target


def alpha_sigma(level: float) -> tuple[float, float]:
    """Signal and noise scale at a level; exactly 1 and 0 at level 0, 0 and 1 at level 1."""
    if level in (0.0, 1.0):
        return 1.0 - level, level
    return math.cos(level * math.pi / 2), math.sin(level * math.pi / 2)


def loss(net: Net, x0: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of v = net(xt, level); x0, noise [B, …], level [B].

    A net that answers 0 has (1 + Var x0) / 2 in the mean.
    """
    angle = level.reshape(-1, *[1] * (x0.ndim - 1)) * (math.pi / 2)
    alpha, sigma = angle.cos(), angle.sin()
    answer = net(diffuse(x0, noise, alpha, sigma), level)
    return (answer.float() - target("v", x0, noise, alpha, sigma)).square().mean()


def sample(net: Net, xt: Tensor, num_steps: int, *, start: float = 1.0) -> Tensor:
    """x0 of `xt` [B, …] at level `start`, by `num_steps` evenly spaced levels down to 0 (DDIM with eta 0; Song et al. 2021).

    Nothing is clipped on the way. `net(xt, level [B])` answers v.
    """
    for now, after in pairwise(_levels(num_steps, start)):
        xt = _step(net, xt, now, after)
    return xt


def restyle(net: Net, sounds: Tensor, noise: Tensor, num_steps: int, amount: float) -> Tensor:
    """Sounds [B, …] with noise of level `amount`, sampled from there (Meng et al. 2022): 0 changes nothing, 1 keeps nothing."""
    if amount == 0:
        return sounds
    alpha, sigma = alpha_sigma(amount)
    return sample(net, alpha * sounds + sigma * noise, num_steps, start=amount)


def inpaint(net: Net, sounds: Tensor, keep: Tensor, rngs: Sequence[torch.Generator], num_steps: int, resamples: int = 1) -> Tensor:
    """Sounds [B, …] with all but what `keep` (boolean, broadcast over them) says made anew; what is kept is kept bit for bit.

    At every level the kept part is the known sound with fresh noise (Lugmayr et al. 2022); a step is taken `resamples` times,
    noised again in between, so that both parts grow together. One CPU generator for each sound.
    """

    def draw() -> Tensor:
        return torch.stack([torch.randn(sounds.shape[1:], generator=rng) for rng in rngs]).to(sounds)

    xt = draw()
    for now, after in pairwise(_levels(num_steps, 1.0)):
        alpha, sigma = alpha_sigma(after)
        for turn in range(resamples):
            xt = torch.where(keep, alpha * sounds + sigma * draw(), _step(net, xt, now, after))
            if turn + 1 < resamples:
                alpha_now, sigma_now = alpha_sigma(now)
                ratio = alpha_now / alpha
                xt = ratio * xt + math.sqrt(max(sigma_now**2 - (ratio * sigma) ** 2, 0.0)) * draw()
    return torch.where(keep, sounds, xt)


def slerp(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Noise on the way from one to another along the sphere that noise lies on (Shoemake 1985): 0 is the first, 1 the second."""
    angle = torch.arccos(torch.nn.functional.cosine_similarity(first.flatten(), second.flatten(), dim=0).clamp(-1, 1))
    if angle < 1e-6:
        return torch.lerp(first, second, share)
    return (torch.sin((1 - share) * angle) * first + torch.sin(share * angle) * second) / torch.sin(angle)


def _levels(num_steps: int, start: float) -> list[float]:
    return [start * (num_steps - step) / num_steps for step in range(num_steps + 1)]


def _step(net: Net, xt: Tensor, now: float, after: float) -> Tensor:
    """From level `now` to `after`."""
    v = net(xt, torch.full((len(xt),), now, device=xt.device, dtype=xt.dtype)).to(xt.dtype)
    (alpha, sigma), (to_alpha, to_sigma) = alpha_sigma(now), alpha_sigma(after)
    return to_alpha * (alpha * xt - sigma * v) + to_sigma * (sigma * xt + alpha * v)
