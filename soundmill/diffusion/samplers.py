"""From noise to a picture: the reverse process with a trained net, by the step rules of diffusers' schedulers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from soundmill.diffusion.objectives import Net, Objective, to_x0
from soundmill.diffusion.schedules import alpha_bar_to_betas, alpha_sigma

Sampler = Literal["ddpm", "ddim", "dpm++"]


def sample(
    net: Net,
    noise: Tensor,
    *,
    table: Tensor,
    objective: Objective,
    sampler: Sampler,
    num_steps: int,
    clip: float | None,
    rngs: list[torch.Generator],
    callback: Callable[[int], Any] = lambda step: None,
) -> Tensor:
    """Denoise `noise` [B, C, H, W] in `num_steps` calls of `net(xt, t [B])`; returns x0, float32.

    `table` is alpha_bar [T]. `ddpm` draws its noise from one generator per item, so an item's result does not hang on its
    neighbours; sigma² = beta_t (Ho et al. 2020). `ddim` is Song et al. 2021 with eta 0, `dpm++` the second-order multistep
    solver of Lu et al. 2022. Every answer of the net is put as x0, held to ±`clip` if that is given, and stepped from.
    """
    scheduler = _scheduler(sampler, table)
    if sampler == "ddpm":  # its own rule for the timestep before this one is off where num_steps does not divide T
        scheduler.set_timesteps(timesteps=trailing_timesteps(len(table), num_steps), device=noise.device)
    else:
        scheduler.set_timesteps(num_steps, device=noise.device)
    extra = {"generator": rngs} if sampler == "ddpm" else {}
    xt = noise.float() * scheduler.init_noise_sigma
    for step, t in enumerate(scheduler.timesteps):
        times = t.long().expand(len(xt))
        alpha, sigma = alpha_sigma(table, times, xt.ndim)
        x0 = to_x0(objective, net(xt, times).float(), xt, alpha, sigma)
        if clip is not None:
            x0 = x0.clamp(-clip, clip)
        callback(step)
        if step + 1 < len(scheduler.timesteps):
            xt = scheduler.step(x0, t, xt, **extra).prev_sample
    return x0


def trailing_timesteps(num_timesteps: int, num_steps: int) -> list[int]:
    """`num_steps` evenly spaced timesteps, falling, that begin at the last one (Lin et al. 2024, table 2)."""
    return [round(num_timesteps * (num_steps - step) / num_steps) - 1 for step in range(num_steps)]


def _scheduler(sampler: Sampler, table: Tensor) -> Any:
    from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

    common = {
        "num_train_timesteps": len(table),
        "trained_betas": alpha_bar_to_betas(table).numpy(),
        "prediction_type": "sample",
        "timestep_spacing": "trailing",  # begins at the last timestep, where training ended: pure noise
    }
    if sampler == "ddpm":
        return DDPMScheduler(**common, variance_type="fixed_large", clip_sample=False)
    if sampler == "ddim":
        return DDIMScheduler(**common, clip_sample=False, set_alpha_to_one=True)
    if sampler == "dpm++":
        return DPMSolverMultistepScheduler(**common, algorithm_type="dpmsolver++", solver_order=2)
    raise ValueError(f"unknown sampler {sampler!r}")
