"""Reverse processes over other noise schedules than a net was trained on, by fractional timesteps (DiffWave: Kong et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from soundmill.diffusion.objectives import Net
from soundmill.diffusion.schedules import alpha_bar_to_betas, betas_to_alpha_bar
from soundmill.errors import UserError

TOLERANCE = 1e-9  # of noise levels that should be equal


def aligned_timesteps(betas: Tensor, table: Tensor) -> Tensor:
    """The fractional timestep [N], float64, at which a net trained on alpha_bar `table` [T] saw the noise of each of N steps.

    Between timesteps √alpha_bar is interpolated linearly (Kong et al. 2021, appendix B). Betas that are no rising noise, and a
    level that the training never had, are a UserError.
    """
    if ((betas <= 0) | (betas >= 1)).any():
        raise UserError(f"noise schedule {betas.tolist()}: every beta must lie between 0 and 1")
    if (betas[1:] <= betas[:-1]).any():
        raise UserError(f"noise schedule {betas.tolist()}: betas must increase")
    levels, known = betas_to_alpha_bar(betas).sqrt(), table.sqrt()
    if levels[0] > known[0] + TOLERANCE or levels[-1] < known[-1] - TOLERANCE:
        raise UserError(
            f"noise schedule {betas.tolist()}: its alpha_bar goes from {levels[0] ** 2:.6g} to {levels[-1] ** 2:.6g}, that of the "
            f"training from {known[0] ** 2:.6g} to {known[-1] ** 2:.6g}; stay within"
        )
    before = (torch.searchsorted(-known, -levels, right=True) - 1).clamp(0, len(table) - 2)
    share = (known[before] - levels) / (known[before] - known[before + 1])
    return before + share.clamp(0, 1)


def spread_betas(table: Tensor, num_steps: int) -> Tensor:
    """Betas [N], float64, of N timesteps evenly spaced from the first to the last of alpha_bar `table` [T], of one the last."""
    timesteps = torch.linspace(len(table) - 1, 0, num_steps, dtype=torch.float64).flip(0)
    before = timesteps.long().clamp(max=len(table) - 2)
    known = table.sqrt()
    return alpha_bar_to_betas(torch.lerp(known[before], known[before + 1], timesteps - before).square())


def ancestral(
    net: Net,
    noise: Tensor,
    betas: Tensor,
    timesteps: Tensor,
    rngs: Sequence[torch.Generator],
    callback: Callable[[int], Any] = lambda step: None,
) -> Tensor:
    """Denoise `noise` [B, …] over steps of `betas` [N] by `net(xt, t [B])`, which predicts noise; `timesteps` [N] are its t.

    The noise of each step is drawn from one CPU generator for each item.
    """
    xt = noise
    for step in reversed(range(len(betas))):
        predicted = net(xt, torch.full((len(xt),), float(timesteps[step]), device=xt.device))
        drawn = torch.stack([torch.randn(xt.shape[1:], generator=rng) for rng in rngs]) if step else None
        xt = ancestral_step(xt, predicted, betas, step, drawn)
        callback(step)
    return xt


def ancestral_step(xt: Tensor, predicted: Tensor, betas: Tensor, step: int, noise: Tensor | None) -> Tensor:
    """What lies below `xt` [B, …], in which a net `predicted` noise, at `step` of `betas` [N]; step 0 takes no noise.

    sigma² = beta·(1 − alpha_bar_{n−1}) / (1 − alpha_bar_n) (Ho et al. 2020, section 3.2); held within ±1, as DiffWave samples.
    """
    alpha_bar = betas_to_alpha_bar(betas)
    beta, level = float(betas[step]), float(alpha_bar[step])
    xt = (xt - beta / (1 - level) ** 0.5 * predicted.float()) / (1 - beta) ** 0.5
    if step:
        sigma = (beta * (1 - float(alpha_bar[step - 1])) / (1 - level)) ** 0.5
        xt = xt + sigma * noise.to(xt)
    return xt.clamp(-1, 1)
