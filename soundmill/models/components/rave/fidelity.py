"""Principal components of posterior means, and the number of them that keeps a given share of the variance."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDING = 1e-9


@dataclass(frozen=True)
class Components:
    """Principal components of latents: `rotation` @ (latent − `mean`), ordered by variance."""

    mean: Tensor  # [channels]
    rotation: Tensor  # [channels, channels], orthogonal
    kept: Tensor  # [channels], float64: share of the variance that the first 1, 2, … components keep
    variance: float  # total

    def rank(self, fidelity: float) -> int:
        """The smallest number of components that keep the share `fidelity` of the variance."""
        sufficient = (self.kept >= fidelity - ROUNDING).nonzero()
        return int(sufficient[0]) + 1 if len(sufficient) else len(self.kept)


def components(means: Iterable[Tensor]) -> Components:
    """Principal components of posterior means, given as pieces [channels, T]."""
    count, total, products = 0, torch.zeros(()), torch.zeros(())
    for piece in means:
        values = piece.double()
        count, total, products = count + values.shape[1], total + values.sum(1), products + values @ values.T
    mean = total / count
    variances, vectors = torch.linalg.eigh(products / count - mean[:, None] * mean[None])
    variances, rotation = variances.flip(0).clamp_min(0), vectors.flip(1).T
    largest = rotation.gather(1, rotation.abs().argmax(1, keepdim=True))
    rotation = rotation * largest.sign()  # a component's sign is arbitrary: its largest weight is positive
    kept = variances.cumsum(0) / variances.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return Components(mean.float(), rotation.float().contiguous(), kept, float(variances.sum()))
