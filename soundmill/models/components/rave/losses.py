"""What RAVE is trained by (Caillon & Esling 2021): a spectral distance, the KL divergence, and hinge losses of discriminators."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from soundmill.models.components.rave.params import FeaturesParams

LEAST_MAGNITUDE = 1e-7  # added before a logarithm
LEAST_POWER = 1e-8  # of a bin over its window's length, added to the real ones' mean: silence has none


def distance(made: Tensor, real: Tensor, scales: Sequence[int]) -> Tensor:
    """Spectral distance of signals [N, channels, T], summed over `scales`, the windows; those longer than T are left out.

    For each, ‖X − Y‖² / ‖X‖² + mean |ln X − ln Y| of magnitudes X of the real and Y of the made, a quarter of a window apart.
    """
    fitting = [scale for scale in scales if scale <= real.shape[2]]
    if not fitting:
        raise ValueError(f"no window of {list(scales)} fits into {real.shape[2]} samples")
    return torch.stack([_at(magnitudes(made, scale), magnitudes(real, scale), scale) for scale in fitting]).sum()


def _at(made: Tensor, real: Tensor, scale: int) -> Tensor:
    linear = (real - made).square().mean() / (real.square().mean() + scale * LEAST_POWER)
    return linear + ((real + LEAST_MAGNITUDE).log() - (made + LEAST_MAGNITUDE).log()).abs().mean()


def magnitudes(signals: Tensor, scale: int) -> Tensor:
    """Of a Hann-windowed, centred STFT, not normalised, [N · channels, scale / 2 + 1, frames]."""
    with torch.autocast(signals.device.type, enabled=False):
        flat = signals.float().flatten(0, 1)
        window = torch.hann_window(scale, device=flat.device)
        return torch.stft(flat, scale, scale // 4, window=window, return_complex=True).abs()


def kl_divergence(mean: Tensor, deviation: Tensor) -> Tensor:
    """Of posteriors [N, channels, T] from the standard normal: mean over items and time of Σ μ² + σ² − ln σ² − 1."""
    variance = deviation.square()
    return (mean.square() + variance - variance.log() - 1).sum(1).mean()


def judges_loss(real: Sequence[Tensor], made: Sequence[Tensor]) -> Tensor:
    """Hinge (Lim & Ye 2017), sum over discriminators: scores of what is real go above 1, of what is made below −1."""
    pairs = zip(real, made, strict=True)
    return torch.stack([(1 - mine).relu().mean() + (1 + its).relu().mean() for mine, its in pairs]).sum()


def fooling_loss(made: Sequence[Tensor]) -> Tensor:
    """Sum over discriminators of minus the scores of what is made."""
    return torch.stack([-its.mean() for its in made]).sum()


def features_loss(real: Sequence[Sequence[Tensor]], made: Sequence[Sequence[Tensor]], params: FeaturesParams) -> Tensor:
    """Mean absolute difference of feature maps, without weight: mean over maps and discriminators."""
    pairs = [pair for mine, its in zip(real, made, strict=True) for pair in list(zip(mine, its, strict=True))[params.skip :]]
    differences = [
        (mine - its).abs().mean() / (mine.abs().mean() + LEAST_MAGNITUDE if params.relative else 1) for mine, its in pairs
    ]
    return torch.stack(differences).mean()
