"""Stable Audio's sampler: second-order DPM-Solver++ (Lu et al. 2022) of the stochastic equation, from diffusers."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from soundmill.diffusion import inpainting
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
    scheduler = _scheduler(num_steps, noise)
    xt = noise * scheduler.init_noise_sigma
    for sigma in scheduler.sigmas[:-1].tolist():  # the last is 0
        xt = _step(scheduler, net, xt, sigma, rngs)
    return xt


def inpaint(net: Net, sounds: Tensor, keep: Tensor, rngs: Sequence[torch.Generator], num_steps: int) -> Tensor:
    """Regenerate sounds [N, …] where `keep` (boolean, broadcast) is false; see diffusion/inpainting.py."""
    scheduler = _scheduler(num_steps, sounds)

    def step(xt: Tensor, now: float, after: float) -> Tensor:
        return _step(scheduler, net, xt, now, rngs)

    return inpainting.inpaint(step, alpha_sigma, scheduler.sigmas.tolist(), sounds, keep, inpainting.drawing(sounds, rngs))


def alpha_sigma(sigma: float) -> tuple[float, float]:
    """Signal and noise scale: the solver's path adds noise and leaves the sound as it is."""
    return 1.0, sigma


def _scheduler(num_steps: int, sounds: Tensor) -> Any:
    """The scheduler before its first step; its `sigmas` fall to 0."""
    from diffusers.schedulers.scheduling_edm_dpmsolver_multistep import EDMDPMSolverMultistepScheduler

    if num_steps < 2:
        raise UserError("sampling.solver `dpm++_sde` needs sampling.num_steps of 2 or more")
    scheduler = EDMDPMSolverMultistepScheduler(**SCHEDULE, algorithm_type="sde-dpmsolver++")
    scheduler.set_timesteps(num_steps, device=sounds.device)
    return scheduler


def _step(scheduler: Any, net: Net, xt: Tensor, sigma: float, rngs: Sequence[torch.Generator]) -> Tensor:
    """The scheduler's next step, which is from noise of deviation `sigma`."""
    level = torch.full((len(xt),), 2 / math.pi * math.atan(sigma), device=xt.device, dtype=xt.dtype)
    v = net(xt / math.sqrt(sigma**2 + 1), level)
    timestep = scheduler.timesteps[scheduler.step_index or 0]
    return scheduler.step(v, timestep, xt, generator=list(rngs)).prev_sample
