"""Seeds from plain values, so that a step draws the same whatever ran before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from soundmill import hashing

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 4096  # samples of a sound whose noise is drawn together


def seed_of(*key: Any) -> int:
    """A 63-bit seed from plain values: equal on every machine, unrelated for neighbouring keys."""
    return hashing.uint64("\0".join(str(part) for part in key).encode()) >> 1


def noise_at(first: int, length: int, channels: int, *key: Any) -> Tensor:
    """Noise [channels, length] of a sound's samples from `first` on, drawn on the CPU: parts that overlap share it."""
    import torch

    blocks = []
    for block in range(first // BLOCK, (first + length - 1) // BLOCK + 1):
        blocks.append(torch.randn(channels, BLOCK, generator=torch.Generator().manual_seed(seed_of(*key, block))))
    offset = first % BLOCK
    return torch.cat(blocks, 1)[:, offset : offset + length]
