"""Sample latents for requests of any length: beyond the trained one, in windows that continue what is there."""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from soundmill.diffusion import sampling as diffusion
from soundmill.diffusion import solvers
from soundmill.diffusion.guidance import guided
from soundmill.diffusion.paths import length_shift
from soundmill.diffusion.sampling import Draw, Steps
from soundmill.errors import UserError
from soundmill.models.audio_dit.latents import Layout
from soundmill.models.audio_dit.params import FlowParams, SamplingParams, TrainParams, check_solver
from soundmill.models.components.dit.network import Conditions, DiT, hidden
from soundmill.models.family import Request, Run
from soundmill.models.sounds import in_precision
from soundmill.training.device import evaluating
from soundmill.training.seeds import seed_of


class Model(Protocol):
    """What sampling needs of the family's model."""

    params: TrainParams
    net: DiT
    layout: Layout
    latent_frames: int  # of what the net is trained on
    samples_per_latent: int
    num_samples: int  # of the longest training clip
    sample_rate: int

    def conditions(self, requests: Sequence[Request], seconds: Sequence[float], run: Run) -> Conditions: ...


def sample(model: Model, requests: Sequence[Request], lengths: Sequence[int], run: Run) -> list[Tensor]:
    """x0 [channels, frames] of each request, on the CPU, for sounds of `lengths` samples; moves `model.net`.

    A sound up to the trained length has all frames of the latents: the net is told where it ends. A longer one has windows, of
    which each keeps the last frames of the one before (`sampling.overlap`, or more in the last) and generates the rest. Each is
    told to start at 0 and to last as long as the longest training clip: what follows that in the latents was silence.
    """
    places = [window_starts(length, model, run.sampling.overlap) for length in lengths]
    model.net.to(run.device)
    with torch.no_grad(), evaluating(model.net):
        x0 = list(_window(model, requests, lengths, None, 0, run))
        for number in range(1, max(map(len, places))):
            longer = [item for item, starts in enumerate(places) if number < len(starts)]
            for item in longer:
                x0[item] = x0[item][:, : places[item][number - 1] + told_frames(model)]
            whole = [model.num_samples] * len(longer)
            before = [x0[item][:, places[item][number] :] for item in longer]
            found = _window(model, [requests[item] for item in longer], whole, before, number, run)
            for item, known, window in zip(longer, before, found, strict=True):
                x0[item] = torch.cat([x0[item], window[:, known.shape[1] :]], 1)
    return x0


def told_frames(model: Model) -> int:
    """Latents that lie whole within the longest training clip."""
    return max(1, model.num_samples // model.samples_per_latent)


def window_starts(length: int, model: Model, overlap: float) -> list[int]:
    """First latent of each window of a sound of `length` samples; the last window is the first that reaches the sound's end.

    It ends with the sound, but for a part of a latent, so that it is not told to be shorter than the others.
    """
    size = told_frames(model)
    last = math.ceil(max(0, length - model.num_samples) / model.samples_per_latent)
    return [*range(0, last, size - min(max(1, round(overlap * size)), size - 1)), last]


def _window(
    model: Model, requests: Sequence[Request], lengths: Sequence[int], before: Sequence[Tensor] | None, number: int, run: Run
) -> Tensor:
    """One window [N, channels, frames] of each sound, which is told to last `lengths` samples; `before` are its first frames."""
    sampling, flow = run.sampling, model.params.flow
    try:
        check_solver(flow, sampling)  # settings of this call may differ from the training's
    except ValueError as error:
        raise UserError(str(error)) from None
    seconds = [min(length, model.num_samples) / model.sample_rate for length in lengths]
    conditions = model.conditions(requests, seconds, run)
    denoise = in_precision(guided(model.net, conditions, hidden(conditions), sampling.guidance_scale), run)
    shape = len(model.layout.mean), model.latent_frames
    draw = Draw.of_seeds([seed_of(request.seed, "window", number) for request in requests])
    steps = steps_of(flow, sampling, shape[1], run.device)
    if before is None:
        return diffusion.sample(steps, denoise, draw.noise(shape).to(run.device), draw).cpu()
    given, keep = torch.zeros(len(requests), *shape), torch.zeros(len(requests), 1, shape[1], dtype=torch.bool)
    for item, known in enumerate(before):
        given[item, :, : known.shape[1]], keep[item, :, : known.shape[1]] = known, True
    return diffusion.inpaint(steps, denoise, given.to(run.device), keep.to(run.device), draw).cpu()


def steps_of(flow: FlowParams, sampling: SamplingParams, frames: int, device: torch.device) -> Steps:
    """From noise to latents of `frames` frames."""
    if sampling.solver == "dpm++_sde":
        return solvers.stable_audio(sampling.num_steps, device)
    if flow.objective == "v":
        return solvers.velocity(sampling.num_steps)
    return solvers.flow(sampling.num_steps, sampling.solver, shift_of(flow, frames))


def shift_of(flow: FlowParams, frames: int) -> float:
    """How far times are moved towards noise for latents of `frames` frames."""
    return length_shift(frames, flow.base_frames) if flow.base_frames else 1.0
