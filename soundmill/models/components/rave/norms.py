"""Weight norm (Salimans & Kingma 2016) of convolutions: length and direction of their kernels apart.

Torch's own makes modules that cannot be handed to other processes, as a training on several devices does.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Normed(nn.Module):
    """A mixin of torch's convolutions; they take `kernel()` for their weight."""

    weight: nn.Parameter
    length: nn.Parameter | None

    def norm(self) -> None:
        self.length = nn.Parameter(_lengths(self.weight).detach())

    def fold(self) -> None:
        """Leave the kernels as they are, in one piece."""
        self.weight.data, self.length = self.kernel().detach(), None

    def kernel(self) -> Tensor:
        return self.weight if self.length is None else self.weight * (self.length / _lengths(self.weight))


def _lengths(weight: Tensor) -> Tensor:
    """Of the kernels of the first axis, [N, 1, …]."""
    return torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.ndim)), keepdim=True)
