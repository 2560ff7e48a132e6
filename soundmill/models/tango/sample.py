"""Sounds from a model: noise and a text → latents → log-mels → waves, each item from its own seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from soundmill.diffusion.guidance import guided
from soundmill.diffusion.objectives import Net
from soundmill.diffusion.samplers import sample_each
from soundmill.errors import UserError
from soundmill.models.generation import by_griffin_lim, one_by_one
from soundmill.models.tango.autoencoder import Autoencoder
from soundmill.models.tango.checkpoint import Model
from soundmill.models.tango.conditions import pad
from soundmill.models.tango.params import SamplingParams
from soundmill.training.device import autocast, evaluating

GRAIN_SEED = 0


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
    net = model.net.to(device)

    def denoiser(part: slice) -> Net:
        values, mask = pad([*states[part], null])  # to one length, as guidance's single pass needs
        values, mask = values.float().to(device), mask.to(device)
        condition = values[:-1], mask[:-1]
        unconditional = values[-1:].expand_as(condition[0]), mask[-1:].expand_as(condition[1])

        def denoise(xt: Tensor, t: Tensor) -> Tensor:
            with autocast(device, precision):
                return guided(net, xt, t, condition, unconditional, sampling.guidance_scale).float()

        return denoise

    rule = {"spacing": sampling.spacing, "variance": sampling.variance}
    with torch.no_grad(), evaluating(net):
        return sample_each(
            denoiser, seeds, model.latent_shape, model.params.diffusion, sampling, device, batch_size, progress, **rule
        )


def to_log_mels(model: Model, latents: Tensor, device: torch.device) -> Tensor:
    """Log-mels [N, n_mels, frames] on the CPU of scaled latents, one at a time: one long one fills a small machine's memory."""
    autoencoder = model.autoencoder.to(device)
    return torch.cat([autoencoder.decode(latent[None].to(device)).cpu() for latent in latents])


def to_waves(model: Model, log_mels: Tensor, sampling: SamplingParams, device: torch.device) -> Tensor:
    """By the vocoder or by Griffin-Lim, as `sampling` says, of log-mels with their grain."""
    log_mels = with_grain(log_mels, model.autoencoder, sampling.grain)
    if sampling.vocoder == "griffin_lim":
        return one_by_one(lambda log_mel: by_griffin_lim(log_mel, model.spec, model.num_samples, sampling), log_mels)
    if model.vocoder is None:
        raise UserError(
            "this checkpoint has no vocoder: set sampling.vocoder to `griffin_lim`, or train it with `vocoder=hifigan_laptop`"
        )
    vocoder = model.vocoder.to(device)
    return one_by_one(lambda log_mel: vocoder.to_wave(log_mel.to(device)).cpu(), log_mels)


def with_grain(log_mels: Tensor, autoencoder: Autoencoder, grain: float) -> Tensor:
    """Log-mels [N, n_mels, frames] with noise of `grain` times the deviation that real ones have from rebuilt ones, in each band.

    An autoencoder gives the expected log-mel, without the speckle of a real one, and Griffin-Lim makes tones of what is smooth.
    As with the phases that it starts from, every sound is given the same noise.
    """
    if not grain:
        return log_mels
    generator = torch.Generator().manual_seed(GRAIN_SEED)
    noise = torch.randn(log_mels.shape[1:], generator=generator) * torch.tensor(autoencoder.residual)[:, None]
    return (log_mels + grain * noise).clamp_min(autoencoder.silence)
