"""Sounds from a model: noise → latents → log-mels → waves, each item from its own seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from soundmill.audio.invert import mel_to_wave
from soundmill.diffusion.guidance import guided
from soundmill.diffusion.samplers import sample
from soundmill.diffusion.schedules import alpha_bar
from soundmill.models.ddpm_mel.checkpoint import Model
from soundmill.models.ddpm_mel.params import SamplingParams
from soundmill.training.device import autocast, evaluating
from soundmill.training.seeds import seed_of

GRIFFIN_LIM_SEED = 0  # the phases it starts from are the same for every clip, real or generated


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
    net, picture = model.net.to(device), model.picture
    made = []
    with torch.no_grad(), evaluating(net):
        for start in range(0, len(conditions), batch_size):
            part = slice(start, start + batch_size)
            latent = _sample_latents(model, net, conditions[part].to(device), seeds[part], sampling, device, precision)
            levels = torch.stack([_draw_level(model, *item) for item in zip(conditions[part], seeds[part], strict=True)])
            made.append(picture.cpu().decode(latent.cpu(), levels))
            progress(len(latent))
    return torch.cat(made)


def _sample_latents(
    model: Model,
    net: nn.Module,
    condition: Tensor,
    seeds: list[int],
    sampling: SamplingParams,
    device: torch.device,
    precision: str,
) -> Tensor:
    table = alpha_bar(model.params.diffusion)
    first, last = sampling.guidance_interval

    def denoise(xt: Tensor, t: Tensor) -> Tensor:
        within = first <= int(t[0]) / len(table) <= last
        scale = sampling.guidance_scale if within and model.labels else 1.0
        with autocast(device, precision):
            return guided(net, xt, t, (condition,), (torch.zeros_like(condition),), scale).float()

    # Drawn on the CPU: a seed means the same sound with and without a GPU, up to rounding.
    rngs = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = torch.stack([torch.randn(model.picture.shape, generator=rng) for rng in rngs]).to(device)
    if model.params.network.channels_last:
        noise = noise.contiguous(memory_format=torch.channels_last)
    return sample(
        denoise,
        noise,
        table=table,
        objective=model.params.diffusion.objective,
        sampler=sampling.sampler,
        num_steps=sampling.num_steps,
        clip=sampling.clip,
        rngs=rngs,
    )


def _draw_level(model: Model, condition: Tensor, seed: int) -> Tensor:
    """The level of a training clip whose labels are most like `condition`, drawn by the item's seed."""
    likeness = model.level_labels @ condition
    candidates = model.levels[likeness >= likeness.max() - 1e-6]
    rng = torch.Generator().manual_seed(seed_of(seed, "level"))
    return candidates[int(torch.randint(len(candidates), (), generator=rng))]


def to_waves(log_mels: Tensor, model: Model, num_samples: int, sampling: SamplingParams) -> Tensor:
    """Waves [N, num_samples] in [−1, 1] of log-mels [N, n_mels, frames]; one louder than full scale is turned down whole."""
    with torch.no_grad():
        waves = [
            mel_to_wave(
                log_mel[None],
                model.spec,
                num_samples,
                sampling.griffin_lim_iterations,
                sampling.griffin_lim_momentum,
                GRIFFIN_LIM_SEED,
            )
            for log_mel in log_mels
        ]
    wave = torch.cat(waves)
    return wave / wave.abs().amax(1, keepdim=True).clamp_min(1)
