"""Sounds from a model: noise and a text → latents → log-mels → waves, each item from its own seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from soundmill.audio.invert import mel_to_wave
from soundmill.diffusion.guidance import guided
from soundmill.diffusion.samplers import sample
from soundmill.diffusion.schedules import alpha_bar
from soundmill.models.tango.checkpoint import Model
from soundmill.models.tango.conditions import pad
from soundmill.models.tango.params import SamplingParams
from soundmill.models.tango.vocoder import to_wave
from soundmill.training.device import autocast, evaluating

GRIFFIN_LIM_SEED = 0  # the phases it starts from are the same for every clip, real or generated


def sample_latents(
    model: Model,
    states: Sequence[np.ndarray],
    null: np.ndarray,
    seeds: Sequence[int],
    sampling: SamplingParams,
    *,
    device: torch.device,
    precision: str,
    batch_size: int,
    progress: Callable[[int], Any] = lambda n: None,
) -> Tensor:
    """x0 [N, channels, frames, bands] on the CPU for texts [tokens, width]; `null` are those of no text. `model.net` is moved."""
    net, made = model.net.to(device), []
    with torch.no_grad(), evaluating(net):
        for start in range(0, len(states), batch_size):
            part = slice(start, start + batch_size)
            latents = _sample(model, states[part], null, seeds[part], sampling, device, precision)
            made.append(latents.cpu())
            progress(len(latents))
    return torch.cat(made)


def _sample(
    model: Model,
    states: Sequence[np.ndarray],
    null: np.ndarray,
    seeds: Sequence[int],
    sampling: SamplingParams,
    device: torch.device,
    precision: str,
) -> Tensor:
    values, mask = pad([*states, null])  # to one length, as guidance's single pass needs
    values, mask = values.float().to(device), mask.to(device)
    condition = values[:-1], mask[:-1]
    unconditional = values[-1:].expand_as(condition[0]), mask[-1:].expand_as(condition[1])

    def denoise(xt: Tensor, t: Tensor) -> Tensor:
        with autocast(device, precision):
            return guided(model.net, xt, t, condition, unconditional, sampling.guidance_scale).float()

    # Drawn on the CPU: a seed means the same sound with and without a GPU, up to rounding.
    rngs = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = torch.stack([torch.randn(model.latent_shape, generator=rng) for rng in rngs]).to(device)
    return sample(
        denoise,
        noise,
        table=alpha_bar(model.params.diffusion),
        objective=model.params.diffusion.objective,
        sampler=sampling.sampler,
        num_steps=sampling.num_steps,
        clip=None,
        rngs=rngs,
        spacing=sampling.spacing,
        variance=sampling.variance,
    )


def to_log_mels(model: Model, latents: Tensor, device: torch.device) -> Tensor:
    """Log-mels [N, n_mels, frames] on the CPU of scaled latents, one at a time: one long one fills a small machine's memory."""
    autoencoder = model.autoencoder.to(device)
    return torch.cat([autoencoder.decode(latent[None].to(device)).cpu() for latent in latents])


def to_waves(model: Model, log_mels: Tensor, sampling: SamplingParams, device: torch.device) -> Tensor:
    """Waves [N, model.num_samples] in [−1, 1] of log-mels: by the vocoder where the autoencoder has one, else by Griffin-Lim.

    One louder than full scale is turned down whole.
    """
    spec, vocoder = model.autoencoder.spec, model.autoencoder.to(device).vocoder
    waves = []
    with torch.no_grad():
        for log_mel in log_mels[:, None]:
            if vocoder is not None:
                wave = to_wave(vocoder, log_mel.to(device), spec.hop_length).cpu()
            else:
                iterations, momentum = sampling.griffin_lim_iterations, sampling.griffin_lim_momentum
                wave = mel_to_wave(log_mel, spec, model.num_samples, iterations, momentum, GRIFFIN_LIM_SEED)
            waves.append(wave)
    wave = torch.cat(waves)
    return wave / wave.abs().amax(1, keepdim=True).clamp_min(1)
