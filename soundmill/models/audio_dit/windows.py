"""Sample latents for requests of any length: beyond the trained one, in windows that continue what is there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from soundmill.diffusion import rectified_flow, velocity
from soundmill.diffusion.guidance import guided
from soundmill.diffusion.objectives import Net
from soundmill.errors import UserError
from soundmill.models.audio_dit import dpm_solver
from soundmill.models.audio_dit.latents import Layout
from soundmill.models.audio_dit.network import Conditions, DiT, hidden
from soundmill.models.audio_dit.params import FlowParams, SamplingParams, TrainParams, check_solver
from soundmill.models.family import Request, Run
from soundmill.training.device import autocast, evaluating
from soundmill.training.seeds import seed_of


class Model(Protocol):
    """What sampling needs of the family's model."""

    params: TrainParams
    net: DiT
    layout: Layout
    latent_frames: int  # of a sound of the trained length
    samples_per_latent: int
    num_samples: int
    sample_rate: int

    def conditions(self, requests: Sequence[Request], seconds: Sequence[float], run: Run) -> Conditions: ...


def sample(model: Model, requests: Sequence[Request], lengths: Sequence[int], run: Run) -> list[Tensor]:
    """x0 [channels, frames] of each request, on the CPU, for sounds of `lengths` samples; moves `model.net`.

    A sound up to the trained length has all frames of that: the net is told where it ends. A longer one has windows of the trained
    length, each of which keeps the last frames of the one before and generates the rest (`sampling.overlap`); each is told to start
    at 0 and to last as long as what is left.
    """
    size = model.latent_frames
    overlap = min(max(1, round(run.sampling.overlap * size)), size - 1)
    model.net.to(run.device)
    with torch.no_grad(), evaluating(model.net):
        x0 = list(_window(model, requests, lengths, None, 0, run))
        for number in range(1, windows_of(max(lengths), model, overlap)):
            start = number * (size - overlap)
            longer = [item for item, length in enumerate(lengths) if windows_of(length, model, overlap) > number]
            left = [lengths[item] - start * model.samples_per_latent for item in longer]
            before = torch.stack([x0[item][:, -overlap:] for item in longer])
            found = _window(model, [requests[item] for item in longer], left, before, number, run)
            for item, window in zip(longer, found, strict=True):
                x0[item] = torch.cat([x0[item], window[:, overlap:]], 1)
    return x0


def windows_of(length: int, model: Model, overlap: int) -> int:
    """Number of windows of a sound of `length` samples."""
    beyond = math.ceil(length / model.samples_per_latent) - model.latent_frames
    return 1 + max(0, math.ceil(beyond / (model.latent_frames - overlap)))


def _window(
    model: Model, requests: Sequence[Request], lengths: Sequence[int], before: Tensor | None, number: int, run: Run
) -> Tensor:
    """One window [N, channels, frames] of each sound, of which `lengths` samples are left; `before` are its first frames."""
    sampling, flow = run.sampling, model.params.flow
    try:
        check_solver(flow, sampling)  # settings of this call may differ from the training's
    except ValueError as error:
        raise UserError(str(error)) from None
    seconds = [min(length, model.num_samples) / model.sample_rate for length in lengths]
    conditions = model.conditions(requests, seconds, run)
    predict = guided(model.net, conditions, hidden(conditions), sampling.guidance_scale)

    def denoise(xt: Tensor, t: Tensor) -> Tensor:
        with autocast(run.device, run.precision):
            return predict(xt, t).float()

    shape = len(model.layout.mean), model.latent_frames
    rngs = [torch.Generator().manual_seed(seed_of(request.seed, "window", number)) for request in requests]
    if before is None:
        noise = torch.stack([torch.randn(shape, generator=rng) for rng in rngs]).to(run.device)
        return from_noise(denoise, noise, flow, sampling, rngs).cpu()
    given = torch.zeros(len(requests), *shape)
    given[..., : before.shape[2]] = before
    keep = torch.arange(shape[1]) < before.shape[2]
    arguments = denoise, given.to(run.device), keep.to(run.device), rngs, sampling.num_steps
    if flow.objective == "v":  # DDIM, whatever the solver
        return velocity.inpaint(*arguments).cpu()
    return rectified_flow.inpaint(*arguments, sampling.solver, shift_of(flow, shape[1])).cpu()


def from_noise(net: Net, noise: Tensor, flow: FlowParams, sampling: SamplingParams, rngs: Sequence[torch.Generator]) -> Tensor:
    """x0 [N, channels, frames] of standard normal noise; `rngs` are each item's, for solvers that add noise."""
    if sampling.solver == "dpm++_sde":
        return dpm_solver.sample(net, noise, sampling.num_steps, rngs)
    if flow.objective == "v":
        return velocity.sample(net, noise, sampling.num_steps)
    return rectified_flow.sample(net, noise, sampling.num_steps, sampling.solver, shift_of(flow, noise.shape[2]))


def shift_of(flow: FlowParams, frames: int) -> float:
    """How far times are moved towards noise for latents of `frames` frames."""
    return rectified_flow.length_shift(frames, flow.base_frames) if flow.base_frames else 1.0
