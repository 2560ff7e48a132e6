"""Rectified flow: straight paths between sounds and noise (Liu et al. 2022; Lipman et al. 2022, with optimal-transport paths).

At time t, xt = (1 − t)·x0 + t·noise: time 0 is the sound, time 1 pure noise. The net predicts the velocity noise − x0, the
derivative of xt; solving that equation from time 1 to 0 turns noise into a sound.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from soundmill.diffusion import inpainting
from soundmill.diffusion.objectives import Net, diffuse

Solver = Literal["euler", "midpoint", "pingpong"]
PASSES: dict[Solver, int] = {"euler": 1, "midpoint": 2, "pingpong": 1}  # evaluations of the net per step


def alpha_sigma(t: float) -> tuple[float, float]:
    """Signal and noise scale at time t."""
    return 1.0 - t, t


def loss(net: Net, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of noise − x0 = net(xt, t); x0, noise [B, …], t [B].

    A net that outputs 0 has expected loss 1 + the mean square of x0.
    """
    sigma = t.reshape(-1, *[1] * (x0.ndim - 1))
    return (net(diffuse(x0, noise, 1 - sigma, sigma), t).float() - (noise - x0)).square().mean()


def logit_normal(normal: Tensor, mean: float = 0.0, deviation: float = 1.0) -> Tensor:
    """Times in (0, 1) whose logits are normal, from standard normal values (Esser et al. 2024, section 3.1).

    The middle of the path, where the velocity is hardest to predict, is drawn most often. A `mean` above 0 favours noise.
    """
    return torch.sigmoid(mean + deviation * normal)


def length_shift(length: int, base_length: int) -> float:
    """The `shift` for sounds of `length` latents that gives each as much noise as `base_length` have at the same time: the square
    root of their ratio (Esser et al. 2024, section 5.3.2: at the same t, more values of one picture tell more of it)."""
    return math.sqrt(length / base_length)


def shifted(t: Tensor, shift: float) -> Tensor:
    """Times moved towards noise if `shift` is above 1: shift·t / (1 + (shift − 1)·t) (Esser et al. 2024, eq. 23)."""
    return shift * t / (1 + (shift - 1) * t)


def times(num_steps: int, solver: Solver, shift: float = 1.0) -> list[float]:
    """The num_steps + 1 times of a solution, from 1 to 0: evenly spaced, then shifted.

    Of `pingpong`, evenly spaced in ln SNR from −6 to 2, without shift, as Stable Audio Open Small is sampled.
    """
    if solver == "pingpong":
        return [1.0, *torch.sigmoid(-torch.linspace(-6, 2, num_steps + 1, dtype=torch.float64))[1:-1].tolist(), 0.0]
    return shifted(torch.linspace(1, 0, num_steps + 1, dtype=torch.float64), shift).tolist()


def sample(
    net: Net, noise: Tensor, num_steps: int, solver: Solver, shift: float = 1.0, rngs: Sequence[torch.Generator] = ()
) -> Tensor:
    """Turn standard normal `noise` [B, …] into sounds in `num_steps` steps; `net(xt, t [B])` predicts the velocity.

    Euler's method has an error of the order of the step, the midpoint method, with two passes per step, of its square. Ping-pong
    sampling (Novack et al. 2025, arXiv:2505.08175) goes to the sound in each step and adds new noise, each item's from its
    generator of `rngs`, on the CPU.
    """
    xt, draw = noise, inpainting.drawing(noise, rngs)
    for now, after in pairwise(times(num_steps, solver, shift)):
        xt = _step(net, xt, now, after, solver, draw)
    return xt


def inpaint(
    net: Net, sounds: Tensor, keep: Tensor, rngs: Sequence[torch.Generator], num_steps: int, solver: Solver, shift: float = 1.0
) -> Tensor:
    """Regenerate sounds [B, …] where `keep` (boolean, broadcast) is false; see diffusion/inpainting.py."""
    draw = inpainting.drawing(sounds, rngs)

    def step(xt: Tensor, now: float, after: float) -> Tensor:
        return _step(net, xt, now, after, solver, draw)

    return inpainting.inpaint(step, alpha_sigma, times(num_steps, solver, shift), sounds, keep, draw)


def _step(net: Net, xt: Tensor, now: float, after: float, solver: Solver, draw: Callable[[], Tensor]) -> Tensor:
    velocity = _velocity(net, xt, now)
    if solver == "pingpong":
        return (1 - after) * (xt - now * velocity) + after * draw()
    if solver == "midpoint":
        middle = (now + after) / 2
        velocity = _velocity(net, xt + (middle - now) * velocity, middle)
    return xt + (after - now) * velocity


def _velocity(net: Net, xt: Tensor, t: float) -> Tensor:
    return net(xt, torch.full((len(xt),), t, device=xt.device, dtype=xt.dtype)).to(xt.dtype)
