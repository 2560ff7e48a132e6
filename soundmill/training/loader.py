"""Training batches: threads prefetch arrays from one flat file in an endless shuffled order.

Batch k depends only on (seed, k): not on the number of workers or ranks, nor on the step from which a killed run resumed.
"""

import bisect
import errno
import itertools
import math
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from soundmill import disk, hashing, shards
from soundmill.errors import UserError
from soundmill.training import launcher
from soundmill.training.seeds import seed_of


@dataclass(frozen=True)
class Arrays:
    """float16 arrays of different shapes, stored one after another in a flat file and looked up by id.

    They are read with `pread` instead of mapped, so no process's memory grows with the corpus.
    """

    path: Path
    ids: Sequence[str]
    shapes: np.ndarray  # [N, D]
    offsets: np.ndarray  # [N] in bytes

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def _file(self) -> Any:
        return self.path.open("rb", buffering=0)

    def read(self, item: int) -> np.ndarray:
        """The array of one item, float16; UserError if it cannot be read."""
        values = np.empty(self.shapes[item], "<f2")
        file = self._file  # another thread may open it, too
        try:
            count = os.preadv(file.fileno(), [values], self.offsets[item])
        except OSError as error:
            raise UserError(f"{self.path}: {self.ids[item]!r} cannot be read ({error.strerror}); run it again") from None
        if count != values.nbytes:
            raise UserError(f"{self.path}: ends within {self.ids[item]!r}; remove the file and run it again")
        return values

    def crop(self, item: int, place: float, frames: int, fill: float = 0.0) -> np.ndarray:
        """`frames` of one item's last axis; `place` in [0, 1) selects the start, and `fill` ends a shorter item."""
        values = self.read(item)
        start = start_of(place, values.shape[-1], frames)
        part = values[..., start : start + frames]
        return np.pad(part, [(0, 0)] * (part.ndim - 1) + [(0, frames - part.shape[-1])], constant_values=fill)


class Described(NamedTuple):
    """One entry of the index: id, shape and digest of a stored array."""

    id: str
    shape: tuple[int, ...]
    digest: str


def gather(
    index: Callable[[], Iterable[Described]],
    contents: Callable[[], Iterable[tuple[str, np.ndarray]]],
    ids: Sequence[str],
    path: Path,
    what: str,
) -> Arrays:
    """Copy the arrays of `ids` from `contents()` to a flat file whose name starts with `path`, and return them in that order.

    Shards are compressed in groups of rows, so reading one random item would decompress a whole group. `index()` describes the
    arrays in the order of `contents()`; it is read again after the copy, and a difference is a UserError: another process rewrote
    the arrays meanwhile. The file name ends with a digest of the index and one of the bytes, so later calls reuse the file and
    replace it if it is damaged. A missing or duplicate item is a UserError that names it; `what` describes the arrays in that
    message (`data/…: spectrogram of clip`).
    """
    item_of = {one: item for item, one in enumerate(ids)}
    shapes: list[tuple[int, ...] | None] = [None] * len(item_of)
    offsets, stored, end = np.zeros(len(item_of), np.int64), [], 0
    for row in index():
        item = item_of.get(row.id)
        if item is None:
            continue
        if shapes[item] is not None:
            raise UserError(f"{what} {row.id!r} is stored twice; remake it: `dvc repro`")
        shapes[item], offsets[item] = row.shape, end
        end += 2 * math.prod(row.shape)
        stored.append(list(row))
    missing = [one for one, shape in zip(ids, shapes, strict=True) if shape is None]
    if missing:
        raise UserError(f"{what} {missing[0]!r} is missing ({len(missing)} in all); remake it: `dvc repro`")

    def copy(target: Path) -> None:
        with target.open("wb") as file:
            for one, values in contents():
                if one in item_of:
                    file.write(values)
        stored_now = [list(row) for row in index() if row.id in item_of]
        if stored_now != stored or target.stat().st_size != end:
            raise UserError(f"{what} {ids[0]!r} or another one was rewritten while they were being read; run it again")

    prefix = f"{path.name}-{hashing.digest(stored)}-"
    for copied in sorted(path.parent.glob(f"{prefix}*.f16")):
        if launcher.rank or copied.name == f"{prefix}{hashing.file_digest(copied)}.f16":
            break
        shards.report_damaged(path.parent, [copied.name])
        copied.unlink()
    else:
        new = path.with_name(f"{prefix}{os.getpid()}")
        try:
            disk.write_atomically(new, copy)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            needs = f"training needs {end:,} bytes here for its copy of the data"
            raise UserError(f"no space left for {new}: {needs}; free some and run again") from None
        copied = path.with_name(f"{prefix}{hashing.file_digest(new)}.f16")
        os.replace(new, copied)
    return Arrays(_near(copied), list(ids), np.array(shapes, np.int64), offsets)


