"""Noise schedules as tables of alpha_bar over the training timesteps, in float64."""

import math

import torch
from torch import Tensor

from soundmill.diffusion.params import DiffusionParams

OFFSET = 0.008  # of the cosine, s in Nichol & Dhariwal 2021, eq. 17
MAX_BETA = 0.999  # Nichol & Dhariwal 2021, section 3.2: keeps the last step from being singular


def linear(num_timesteps: int, beta_start: float, beta_end: float) -> Tensor:
    """alpha_bar [T] of betas evenly spaced from `beta_start` to `beta_end` (Ho et al. 2020, section 4)."""
    return betas_to_alpha_bar(torch.linspace(beta_start, beta_end, num_timesteps, dtype=torch.float64))


def scaled_linear(num_timesteps: int, beta_start: float, beta_end: float) -> Tensor:
    """alpha_bar [T] of betas whose square roots are evenly spaced (Rombach et al. 2022)."""
    roots = torch.linspace(math.sqrt(beta_start), math.sqrt(beta_end), num_timesteps, dtype=torch.float64)
    return betas_to_alpha_bar(roots.square())


def cosine(num_timesteps: int) -> Tensor:
    """alpha_bar [T] of a squared cosine, betas at most 0.999 (Nichol & Dhariwal 2021, eq. 17)."""
    time = torch.linspace(0, 1, num_timesteps + 1, dtype=torch.float64)
    level = torch.cos((time + OFFSET) / (1 + OFFSET) * math.pi / 2).square()
    return betas_to_alpha_bar((1 - level[1:] / level[:-1]).clamp(max=MAX_BETA))


def shifted_cosine(num_timesteps: int, shift: float) -> Tensor:
    """alpha_bar [T] of a cosine schedule whose log-SNR is moved by 2·ln(shift) (Hoogeboom et al. 2023, eq. 9).

    `shift` < 1 spends more of the schedule at high noise, as large smooth pictures need.
    """
    time = torch.arange(1, num_timesteps + 1, dtype=torch.float64) / num_timesteps
    log_snr = -2 * torch.log(torch.tan(time.clamp(max=1 - 1e-9) * math.pi / 2)) + 2 * math.log(shift)
    return betas_to_alpha_bar(alpha_bar_to_betas(torch.sigmoid(log_snr)).clamp(max=MAX_BETA))


def alpha_bar(params: DiffusionParams) -> Tensor:
    """alpha_bar [T] of the schedule in `params`, whose unused parameters are ignored."""
    if params.schedule == "linear":
        return linear(params.num_timesteps, params.beta_start, params.beta_end)
    if params.schedule == "scaled_linear":
        return scaled_linear(params.num_timesteps, params.beta_start, params.beta_end)
    if params.schedule == "cosine":
        return cosine(params.num_timesteps)
    return shifted_cosine(params.num_timesteps, params.shift)


def betas_to_alpha_bar(betas: Tensor) -> Tensor:
    return torch.cumprod(1 - betas, dim=0)


def alpha_bar_to_betas(table: Tensor) -> Tensor:
    """The betas [T] of alpha_bar `table` [T]."""
    before = torch.cat([torch.ones(1, dtype=table.dtype), table[:-1]])
    return 1 - table / before
