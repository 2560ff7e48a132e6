"""Reverse processes over noise schedules that differ from the training's, by fractional timesteps (DiffWave: Kong et al. 2021)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from soundmill.diffusion.objectives import Net
from soundmill.diffusion.schedules import alpha_bar_to_betas, betas_to_alpha_bar
from soundmill.errors import UserError

TOLERANCE = 1e-9  # for comparing noise levels


def aligned_timesteps(betas: Tensor, table: Tensor) -> Tensor:
    """Fractional timesteps [N], float64, at which a net trained on alpha_bar `table` [T] saw the noise levels of `betas` [N].

    √alpha_bar is interpolated linearly between timesteps (Kong et al. 2021, appendix B). UserError if betas do not increase within
    (0, 1), or if a noise level is outside the training's range.
    """
    if ((betas <= 0) | (betas >= 1)).any():
        raise UserError(f"noise schedule {betas.tolist()}: every beta must lie between 0 and 1")
    if (betas[1:] <= betas[:-1]).any():
        raise UserError(f"noise schedule {betas.tolist()}: betas must increase")
    levels, trained = betas_to_alpha_bar(betas).sqrt(), table.sqrt()
    if levels[0] > trained[0] + TOLERANCE or levels[-1] < trained[-1] - TOLERANCE:
        raise UserError(
            f"noise schedule {betas.tolist()}: its alpha_bar goes from {levels[0] ** 2:.6g} to {levels[-1] ** 2:.6g}; it must stay "
            f"within the training's range, {trained[0] ** 2:.6g} to {trained[-1] ** 2:.6g}"
        )
    before = (torch.searchsorted(-trained, -levels, right=True) - 1).clamp(0, len(table) - 2)
    fraction = (trained[before] - levels) / (trained[before] - trained[before + 1])
    return before + fraction.clamp(0, 1)


def spread_betas(table: Tensor, num_steps: int) -> Tensor:
    """Betas [N], float64, at N timesteps evenly spaced over alpha_bar `table` [T]; for N = 1, the last."""
    timesteps = torch.linspace(len(table) - 1, 0, num_steps, dtype=torch.float64).flip(0)
    before = timesteps.long().clamp(max=len(table) - 2)
    levels = table.sqrt()
    return alpha_bar_to_betas(torch.lerp(levels[before], levels[before + 1], timesteps - before).square())


def ancestral(
    net: Net, noise: Tensor, betas: Tensor, timesteps: Tensor, rngs: Sequence[torch.Generator], clip: float | None = 1.0
) -> Tensor:
    """Denoise `noise` [B, …] over the steps of `betas` [N] by `net(xt, t [B])`, which predicts noise; t is taken from `timesteps`.

    Each item has its own CPU generator, from which the noise of every step is drawn. `clip` is that of `ancestral_step`.
    """
    xt = noise
    for step in reversed(range(len(betas))):
        predicted = net(xt, torch.full((len(xt),), float(timesteps[step]), device=xt.device))
        drawn = torch.stack([torch.randn(xt.shape[1:], generator=rng) for rng in rngs]) if step else None
        xt = ancestral_step(xt, predicted, betas, step, drawn, clip)
    return xt


def ancestral_step(
    xt: Tensor, predicted: Tensor, betas: Tensor, step: int, noise: Tensor | None, clip: float | None = 1.0
) -> Tensor:
    """One reverse step from `xt` [B, …], given the `predicted` noise, at `step` of `betas` [N]; step 0 adds no noise.

    sigma² = beta·(1 − alpha_bar_{n−1}) / (1 − alpha_bar_n) (Ho et al. 2020, section 3.2). The result is clipped to
    ±`clip`, if given; DiffWave clips to 1.
    """
    alpha_bar = betas_to_alpha_bar(betas)
    beta, level = float(betas[step]), float(alpha_bar[step])
    xt = (xt - beta / (1 - level) ** 0.5 * predicted.float()) / (1 - beta) ** 0.5
    if step:
        sigma = (beta * (1 - float(alpha_bar[step - 1])) / (1 - level)) ** 0.5
        xt = xt + sigma * noise.to(xt)
    return xt if clip is None else xt.clamp(-clip, clip)
