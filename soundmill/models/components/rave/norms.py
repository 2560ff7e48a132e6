"""Weight normalisation (Salimans & Kingma 2016) of convolutions: separate parameters for the length and direction of a kernel.

Torch's own version makes modules that cannot be pickled, as training on several devices requires.
"""

import torch
from torch import Tensor, nn

LEAST_LENGTH = 1e-12  # so that a kernel of zeros stays one


class Normed(nn.Module):
    """A mixin for torch's convolutions, which use `kernel()` as their weight."""

    weight: nn.Parameter
    length: nn.Parameter | None

    def norm(self) -> None:
        self.length = nn.Parameter(_lengths(self.weight).detach())

    def fold(self) -> None:
        """Replace weight and length by the kernel itself."""
        self.weight.data, self.length = self.kernel().detach(), None

    def silence(self) -> None:
        """Make the kernel 0; with weight normalisation it keeps its direction, so that it can learn."""
        nn.init.zeros_(self.weight if self.length is None else self.length)

    def kernel(self) -> Tensor:
        return self.weight if self.length is None else self.weight * (self.length / _lengths(self.weight))


def _lengths(weight: Tensor) -> Tensor:
    """Norms [N, 1, …] of the kernels along the first axis."""
    return torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.ndim)), keepdim=True).clamp_min(LEAST_LENGTH)
