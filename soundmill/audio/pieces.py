"""Processing sounds of any length in bounded memory: blocks, pieces, windows, crossfades."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Sound:
    """A recording that is decoded each time it is read, and never held in memory."""

    sample_rate: int
    channels: int
    num_samples: int
    blocks: Callable[[], Iterable[np.ndarray]]  # float32 [n, channels]

    @property
    def seconds(self) -> float:
        return self.num_samples / self.sample_rate


@dataclass(frozen=True)
class Piece:
    """`count` samples of a stream from `start`; `values` [..., n] also has `before` samples in front of them, and some after."""

    values: Tensor
    start: int
    before: int
    count: int

    def inner(self, output: Tensor, scale: int = 1) -> Tensor:
        """The part of `output` (from `values`, `scale` samples for each) that belongs to the piece itself."""
        return output[..., self.before * scale : (self.before + self.count) * scale]


def pieces(blocks: Iterable[Tensor], size: int, around: int = 0) -> Iterator[Piece]:
    """Cut a stream of tensors [..., n] into pieces of `size`, the last may be shorter, with `around` more samples on both sides.

    There are fewer at the ends of the stream. An operation with this receptive field gives the same for pieces as for the whole.
    """
    import torch

    held, first, start = None, 0, 0  # `first`: position of the first held value
    for block in blocks:
        held = block if held is None else torch.cat([held, block], -1)
        while first + held.shape[-1] - start >= size + around:
            yield Piece(held[..., : start - first + size + around], start, start - first, size)
            start += size
            gone = max(0, start - around - first)
            held, first = held[..., gone:], first + gone
    while held is not None and (left := first + held.shape[-1] - start) > 0:
        count = min(size, left)
        yield Piece(held[..., : start - first + count + around], start, start - first, count)
        start += count


def window_starts(length: int, size: int | None, overlap: int) -> list[int]:
    """Starts of windows of `size` in a sound of `length` samples, each overlapping the previous; None: one window."""
    if size is None or length <= size:
        return [0]
    return [*range(0, length - size, size - overlap), length - size]


def windows(blocks: Iterable[Tensor], starts: Sequence[int], size: int) -> Iterator[tuple[int, Tensor]]:
    """(start, [..., size]) of windows of a stream of tensors [..., n]; a shorter stream is one window."""
    import torch

    waiting, held, first = list(starts), None, 0
    for block in blocks:
        held = block if held is None else torch.cat([held, block], -1)
        while waiting and waiting[0] + size <= first + held.shape[-1]:
            start = waiting.pop(0)
            yield start, held[..., start - first : start - first + size]
            if waiting:
                held, first = held[..., waiting[0] - first :], waiting[0]
    if waiting and held is not None:
        yield waiting[0], held[..., waiting[0] - first :]


def faded(parts: Iterable[tuple[int, Tensor]], overlap: int, length: int) -> Iterator[Tensor]:
    """Blocks of the sound of `length` samples from windows (start, [C, n]), crossfaded linearly over `overlap`."""
    import torch

    mixed = total = torch.zeros(0)
    first = 0
    for start, part in parts:
        fade = torch.linspace(0, 1, overlap + 2, device=part.device)[1:-1]
        weight = torch.ones(part.shape[1], device=part.device)
        if start:
            weight[:overlap] = fade
        if start + part.shape[1] < length:
            weight[part.shape[1] - overlap :] = fade.flip(0)
        if start > first:
            yield mixed[:, : start - first] / total[: start - first]
            mixed, total, first = mixed[:, start - first :], total[start - first :], start
        more = part.shape[1] - len(total)
        mixed = torch.cat([mixed, part.new_zeros(len(part), more)], 1) if len(total) else torch.zeros_like(part)
        total = torch.cat([total.to(weight), weight.new_zeros(more)])
        mixed += part * weight
        total += weight
    yield mixed / total
