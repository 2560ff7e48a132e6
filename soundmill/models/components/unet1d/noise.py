"""What sounds begin with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from soundmill.models.family import Request
from soundmill.training.seeds import seed_of

BLOCK = 4096  # samples of a longer sound that are drawn together


def noise_of(requests: Sequence[Request], channels: int, length: int) -> Tensor:
    """Noise [N, channels, length] of each request's seed, drawn on the CPU: the same, up to rounding, with and without a GPU.

    That of parts of a longer sound is its own at each place, so parts that overlap share it.
    """
    return torch.stack([_noise(request, channels, length) for request in requests])


def _noise(request: Request, channels: int, length: int) -> Tensor:
    if request.start is None:
        return torch.randn(channels, length, generator=torch.Generator().manual_seed(request.seed))
    first, last = request.start // BLOCK, (request.start + length - 1) // BLOCK
    seeds = [seed_of(request.seed, block) for block in range(first, last + 1)]
    blocks = [torch.randn(channels, BLOCK, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    offset = request.start - first * BLOCK
    return torch.cat(blocks, 1)[:, offset : offset + length]
