"""Inpainting with a net that was not trained for it (RePaint: Lugmayr et al. 2022), along any path from noise to sound."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

Step = Callable[[Tensor, float, float], Tensor]  # from xt at one level to another


def drawing(sounds: Tensor, rngs: Sequence[torch.Generator]) -> Callable[[], Tensor]:
    """A function that draws standard normal noise like sounds [B, …]; each sound has its own CPU generator."""
    return lambda: torch.stack([torch.randn(sounds.shape[1:], generator=rng) for rng in rngs]).to(sounds)


def inpaint(
    step: Step,
    alpha_sigma: Callable[[float], tuple[float, float]],
    levels: Sequence[float],
    sounds: Tensor,
    keep: Tensor,
    draw: Callable[[], Tensor],
    resamples: int = 1,
) -> Tensor:
    """Regenerate sounds [B, …] where `keep` (boolean, broadcast) is false; the rest is unchanged, bit for bit.

    `levels` fall from pure noise to 0; `alpha_sigma` gives signal and noise scale at one. At every level the kept part is the
    given sound with fresh noise. Each step is taken `resamples` times, with noise added in between, so that the parts fit
    together.
    """
    xt = alpha_sigma(levels[0])[1] * draw()
    for now, after in pairwise(levels):
        alpha, sigma = alpha_sigma(after)
        for turn in range(resamples):
            xt = torch.where(keep, alpha * sounds + sigma * draw(), step(xt, now, after))
            if turn + 1 < resamples:
                alpha_now, sigma_now = alpha_sigma(now)
                ratio = alpha_now / alpha
                xt = ratio * xt + math.sqrt(max(sigma_now**2 - (ratio * sigma) ** 2, 0.0)) * draw()
    return torch.where(keep, sounds, xt)
