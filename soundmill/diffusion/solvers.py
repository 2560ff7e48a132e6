"""The steps from noise to sound: DDIM, Euler, midpoint, ping-pong, ancestral, and those of diffusers' schedulers."""

import math
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from soundmill.diffusion.params import check_betas
from soundmill.diffusion.paths import Discrete, Flow, Net, Velocity, alpha_bar_to_betas, betas_to_alpha_bar, shifted
from soundmill.diffusion.sampling import Draw, Steps
from soundmill.errors import UserError
from soundmill.params import read_yaml

Solver = Literal["euler", "midpoint", "pingpong"]
PASSES: dict[Solver, int] = {"euler": 1, "midpoint": 2, "pingpong": 1}  # evaluations of the net per step
Sampler = Literal["ddpm", "ddim", "dpm++", "unipc"]
Spacing = Literal["trailing", "leading"]
Variance = Literal["large", "small"]
SCHEDULERS: dict[Sampler, tuple[str, dict[str, Any]]] = {  # of diffusers
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": True}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "unipc": ("UniPCMultistepScheduler", {"solver_order": 2, "solver_type": "bh2"}),
}
STABLE_AUDIO = read_yaml(Path(__file__).with_name("stable_audio.yaml"))  # of its scheduler, as published


def velocity(num_steps: int) -> Steps:
    """DDIM with eta 0 (Song et al. 2021) of v-diffusion, in evenly spaced steps."""
    path = Velocity()

    def step(net: Net, xt: Tensor, now: float, after: float, draw: Draw) -> Tensor:
        (alpha, sigma), (to_alpha, to_sigma), v = path.alpha_sigma(now), path.alpha_sigma(after), _output(net, xt, now)
        return to_alpha * path.x0(v, xt, alpha, sigma) + to_sigma * path.noise(v, xt, alpha, sigma)

    return Steps([(num_steps - step) / num_steps for step in range(num_steps + 1)], path.alpha_sigma, step)


def flow(num_steps: int, solver: Solver = "euler", shift: float = 1.0) -> Steps:
    """Steps of rectified flow at evenly spaced times, then shifted.

    Euler's method has an error of the order of the step, the midpoint method, with two passes per step, of its square. Ping-pong
    sampling (Novack et al. 2025, arXiv:2505.08175) goes to the sound in each step and adds new noise; its times are evenly spaced
    in ln(signal / noise) from −6 to 2, without shift, as Stable Audio Open Small is sampled.
    """
    path = Flow()

    def step(net: Net, xt: Tensor, now: float, after: float, draw: Draw) -> Tensor:
        predicted = _output(net, xt, now)
        if solver == "pingpong":
            return (1 - after) * path.x0(predicted, xt, 1 - now, now) + after * draw.like(xt)
        if solver == "midpoint":
            middle = (now + after) / 2
            predicted = _output(net, xt + (middle - now) * predicted, middle)
        return xt + (after - now) * predicted

    if solver == "pingpong":
        inner = torch.sigmoid(-torch.linspace(-6, 2, num_steps + 1, dtype=torch.float64))[1:-1]
        return Steps([1.0, *inner.tolist(), 0.0], path.alpha_sigma, step)
    return Steps(shifted(torch.linspace(1, 0, num_steps + 1, dtype=torch.float64), shift).tolist(), path.alpha_sigma, step)


def continuous(path: str, num_steps: int) -> Steps:
    """Steps of one pass along a path of `paths.PATHS`."""
    return velocity(num_steps) if path == "v" else flow(num_steps)


def stable_audio(num_steps: int, device: torch.device) -> Steps:
    """Stable Audio's sampler: second-order DPM-Solver++ (Lu et al. 2022) of the stochastic equation of v-diffusion.

    Its levels are deviations of noise that is added to a sound left as it is.
    """
    from diffusers.schedulers.scheduling_edm_dpmsolver_multistep import EDMDPMSolverMultistepScheduler

    scheduler = EDMDPMSolverMultistepScheduler(**STABLE_AUDIO, algorithm_type="sde-dpmsolver++")
    scheduler.set_timesteps(num_steps, device=device)

    def step(net: Net, xt: Tensor, now: float, after: float, draw: Draw) -> Tensor:
        v = _output(net, xt / math.sqrt(now**2 + 1), 2 / math.pi * math.atan(now))
        return scheduler.step(v, scheduler.timesteps[levels.index(now)], xt, generator=list(draw.rngs)).prev_sample

    levels = scheduler.sigmas.tolist()
    return Steps(levels, lambda sigma: (1.0, sigma), step, scheduler.init_noise_sigma, remember=True)


