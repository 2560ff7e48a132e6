"""Prediction targets — the noise (eps), the clean picture (x0) or the velocity (v) — and their losses."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from soundmill.diffusion.params import DiffusionParams
from soundmill.diffusion.schedules import alpha_sigma, signal_to_noise

Objective = Literal["eps", "x0", "v"]
Weighting = Literal["none", "min_snr", "min_snr_tango"]
Net = Callable[[Tensor, Tensor], Tensor]


def diffuse(x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """xt of the forward process (Ho et al. 2020, eq. 4); all [B, …], alpha and sigma broadcast."""
    return alpha * x0 + sigma * noise


def target(objective: Objective, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The target that a net predicts at (xt, t); v is alpha·noise − sigma·x0 (Salimans & Ho 2022, appendix D)."""
    if objective == "eps":
        return noise
    if objective == "x0":
        return x0
    return alpha * noise - sigma * x0


def to_x0(objective: Objective, output: Tensor, xt: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The clean picture implied by an output of the net."""
    if objective == "eps":
        return (xt - sigma * output) / alpha
    if objective == "x0":
        return output
    return alpha * xt - sigma * output


def weights(objective: Objective, weighting: Weighting, snr: Tensor, gamma: float) -> Tensor:
    """Per-item loss weights [B]. Min-SNR weights the x0 error by min(SNR, gamma), converted to the error of the objective.

    Hang et al. 2023 divide by SNR for eps, by SNR + 1 for v, and not at all for x0. `min_snr_tango` divides by SNR for all of them,
    as TANGO's code does: with v, this weights errors (SNR + 1) / SNR times as much, most of all at high noise.
    """
    if weighting == "none":
        return torch.ones_like(snr)
    clipped = snr.clamp(max=gamma)
    if weighting == "min_snr_tango":
        return clipped / snr
    return clipped / {"eps": snr, "v": snr + 1, "x0": torch.ones_like(snr)}[objective]


def per_item_loss(
    net: Net, objective: Objective, table: Tensor, x0: Tensor, t: Tensor, noise: Tensor, importance: Tensor | float = 1.0
) -> Tensor:
    """Mean squared error [B] of `net(xt, t)`; x0, noise [B, C, H, W], t [B] integer, table: alpha_bar [T].

    A net that outputs 0 has expected loss 1 with the eps objective. `importance`, broadcast over x0 and with mean 1, weights the
    errors of each channel; it does not change the optimal output.
    """
    alpha, sigma = alpha_sigma(table, t, x0.ndim)
    output = net(diffuse(x0, noise, alpha, sigma), t)
    errors = (output.float() - target(objective, x0, noise, alpha, sigma)).square() * importance
    return errors.flatten(1).mean(1)


def training_loss(
    net: Net, params: DiffusionParams, table: Tensor, x0: Tensor, t: Tensor, noise: Tensor, importance: Tensor | float = 1.0
) -> Tensor:
    """Scalar loss: the mean of `per_item_loss`, weighted by timestep as `params` say."""
    losses = per_item_loss(net, params.objective, table, x0, t, noise, importance)
    snr = signal_to_noise(table, t)
    return (losses * weights(params.objective, params.weighting, snr, params.min_snr_gamma).to(losses.dtype)).mean()
