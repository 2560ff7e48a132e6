"""Initial noise of samples."""

from collections.abc import Sequence

import torch
from torch import Tensor

from soundmill.models.family import Request
from soundmill.training.seeds import noise_at


def noise_of(requests: Sequence[Request], channels: int, length: int) -> Tensor:
    """Noise [N, channels, length] from each request's seed, drawn on the CPU so that a GPU gives the same up to rounding.

    For windows of a longer sound it depends on the position, so overlapping windows share it.
    """
    return torch.stack([_noise(request, channels, length) for request in requests])


def _noise(request: Request, channels: int, length: int) -> Tensor:
    if request.start is None:
        return torch.randn(channels, length, generator=torch.Generator().manual_seed(request.seed))
    return noise_at(request.start, length, channels, request.seed)