def scheduled(
    path: Discrete,
    sampler: Sampler,
    num_steps: int,
    device: torch.device,
    *,
    clip: float | None = None,
    spacing: Spacing = "trailing",
    variance: Variance = "large",
) -> Steps:
    """Steps over the timesteps of a schedule; sounds are float32.

    `ddpm` draws noise; its sigma² is beta_t (`large`) or beta_t·(1 − alpha_bar_{t−1}) / (1 − alpha_bar_t) (`small`; Ho et al. 2020,
    section 3.2). `ddim` is Song et al. 2021 with eta 0, `dpm++` the second-order multistep solver of Lu et al. 2022, `unipc` the
    second-order predictor-corrector of Zhao et al. 2023; the last two remember earlier steps. Each output of the net is converted
    to x0 and clipped to ±`clip` if given. Timesteps below `path.first` are not visited, and `ddpm` returns the posterior mean of
    the step from the last visited timestep to the one before. UserError if there are more steps than timesteps.
    """
    visited = timesteps(len(path.table), num_steps, spacing, path.first)
    scheduler = _scheduler(sampler, path.table[visited[::-1]], variance)
    scheduler.set_timesteps(num_steps, device=device)
    at = dict(zip(visited, scheduler.timesteps, strict=True))
    on_device = Discrete(path.table.to(device), path.objective)
    last = path.first - 1 if sampler == "ddpm" else -1

    def step(net: Net, xt: Tensor, now: float, after: float, draw: Draw) -> Tensor:
        xt, times = xt.float(), torch.full((len(xt),), now, device=xt.device)
        alpha, sigma = (one.reshape(-1, *[1] * (xt.ndim - 1)) for one in on_device.alpha_sigma(times))
        x0 = path.x0(net(xt, times).float(), xt, alpha, sigma)
        if clip is not None:
            x0 = x0.clamp(-clip, clip)
        if after == last:
            return x0 if last < 0 else _posterior_mean(x0, xt, path.table[now], path.table[last])
        extra = {"generator": list(draw.rngs)} if sampler == "ddpm" else {}
        return scheduler.step(x0, at[now], xt, **extra).prev_sample

    return Steps([*visited, last], path.alpha_sigma, step, remember=sampler in ("dpm++", "unipc"))


def ancestral(betas: Tensor, timesteps: Tensor, clip: float | None) -> Steps:
    """The steps of a noise schedule `betas` [N] that differs from the training's; a net that predicts noise sees it at `timesteps`
    [N], which may be fractional (DiffWave: Kong et al. 2021). `clip` is that of `ancestral_step`."""

    def step(net: Net, xt: Tensor, now: float, after: float, draw: Draw) -> Tensor:
        predicted = net(xt, torch.full((len(xt),), float(timesteps[now]), device=xt.device))
        return ancestral_step(xt, predicted, betas, now, draw.like(xt) if now else None, clip)

    return Steps(range(len(betas) - 1, -2, -1), Discrete(betas_to_alpha_bar(betas)).alpha_sigma, step)


def ancestral_step(xt: Tensor, predicted: Tensor, betas: Tensor, step: int, noise: Tensor | None, clip: float | None) -> Tensor:
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


def aligned_timesteps(betas: Tensor, table: Tensor) -> Tensor:
    """Fractional timesteps [N], float64, at which a net trained on alpha_bar `table` [T] saw the noise levels of `betas` [N].

    √alpha_bar is interpolated linearly between timesteps (Kong et al. 2021, appendix B). UserError if betas do not increase within
    (0, 1), or if a noise level is outside the training's range.
    """
    check_betas(betas.tolist(), table.tolist())
    levels, trained = betas_to_alpha_bar(betas).sqrt(), table.sqrt()
    before = (torch.searchsorted(-trained, -levels, right=True) - 1).clamp(0, len(table) - 2)
    fraction = (trained[before] - levels) / (trained[before] - trained[before + 1])
    return before + fraction.clamp(0, 1)


def spread_betas(table: Tensor, num_steps: int) -> Tensor:
    """Betas [N], float64, at N timesteps evenly spaced over alpha_bar `table` [T]; for N = 1, the last."""
    spread = torch.linspace(len(table) - 1, 0, num_steps, dtype=torch.float64).flip(0)
    before = spread.long().clamp(max=len(table) - 2)
    levels = table.sqrt()
    return alpha_bar_to_betas(torch.lerp(levels[before], levels[before + 1], spread - before).square())


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


def _output(net: Net, xt: Tensor, t: float) -> Tensor:
    return net(xt, torch.full((len(xt),), t, device=xt.device, dtype=xt.dtype)).to(xt.dtype)


def _posterior_mean(x0: Tensor, xt: Tensor, level: Tensor, before: Tensor) -> Tensor:
    """Mean of the step from alpha_bar `level`, where xt is, to alpha_bar `before` (Ho et al. 2020, eq. 7)."""
    kept = level / before
    return (float(before.sqrt() * (1 - kept)) * x0 + float(kept.sqrt() * (1 - before)) * xt) / float(1 - level)


def _scheduler(sampler: Sampler, visited: Tensor, variance: Variance) -> Any:
    """A scheduler of diffusers for a process of only the `visited` timesteps, given by their alpha_bar [num_steps].

    This way all samplers use our spacing; the schedulers' rules differ, and some are wrong if num_steps does not divide T.
    """
    import diffusers  # which imports a scheduler only when it is asked for: some need scipy.stats, which takes a second

    common = {
        "num_train_timesteps": len(visited),
        "trained_betas": alpha_bar_to_betas(visited).numpy(),
        "prediction_type": "sample",
        "timestep_spacing": "trailing",
    }
    name, options = SCHEDULERS[sampler]
    if sampler == "ddpm":
        options = options | {"variance_type": f"fixed_{variance}"}
    scheduler = getattr(diffusers, name)(**common, **options)
    # diffusers computes it in float32, which rounds a beta of 1 − 1e-9 to 1 and so loses all signal.
    scheduler.alphas_cumprod = visited.float()
    return scheduler
