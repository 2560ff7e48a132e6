"""RAVE's losses (Caillon & Esling 2021): a spectral distance, the KL divergence, and hinge losses with discriminators."""

from collections.abc import Sequence

import torch
from torch import Tensor

from soundmill.models.components.rave.params import FeaturesParams

LEAST_MAGNITUDE = 1e-7  # added to a divisor
LEAST_POWER = 1e-8  # of a bin per sample of the window, added to the mean power of the real signal, which is 0 for silence


def distance(fake: Tensor, real: Tensor, scales: Sequence[int], log_epsilon: float) -> Tensor:
    """Spectral distance of signals [N, channels, T], summed over `scales`, the window lengths; those longer than T are skipped.

    For each, ‖X − Y‖² / ‖X‖² + mean |ln (X + ε) − ln (Y + ε)| of magnitudes X (real) and Y (fake), with a hop of a quarter window
    and ε = `log_epsilon`.
    """
    fitting = [scale for scale in scales if scale <= real.shape[2]]
    if not fitting:
        raise ValueError(f"no window of {list(scales)} fits into {real.shape[2]} samples")
    return torch.stack([_at(magnitudes(fake, scale), magnitudes(real, scale), scale, log_epsilon) for scale in fitting]).sum()


def _at(fake: Tensor, real: Tensor, scale: int, log_epsilon: float) -> Tensor:
    linear = (real - fake).square().mean() / (real.square().mean() + scale * LEAST_POWER)
    return linear + ((real + log_epsilon).log() - (fake + log_epsilon).log()).abs().mean()


def magnitudes(signals: Tensor, scale: int) -> Tensor:
    """Magnitudes [N · channels, scale / 2 + 1, frames] of a Hann-windowed, centred STFT, not normalised."""
    with torch.autocast(signals.device.type, enabled=False):
        flat = signals.float().flatten(0, 1)
        window = torch.hann_window(scale, device=flat.device)
        return torch.stft(flat, scale, scale // 4, window=window, return_complex=True).abs()


def kl_divergence(mean: Tensor, deviation: Tensor) -> Tensor:
    """KL divergence of posteriors [N, channels, T] from the standard normal: mean over items and time of Σ μ² + σ² − ln σ² − 1."""
    variance = deviation.square()
    return (mean.square() + variance - variance.log() - 1).sum(1).mean()


def discriminator_loss(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Hinge loss (Lim & Ye 2017), summed over discriminators: pushes real scores above 1 and generated ones below −1."""
    pairs = zip(real, fake, strict=True)
    return torch.stack([(1 - real_score).relu().mean() + (1 + fake_score).relu().mean() for real_score, fake_score in pairs]).sum()


def generator_loss(fake: Sequence[Tensor]) -> Tensor:
    """The generator's adversarial loss: minus the mean score, summed over discriminators."""
    return torch.stack([-scores.mean() for scores in fake]).sum()


def features_loss(real: Sequence[Sequence[Tensor]], fake: Sequence[Sequence[Tensor]], params: FeaturesParams) -> Tensor:
    """Unweighted feature matching: mean absolute difference of feature maps, averaged over maps and discriminators."""
    pairs = [pair for maps in zip(real, fake, strict=True) for pair in list(zip(*maps, strict=True))[params.skip :]]
    differences = [(x - y).abs().mean() / (x.abs().mean() + LEAST_MAGNITUDE if params.relative else 1) for x, y in pairs]
    return torch.stack(differences).mean()
