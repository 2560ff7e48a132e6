"""Stable Audio's sampler: second-order DPM-Solver++ (Lu et al. 2022) of the stochastic equation, from diffusers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from soundmill.diffusion.objectives import Net
from soundmill.errors import UserError

# Of diffusers' CosineDPMSolverMultistepScheduler, as published. That class needs torchsde for its noise; the same steps are in
# EDMDPMSolverMultistepScheduler, with independent normal noise, whose distribution is the same.
SCHEDULE: dict[str, Any] = {
    "sigma_min": 0.3,
    "sigma_max": 500,
    "sigma_data": 1.0,
    "sigma_schedule": "exponential",
    "prediction_type": "v_prediction",
    "solver_order": 2,
    "solver_type": "midpoint",
    "lower_order_final": True,
    "euler_at_final": False,
    "final_sigmas_type": "zero",
}


def sample(net: Net, noise: Tensor, num_steps: int, rngs: Sequence[torch.Generator]) -> Tensor:
    """Turn standard normal `noise` [N, …] into sounds; `net(xt, t [N])` predicts v at levels t in [0, 1] (diffusion/velocity.py).

    Each item's noise during the steps comes from its generator, on the CPU.
    """
    from diffusers.schedulers.scheduling_edm_dpmsolver_multistep import EDMDPMSolverMultistepScheduler

    if num_steps < 2:
        raise UserError("sampling.solver `dpm++_sde` needs sampling.num_steps of 2 or more")
    scheduler = EDMDPMSolverMultistepScheduler(**SCHEDULE, algorithm_type="sde-dpmsolver++")
    scheduler.set_timesteps(num_steps, device=noise.device)
    xt = noise * scheduler.init_noise_sigma
    for sigma, step in zip(scheduler.sigmas.tolist(), scheduler.timesteps, strict=False):  # the last sigma is 0
        level = torch.full((len(xt),), 2 / math.pi * math.atan(sigma), device=xt.device, dtype=xt.dtype)
        v = net(xt / math.sqrt(sigma**2 + 1), level)
        xt = scheduler.step(v, step, xt, generator=list(rngs)).prev_sample
    return xt
