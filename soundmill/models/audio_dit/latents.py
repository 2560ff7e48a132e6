"""Latents as the transformer takes them: bands are folded into channels, and each channel is standardised."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LEAST_DEVIATION = 1e-3  # a channel that varies less carries nothing


@dataclass(frozen=True)
class Layout:
    """Between a codec's latents [N, channels, frames, bands] and the transformer's [N, channels · bands, frames]."""

    bands: int
    mean: Tensor  # [channels · bands], of a codec's latents as scaled
    deviation: Tensor  # [channels · bands]
    scaling_factor: float

    def x0(self, posterior: Tensor, noise: Tensor) -> Tensor:
        """Samples [N, channels · bands, frames] of posteriors [N, 2, channels, frames, bands]; noise [N, channels, frames, bands].

        A posterior is mean and ln variance of unscaled latents (components/contracts.py).
        """
        mean, log_variance = posterior.float().unbind(1)
        return self.fold(self.scaling_factor * (mean + (0.5 * log_variance).exp() * noise))

    def fold(self, scaled: Tensor) -> Tensor:
        """The transformer's latents of a codec's scaled ones."""
        folded = scaled.permute(0, 1, 3, 2).flatten(1, 2)
        return (folded - self.mean.to(folded)[:, None]) / self.deviation.to(folded)[:, None]

    def unfold(self, x0: Tensor) -> Tensor:
        """The codec's scaled latents of the transformer's."""
        folded = x0 * self.deviation.to(x0)[:, None] + self.mean.to(x0)[:, None]
        return folded.unflatten(1, (-1, self.bands)).permute(0, 1, 3, 2)


def layout(shape: tuple[int, int, int], scaling_factor: float, posteriors: Iterable[np.ndarray] = ()) -> Layout:
    """The layout for latents of `shape` (channels, frames, bands), standardised by `posteriors` [2, *shape], if there are any."""
    channels, _, bands = shape
    count, total, squares = 0, torch.zeros(channels, bands), torch.zeros(channels, bands)
    for posterior in posteriors:
        mean, log_variance = torch.from_numpy(posterior).double()
        count += mean.shape[1]
        total, squares = total + mean.sum(1), squares + (mean.square() + log_variance.exp()).sum(1)
    if not count:
        return Layout(bands, torch.zeros(channels * bands), torch.ones(channels * bands), scaling_factor)
    mean = total / count
    deviation = (squares / count - mean.square()).clamp_min(0).sqrt()
    scaled = [scaling_factor * values.flatten() for values in (mean, deviation)]
    return Layout(bands, scaled[0].float(), scaled[1].clamp_min(LEAST_DEVIATION).float(), scaling_factor)
