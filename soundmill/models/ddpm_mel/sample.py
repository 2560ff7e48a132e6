"""From noise to log-mels: latents by the reverse process, put as pictures, each item from its own seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from soundmill.diffusion.guidance import guided
from soundmill.diffusion.objectives import Net
from soundmill.diffusion.samplers import sample_each
from soundmill.models.ddpm_mel.picture import rescaled
from soundmill.models.family import Run
from soundmill.training.device import autocast, evaluating
from soundmill.training.seeds import seed_of

if TYPE_CHECKING:
    from soundmill.models.ddpm_mel.model import DdpmMel


def sample_log_mels(model: DdpmMel, conditions: Tensor, seeds: list[int], run: Run) -> Tensor:
    """Log-mels [N, n_mels, frames] on the CPU for label weights [N, num_labels]; `model.net` is moved to the run's device."""
    sampling, device = run.sampling, run.device
    net, picture, diffusion = model.net.to(device), model.picture.cpu(), model.params.diffusion
    first, last = sampling.guidance_interval

    def denoiser(part: slice) -> Net:
        condition = conditions[part].to(device)

        def denoise(xt: Tensor, t: Tensor) -> Tensor:
            within = first <= int(t[0]) / diffusion.num_timesteps <= last
            scale = sampling.guidance_scale if within and model.labels else 1.0
            if model.params.network.channels_last:
                xt = xt.contiguous(memory_format=torch.channels_last)
            with autocast(device, run.precision):
                return guided(net, xt, t, (condition,), (torch.zeros_like(condition),), scale).float()

        return denoise

    with torch.no_grad(), evaluating(net):
        latents = sample_each(
            denoiser,
            seeds,
            picture.shape,
            diffusion,
            sampling,
            device,
            run.batch_size,
            run.progress,
            clip=sampling.clip,
            first=diffusion.first_timestep,
        )
        pictures = picture.from_latent(latents)
        if sampling.rescale:
            pictures = rescaled(pictures)
        levels = torch.stack([_draw_level(model, *item) for item in zip(conditions, seeds, strict=True)])
        return picture.from_picture(pictures, levels)


def _draw_level(model: DdpmMel, condition: Tensor, seed: int) -> Tensor:
    """The level of a training clip whose labels are most like `condition`, drawn by the item's seed."""
    likeness = model.level_labels @ condition
    candidates = model.levels[likeness >= likeness.max() - 1e-6]
    rng = torch.Generator().manual_seed(seed_of(seed, "level"))
    return candidates[int(torch.randint(len(candidates), (), generator=rng))]