def _near(path: Path) -> Path:
    """A file of features, or its copy on this machine's disk if it is no larger than `hardware.copy_gb`."""
    if launcher.place is None or path.stat().st_size > launcher.place.hardware.copy_gb * 1e9:
        return path
    copy = launcher.place.near / path.name
    with disk.exclusive(copy.parent):
        if not copy.exists():
            disk.write_atomically(copy, partial(shutil.copyfile, path))
    return copy


def start_of(place: float, length: int, frames: int) -> int:
    """First frame of a crop of `frames` at relative position `place` in [0, 1); 0 if the array is shorter than the crop."""
    return int(place * (max(0, length - frames) + 1))


def crop_places(seed: int, batch_size: int, step: int) -> Tensor:
    """Relative start [batch_size] of each crop in its clip, in [0, 1), for the batch of all ranks."""
    return torch.rand(batch_size, generator=torch.Generator().manual_seed(seed_of(seed, "crop", step)))


class Order:
    """The items of each batch: shuffled epochs, concatenated and cut into batches of `batch_size`.

    A batch may span two epochs, so none is short or padded, and all ranks get equally many items. In each epoch an item of weight
    w is drawn floor(w) times, and once more with probability w − floor(w).
    """

    def __init__(self, seed: int, weights: Mapping[str, float], batch_size: int):
        for clip_id, weight in weights.items():
            if weight is None or not 0 <= weight < math.inf:
                raise UserError(f"clip {clip_id!r} has weight {weight}; it must be a number, 0 or more")
        self.seed, self.batch_size = seed, batch_size
        values = torch.tensor(list(weights.values()), dtype=torch.float64)
        self._times = values.floor().long()
        self._chance = values - self._times
        self._even = not self._chance.any()  # all epochs have the same length
        if values.sum() < 1 - 1e-9:  # six weights of 1/6 sum to 0.9999999999999999
            raise UserError(f"nothing to train on: the weights of {len(values)} clips add up to less than one draw per epoch")
        self._ends: list[int] = []  # of epochs, as positions in the endless order
        self._last: tuple[int, np.ndarray] | None = None
        self._weights = weights
        self.num_items = len(values)

    @cached_property
    def digest(self) -> str:
        """Digest of everything that determines the order."""
        return hashing.digest(self.seed, self.batch_size, list(self._weights.items()))

    def epoch(self, epoch: int) -> np.ndarray:
        """All items of one epoch, shuffled."""
        if self._last is None or self._last[0] != epoch:
            draws = self._draws(epoch).numpy()
            items = np.repeat(np.arange(len(draws)), draws)
            shuffle = torch.randperm(len(items), generator=_rng(self.seed, "order", epoch))
            self._last = epoch, items[shuffle.numpy()]
        return self._last[1]

    def end(self, epoch: int) -> int:
        """The position just after an epoch; 0 for epoch −1."""
        if self._even:
            return (epoch + 1) * int(self._times.sum())
        while len(self._ends) <= epoch:
            before = self._ends[-1] if self._ends else 0
            self._ends.append(before + int(self._draws(len(self._ends)).sum()))
        return self._ends[epoch] if epoch >= 0 else 0

    def epoch_at(self, place: int) -> int:
        """The epoch of a position."""
        if self._even:
            return place // self.end(0)
        while not self._ends or self._ends[-1] <= place:
            self.end(len(self._ends))
        return bisect.bisect_right(self._ends, place)

    def batch(self, step: int) -> np.ndarray:
        """Items [batch_size] of step `step`, of all ranks together."""
        place, end = step * self.batch_size, (step + 1) * self.batch_size
        parts = []
        while place < end:
            epoch = self.epoch_at(place)
            start = self.end(epoch - 1)
            parts.append(self.epoch(epoch)[place - start : end - start])
            place += len(parts[-1])
        return np.concatenate(parts)

    def beginning(self, step: int) -> tuple[int, int]:
        """The epoch in which batch `step` starts, and the position within it."""
        place = step * self.batch_size
        epoch = self.epoch_at(place)
        return epoch, place - self.end(epoch - 1)

    def steps(self, epochs: int) -> int:
        """Number of steps that complete `epochs` epochs, at least 1."""
        return max(1, math.ceil(self.end(epochs - 1) / self.batch_size))

    def _draws(self, epoch: int) -> Tensor:
        if self._even:
            return self._times
        places = torch.rand(len(self._chance), dtype=torch.float64, generator=_rng(self.seed, "again", epoch))
        return self._times + (places < self._chance)


