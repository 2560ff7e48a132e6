"""Seeds derived from plain values, so that what a step draws does not depend on what ran before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from soundmill import hashing

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 4096  # samples whose noise shares one seed


def seed_of(*key: Any) -> int:
    """A 63-bit seed from plain values: the same on every machine, and independent for neighbouring keys."""
    return hashing.uint64("\0".join(str(part) for part in key).encode()) >> 1


def noise_at(first: int, length: int, channels: int, *key: Any) -> Tensor:
    """Standard normal noise [channels, length] for samples from `first` on, drawn on the CPU: equal where ranges overlap."""
    import torch

    blocks = []
    for block in range(first // BLOCK, (first + length - 1) // BLOCK + 1):
        blocks.append(torch.randn(channels, BLOCK, generator=torch.Generator().manual_seed(seed_of(*key, block))))
    offset = first % BLOCK
    return torch.cat(blocks, 1)[:, offset : offset + length]
