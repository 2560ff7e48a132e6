"""Sounds from a model: noise → latents → log-mels → waves, each item from its own seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from soundmill.diffusion.guidance import guided
from soundmill.diffusion.objectives import Net
from soundmill.diffusion.samplers import sample_each
from soundmill.models.ddpm_mel.checkpoint import Model
from soundmill.models.ddpm_mel.params import SamplingParams
from soundmill.models.generation import by_griffin_lim, one_by_one
from soundmill.training.device import autocast, evaluating
from soundmill.training.seeds import seed_of


def sample_log_mels(
    model: Model,
    conditions: Tensor,
    seeds: list[int],
    sampling: SamplingParams,
    *,
    device: torch.device,
    precision: str,
    batch_size: int,
    progress: Callable[[int], Any] = lambda n: None,
) -> Tensor:
    """Log-mels [N, n_mels, frames] on the CPU for label weights [N, num_labels]; `model.net` is moved to `device`."""
    net, picture, diffusion = model.net.to(device), model.picture.cpu(), model.params.diffusion
    first, last = sampling.guidance_interval

    def denoiser(part: slice) -> Net:
        condition = conditions[part].to(device)

        def denoise(xt: Tensor, t: Tensor) -> Tensor:
            within = first <= int(t[0]) / diffusion.num_timesteps <= last
            scale = sampling.guidance_scale if within and model.labels else 1.0
            if model.params.network.channels_last:
                xt = xt.contiguous(memory_format=torch.channels_last)
            with autocast(device, precision):
                return guided(net, xt, t, (condition,), (torch.zeros_like(condition),), scale).float()

        return denoise

    with torch.no_grad(), evaluating(net):
        latents = sample_each(denoiser, seeds, picture.shape, diffusion, sampling, device, batch_size, progress, clip=sampling.clip)
        levels = torch.stack([_draw_level(model, *item) for item in zip(conditions, seeds, strict=True)])
        return picture.decode(latents, levels)


def _draw_level(model: Model, condition: Tensor, seed: int) -> Tensor:
    """The level of a training clip whose labels are most like `condition`, drawn by the item's seed."""
    likeness = model.level_labels @ condition
    candidates = model.levels[likeness >= likeness.max() - 1e-6]
    rng = torch.Generator().manual_seed(seed_of(seed, "level"))
    return candidates[int(torch.randint(len(candidates), (), generator=rng))]


def to_waves(model: Model, log_mels: Tensor, sampling: SamplingParams, device: torch.device) -> Tensor:
    return one_by_one(lambda log_mel: by_griffin_lim(log_mel, model.spec, model.num_samples, sampling), log_mels)
