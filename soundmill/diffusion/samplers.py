"""Sampling: the reverse process of a trained net, with the update rules of diffusers' schedulers."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from soundmill.diffusion.objectives import Net, Objective, to_x0
from soundmill.diffusion.params import DiffusionParams, SamplerParams
from soundmill.diffusion.schedules import alpha_bar, alpha_bar_to_betas, alpha_sigma
from soundmill.errors import UserError

Sampler = Literal["ddpm", "ddim", "dpm++", "unipc"]
Spacing = Literal["trailing", "leading"]
Variance = Literal["large", "small"]


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
    first: int = 0,
    spacing: Spacing = "trailing",
    variance: Variance = "large",
) -> Tensor:
    """Denoise `noise` [B, C, H, W] in `num_steps` calls of `net(xt, t [B])`; returns x0, float32.

    `table` is alpha_bar [T]. `ddpm` draws noise from one generator per item, so an item does not depend on the rest of the batch;
    its sigma² is beta_t (`large`) or beta_t·(1 − alpha_bar_{t−1}) / (1 − alpha_bar_t) (`small`; Ho et al. 2020, section 3.2).
    `ddim` is Song et al. 2021 with eta 0, `dpm++` the second-order multistep solver of Lu et al. 2022, `unipc` the second-order
    predictor-corrector of Zhao et al. 2023. Each output of the net is converted to x0 and clipped to ±`clip` if given. UserError
    if there are more steps than timesteps.

    `first` is the first timestep that the net was trained on: earlier ones are not visited, and `ddpm` returns the posterior mean
    of the step from the last visited timestep to the one before `first`.
    """
    visited = timesteps(len(table), num_steps, spacing, first)
    scheduler = _scheduler(sampler, table[visited[::-1]], variance)
    scheduler.set_timesteps(num_steps, device=noise.device)
    extra = {"generator": rngs} if sampler == "ddpm" else {}
    xt, levels = noise.float(), table.to(noise.device)
    for step, t in enumerate(visited):
        times = torch.full((len(xt),), t, device=xt.device)
        alpha, sigma = alpha_sigma(levels, times, xt.ndim)
        x0 = to_x0(objective, net(xt, times).float(), xt, alpha, sigma)
        if clip is not None:
            x0 = x0.clamp(-clip, clip)
        if step + 1 < num_steps:
            xt = scheduler.step(x0, scheduler.timesteps[step], xt, **extra).prev_sample
    return _posterior_mean(x0, xt, table[visited[-1]], table[first - 1]) if sampler == "ddpm" and first else x0


def sample_each(
    denoiser: Callable[[slice], Net],
    seeds: Sequence[int],
    shape: tuple[int, ...],
    diffusion: DiffusionParams,
    sampling: SamplerParams,
    device: torch.device,
    batch_size: int,
    progress: Callable[[int], Any] = lambda n: None,
    *,
    clip: float | None = None,
    first: int = 0,
    spacing: Spacing = "trailing",
    variance: Variance = "large",
) -> Tensor:
    """x0 [N, *shape] on the CPU, one item per seed, by `sample`; `denoiser` returns the net for a batch, a slice of the items."""
    samples, table = [], alpha_bar(diffusion)
    for start in range(0, len(seeds), batch_size):
        part = slice(start, start + batch_size)
        # Drawn on the CPU, so that a seed gives the same sound with and without a GPU, up to rounding.
        rngs = [torch.Generator().manual_seed(seed) for seed in seeds[part]]
        x0 = sample(
            denoiser(part),
            torch.stack([torch.randn(shape, generator=rng) for rng in rngs]).to(device),
            table=table,
            objective=diffusion.objective,
            sampler=sampling.sampler,
            num_steps=sampling.num_steps,
            clip=clip,
            rngs=rngs,
            first=first,
            spacing=spacing,
            variance=variance,
        )
        samples.append(x0.cpu())
        progress(len(x0))
    return torch.cat(samples)


def timesteps(num_timesteps: int, num_steps: int, spacing: Spacing, first: int = 0) -> list[int]:
    """`num_steps` evenly spaced timesteps from `first` on, in descending order (Lin et al. 2024, table 2).

    `trailing` starts at the last timestep, pure noise. `leading` starts below it and ends at timestep 1, as in Stable Diffusion
    and TANGO.
    """
    trained = num_timesteps - first
    if num_steps > trained:
        raise UserError(f"{num_steps} sampling steps exceed the model's {trained} timesteps; take at most {trained}")
    if spacing == "trailing":
        return [first + round(trained * (num_steps - step) / num_steps) - 1 for step in range(num_steps)]
    stride = trained // num_steps
    offset = max(first, min(1, num_timesteps - 1 - (num_steps - 1) * stride))  # 0 if every timestep is visited
    return [offset + stride * step for step in reversed(range(num_steps))]


def _posterior_mean(x0: Tensor, xt: Tensor, level: Tensor, before: Tensor) -> Tensor:
    """Mean of the step from alpha_bar `level`, where xt is, to alpha_bar `before` (Ho et al. 2020, eq. 7)."""
    kept = level / before
    return (float(before.sqrt() * (1 - kept)) * x0 + float(kept.sqrt() * (1 - before)) * xt) / float(1 - level)


def _scheduler(sampler: Sampler, visited: Tensor, variance: Variance) -> Any:
    """A scheduler of diffusers for a process of only the `visited` timesteps, given by their alpha_bar [num_steps].

    This way all samplers use our spacing; the schedulers' rules differ, and some are wrong if num_steps does not divide T.
    """
    common = {
        "num_train_timesteps": len(visited),
        "trained_betas": alpha_bar_to_betas(visited).numpy(),
        "prediction_type": "sample",
        "timestep_spacing": "trailing",
    }
    if sampler == "ddpm":  # separate imports: the solvers import scipy.stats, which takes a second
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        scheduler = DDPMScheduler(**common, variance_type=f"fixed_{variance}", clip_sample=False)
    elif sampler == "ddim":
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        scheduler = DDIMScheduler(**common, clip_sample=False, set_alpha_to_one=True)
    elif sampler == "dpm++":
        from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

        scheduler = DPMSolverMultistepScheduler(**common, algorithm_type="dpmsolver++", solver_order=2)
    elif sampler == "unipc":
        from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

        scheduler = UniPCMultistepScheduler(**common, solver_order=2, solver_type="bh2")
    else:
        raise ValueError(f"unknown sampler {sampler!r}")
    # diffusers computes it in float32, which rounds a beta of 1 − 1e-9 to 1 and so loses all signal.
    scheduler.alphas_cumprod = visited.float()
    return scheduler
