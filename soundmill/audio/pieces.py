"""Processing sounds of any length in bounded memory: blocks, pieces, windows, crossfades; and cuts into clips, in samples, so that
they are exact and do not overlap."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


Tail = Literal["keep", "drop", "pad"]
SHORTEST_SECONDS = 0.01  # shorter recordings are rejected


@dataclass(frozen=True)
class Cut:
    """One clip: `num_samples` of the recording from `start_sample` on, then `pad_samples` of silence."""

    start_sample: int
    num_samples: int
    pad_samples: int


def to_samples(seconds: float, sample_rate: int) -> int:
    """Seconds to samples, rounded half up."""
    return int(seconds * sample_rate + 0.5)


def plan_cuts(num_samples: int, clip_samples: int, tail: Tail, min_samples: int) -> list[Cut]:
    """Consecutive clips; a shorter rest is treated as `tail` says, but dropped if under `min_samples` and not all there is."""
    whole, rest = divmod(num_samples, clip_samples)
    cuts = [Cut(index * clip_samples, clip_samples, 0) for index in range(whole)]
    if rest and tail != "drop" and (not whole or rest >= min_samples):
        cuts.append(Cut(whole * clip_samples, rest, clip_samples - rest if tail == "pad" else 0))
    return cuts


def dropped_samples(num_samples: int, cuts: list[Cut]) -> int:
    """Samples at the end of a recording that are in no cut."""
    return num_samples - sum(cut.num_samples for cut in cuts)


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

    def followed_by_silence(self, seconds: float) -> Sound:
        added = to_samples(seconds, self.sample_rate)

        def blocks() -> Iterator[np.ndarray]:
            yield from self.blocks()
            yield np.zeros((added, self.channels), np.float32)

        return Sound(self.sample_rate, self.channels, self.num_samples + added, blocks)


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


def window_starts(length: int, size: int | None, overlap: int, unit: int = 1) -> list[int]:
    """Starts of windows of `size` in a sound of `length` samples, multiples of `unit`; each overlaps the previous by `overlap` or
    little more, and the last, which ends with the sound, by as much as that takes. None: one window."""
    if size is None or length <= size:
        return [0]
    last = -(-(length - size) // unit) * unit
    return [*range(0, last, max(1, (size - overlap) // unit) * unit), last]


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


def faded(parts: Iterable[tuple[int, Tensor]], overlap: int, mix: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Iterator[Tensor]:
    """Blocks of a sound from windows (start, [C, n]). The last `overlap` samples before the end of what there is are mixed with the
    next window by `mix` (before, after, share of `after`); what that window has before them is left out."""
    import torch

    held, first = None, 0
    for start, part in parts:
        if held is not None:
            place = held.shape[-1] - overlap
            fresh = part[..., first + place - start :]
            share = torch.linspace(0, 1, overlap + 2, device=part.device)[1:-1]
            yield held[..., :place]
            part = torch.cat([mix(held[..., place:], fresh[..., :overlap], share), fresh[..., overlap:]], -1)
            start = first + place
        held, first = part, start
    if held is not None:
        yield held


def equal_power(before: Tensor, after: Tensor, share: Tensor) -> Tensor:
    """A crossfade of waves whose power is the mean of theirs: linear if they are alike, of equal power if they are independent.

    Two outputs of a codec are alike; two drawings of noise or phases are not, and a linear crossfade of those is 3 dB too quiet.
    """
    energy = (before.square().sum() * after.square().sum()).sqrt()
    likeness = ((before * after).sum() / energy).nan_to_num(1.0).clamp(0, 1)
    power = (1 - share).square() + share.square() + 2 * share * (1 - share) * likeness
    return before.lerp(after, share) * power.rsqrt()


def closed(waves: np.ndarray, start: int, num_samples: int, fade: int) -> np.ndarray:
    """A loop cut from waves float32 [..., T] that repeat it; its last `fade` samples are crossfaded into those before `start`."""
    loop = waves[..., start : start + num_samples].copy()
    share = np.arange(1, fade + 1, dtype=np.float32) / fade
    loop[..., num_samples - fade :] += share * (waves[..., start - fade : start] - loop[..., num_samples - fade :])
    return loop