class Joined:
    """Two orders joined: each device's share of a batch is its share of the first order's batch, then of the second's.

    Items of the second order are numbered after those of the first. Epochs are counted in the first.
    """

    def __init__(self, first: Order, second: Order, devices: int):
        self.first, self.second, self.devices = first, second, devices
        self.batch_size = first.batch_size + second.batch_size

    @cached_property
    def digest(self) -> str:
        return hashing.digest(self.first.digest, self.second.digest, self.devices)

    def beginning(self, step: int) -> tuple[int, int]:
        return self.first.beginning(step)

    def steps(self, epochs: int) -> int:
        return self.first.steps(epochs)

    def batch(self, step: int) -> np.ndarray:
        """Items [batch_size] of step `step`, of all ranks together."""
        first, second = self.first.batch(step), self.second.batch(step) + self.first.num_items
        shares = ((share(first, rank, self.devices), share(second, rank, self.devices)) for rank in range(self.devices))
        return np.concatenate([part for pair in shares for part in pair])


def _rng(*key: Any) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(*key))


Drawn = TypeVar("Drawn", np.ndarray, Tensor)


def share(batch: Drawn, rank: int, world_size: int) -> Drawn:
    """This rank's part of the values drawn for the batch of all ranks; the parts in rank order make up that batch."""
    size = len(batch) // world_size
    return batch[rank * size : (rank + 1) * size]


class Batch(NamedTuple):
    """One rank's part of a batch."""

    step: int  # number of the batch
    items: np.ndarray  # [b]
    values: tuple[Tensor, ...]  # what the source read, each [b, …]

    def to(self, device: torch.device) -> Self:
        return self._replace(values=tuple(value.to(device, non_blocking=True) for value in self.values))


class Source(Protocol):
    """Reads the tensors of a batch, in several threads at once."""

    def batch(self, items: np.ndarray, drawn: np.ndarray) -> tuple[Tensor, ...]:
        """Tensors, each [b, …], of items [b] and the random numbers [b, …] drawn for them."""


@dataclass(eq=False)
class Loader:
    """This rank's part of batches 0 … `steps` − 1.

    `draw(step)` gives the random numbers [batch_size, …] that the source needs. `workers` threads prefetch. `pinned` memory speeds
    up copying to a GPU. The state counts the batches yielded, not those prefetched.
    """

    source: Source
    order: Order | Joined
    draw: Callable[[int], Tensor]
    _: KW_ONLY
    steps: int
    workers: int = 1
    pinned: bool = False
    step: int = field(default=0, init=False)  # of the next batch
    waited: float = field(default=0.0, init=False)  # seconds that this process has waited for batches
    rank: int = field(default=0, init=False)
    world_size: int = field(default=1, init=False)

    def state_dict(self) -> dict[str, Any]:
        """The next step, the epoch and position where it starts, and the digest of the order."""
        epoch, place = self.order.beginning(self.step)
        return {"step": self.step, "epoch": epoch, "place": place, "order": self.order.digest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state; UserError if its clips, weights, batch size or seed differ."""
        if state["order"] != self.order.digest:
            raise UserError(
                f"the training that stopped at step {state['step']} had other clips, weights, batch size or seed; "
                "it cannot be resumed with these"
            )
        self.step = state["step"]

    def __iter__(self) -> Iterator[Batch]:
        # Threads, not processes: what takes time in reading releases Python's lock, and none can be killed alone.
        with ThreadPoolExecutor(self.workers) as pool:
            plan = self._plan()
            ahead = deque(pool.submit(self._read, *planned) for planned in itertools.islice(plan, 2 * self.workers))
            while ahead:
                asked = time.monotonic()
                batch = ahead.popleft().result()
                self.waited += time.monotonic() - asked
                self.step = batch.step + 1
                yield batch
                ahead.extend(pool.submit(self._read, *planned) for planned in itertools.islice(plan, 1))

    def _read(self, step: int, items: np.ndarray, drawn: np.ndarray) -> Batch:
        values = self.source.batch(items, drawn)
        return Batch(step, items, tuple(each.pin_memory() for each in values) if self.pinned else values)

    def _plan(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        if self.order.batch_size % self.world_size:
            raise UserError(f"a batch of {self.order.batch_size} cannot be shared evenly by {self.world_size} processes")
        for step in range(self.step, self.steps):
            full = self.order.batch(step), self.draw(step).numpy()
            yield step, *(share(values, self.rank, self.world_size) for values in full)
