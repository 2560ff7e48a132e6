"""What feeds a training: log-mels read at random from one flat file, in an endless shuffled order, by workers ahead of the net.

Step k's batch follows from (seed, k) alone: not from the number of workers or ranks, nor from where a killed training resumed.
"""

from __future__ import annotations

import bisect
import errno
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from soundmill import shards
from soundmill.audio import mel
from soundmill.errors import UserError
from soundmill.training.seeds import seed_of


@dataclass(frozen=True)
class LogMels:
    """Log-mels of chosen clips in one flat file: float16 [n_mels, frames], one clip after another.

    Read with `pread`, not mapped: what is in use stays in the kernel's page cache, and no process grows with the corpus. Opened
    anew in every process that it is handed to.
    """

    path: Path
    ids: Sequence[str]
    num_mels: int
    offsets: np.ndarray  # [N] in bytes
    frames: np.ndarray  # [N]

    def __len__(self) -> int:
        return len(self.ids)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_file"}

    @cached_property
    def _file(self) -> Any:
        return self.path.open("rb", buffering=0)

    def read(self, item: int) -> np.ndarray:
        """Log-mel [n_mels, frames] of one item, float16."""
        values = np.empty((self.num_mels, self.frames[item]), "<f2")
        try:
            count = os.preadv(self._file.fileno(), [values], self.offsets[item])
        except OSError as error:
            raise UserError(f"{self.path}: clip {self.ids[item]!r} cannot be read ({error.strerror}); run it again") from None
        if count != values.nbytes:
            raise UserError(f"{self.path}: ends within clip {self.ids[item]!r}; remove the file and run it again")
        return values

    def crops(self, items: Sequence[int], places: Sequence[float], frames: int, fill: float) -> Tensor:
        """`frames` of each item, float16 [B, n_mels, frames].

        `places` in [0, 1) say where: 0 is the beginning, all starts are equally wide. A shorter clip is followed by `fill`.
        """
        batch = np.empty((len(items), self.num_mels, frames), "<f2")
        for crop, item, place in zip(batch, items, places, strict=True):
            values = self.read(item)
            room = values.shape[1] - frames
            if room >= 0:
                start = int(place * (room + 1))
                crop[:] = values[:, start : start + frames]
            else:
                crop[:, :room] = values
                crop[:, room:] = fill
        return torch.from_numpy(batch)


def gather(directory: Path, clip_ids: Sequence[str], scratch: Path) -> LogMels:
    """The log-mels of `clip_ids`, in that order, from the shards below `directory`; copied once to a flat file in `scratch`.

    A shard is compressed in groups of rows, so one clip at random would cost a whole group. The file's name has the digest of its
    content: another call finds it. A clip that is missing or there twice is a UserError that names it.
    """
    wanted = {clip_id: item for item, clip_id in enumerate(clip_ids)}
    offsets, frames, stored, end = np.zeros(len(wanted), np.int64), np.zeros(len(wanted), np.int64), [], 0
    bands: dict[int, str] = {}
    for row in mel.iterate_index(directory):
        item = wanted.get(row["clip_id"])
        if item is None:
            continue
        if frames[item]:
            raise UserError(f"{directory}: two spectrograms of clip {row['clip_id']!r}; remake it: `dvc repro`")
        offsets[item], frames[item] = end, row["num_frames"]
        end += 2 * row["num_mels"] * row["num_frames"]
        bands.setdefault(row["num_mels"], row["clip_id"])
        stored.append(list(row.values()))
    missing = [clip_id for clip_id, length in zip(clip_ids, frames, strict=True) if not length]
    if missing:
        raise UserError(f"{directory}: no spectrogram of {len(missing)} clips, the first {missing[0]!r}; remake it: `dvc repro`")
    if len(bands) > 1:
        listed = ", ".join(f"{clip_id!r} has {count}" for count, clip_id in bands.items())
        raise UserError(f"{directory}: clips with different numbers of bands ({listed}); remake it: `dvc repro`")

    path = scratch / f"log-mels-{shards.digest(stored)}.f16"
    if not path.exists() or path.stat().st_size != end:
        try:
            shards.write_atomically(path, partial(_copy, directory, wanted))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise UserError(f"{path}: the disk is full; training needs {end:,} bytes here for its spectrograms") from None
    return LogMels(path, list(clip_ids), next(iter(bands), 0), offsets, frames)


def _copy(directory: Path, wanted: Mapping[str, int], target: Path) -> None:
    with target.open("wb") as file:
        for clip_id, values in mel.iterate_log_mels(directory):
            if clip_id in wanted:
                file.write(values)


class Order:
    """Which items each step takes: one shuffle of all items after another, cut into batches of `batch_size`.

    A batch that reaches the end of an epoch goes on with the next epoch: none is short, none is padded, and all ranks have
    equally many. In every epoch an item of weight w is drawn floor(w) times, and once more with probability w − floor(w).
    """

    def __init__(self, seed: int, weights: Mapping[str, float], batch_size: int):
        for clip_id, weight in weights.items():
            if weight is None or not 0 <= weight < math.inf:
                raise UserError(f"clip {clip_id!r} has weight {weight}; it must be a number, 0 or more")
        self.seed, self.batch_size = seed, batch_size
        values = torch.tensor(list(weights.values()), dtype=torch.float64)
        self._times = values.floor().long()
        self._chance = values - self._times
        self._even = not self._chance.any()  # every epoch is as long as the first
        if values.sum() < 1:
            raise UserError(f"nothing to train on: the weights of {len(values)} clips add up to less than one draw per epoch")
        self._ends: list[int] = []  # of epochs, as places in the endless order
        self._last: tuple[int, np.ndarray] | None = None
        self._weights = weights

    @cached_property
    def digest(self) -> str:
        """Of all that the order follows from."""
        return shards.digest(self.seed, self.batch_size, list(self._weights.items()))

    def epoch(self, epoch: int) -> np.ndarray:
        """All items of one epoch, shuffled."""
        if self._last is None or self._last[0] != epoch:
            draws = self._draws(epoch).numpy()
            items = np.repeat(np.arange(len(draws)), draws)
            shuffle = torch.randperm(len(items), generator=_rng(self.seed, "order", epoch))
            self._last = epoch, items[shuffle.numpy()]
        return self._last[1]

    def end(self, epoch: int) -> int:
        """The place after the last of an epoch; −1: 0."""
        if self._even:
            return (epoch + 1) * int(self._times.sum())
        while len(self._ends) <= epoch:
            before = self._ends[-1] if self._ends else 0
            self._ends.append(before + int(self._draws(len(self._ends)).sum()))
        return self._ends[epoch] if epoch >= 0 else 0

    def epoch_at(self, place: int) -> int:
        """The epoch that a place lies in."""
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
            begin = self.end(epoch - 1)
            parts.append(self.epoch(epoch)[place - begin : end - begin])
            place += len(parts[-1])
        return np.concatenate(parts)

    def steps(self, epochs: int) -> int:
        """Steps after which so many epochs are through, at least one."""
        return max(1, math.ceil(self.end(epochs - 1) / self.batch_size))

    def _draws(self, epoch: int) -> Tensor:
        if self._even:
            return self._times
        return self._times + (
            torch.rand(len(self._chance), dtype=torch.float64, generator=_rng(self.seed, "again", epoch)) < self._chance
        )


def _rng(*key: Any) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(*key))


Drawn = TypeVar("Drawn", np.ndarray, Tensor)


def share(batch: Drawn, rank: int, world_size: int) -> Drawn:
    """This rank's part of what was drawn for a whole batch: one after another, the ranks' parts are the batch."""
    size = len(batch) // world_size
    return batch[rank * size : (rank + 1) * size]


class Batch(NamedTuple):
    """One rank's part of a step's batch."""

    step: int
    items: np.ndarray  # [b]
    log_mel: Tensor  # [b, n_mels, frames], float16


class Loader:
    """Batches of steps 0 … `steps` − 1, this rank's part of each: for a training loop, and for Lightning as it is.

    `places(step)` [batch_size] in [0, 1) says where clips longer than `frames` are cropped; shorter ones are followed by `fill`.
    `workers` processes read ahead; 0: read when asked, in this process. `pinned` memory is for copying to a GPU.
    The state is that of the batches handed out, however far the workers are.
    """

    def __init__(
        self,
        log_mels: LogMels,
        order: Order,
        places: Callable[[int], Tensor],
        *,
        frames: int,
        fill: float,
        steps: int,
        workers: int = 0,
        pinned: bool = False,
    ):
        self.crops, self.order, self.places = _Crops(log_mels, frames, fill), order, places
        self.steps, self.workers, self.pinned = steps, workers, pinned
        self.step = 0  # of the next batch

    def __len__(self) -> int:
        return self.steps

    def state_dict(self) -> dict[str, Any]:
        """The next step, and the epoch and place in it where that begins."""
        place = self.step * self.order.batch_size
        epoch = self.order.epoch_at(place)
        return {"step": self.step, "epoch": epoch, "place": place - self.order.end(epoch - 1), "order": self.order.digest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; one of other clips, weights, batch size or seed is a UserError."""
        if state["order"] != self.order.digest:
            raise UserError(
                f"the training that stopped at step {state['step']} had other clips, weights, batch size or seed; "
                "it cannot be resumed with these"
            )
        self.step = state["step"]

    def __iter__(self) -> Iterator[Batch]:
        source = DataLoader(
            self.crops,
            sampler=self._plan(*_rank()),
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=self.workers,
            # Spawned, not forked: a fork of a process that has run torch or Arrow threads can hang.
            multiprocessing_context="spawn" if self.workers else None,
            worker_init_fn=partial(_start_worker, os.getpid()),
            pin_memory=self.pinned,
        )
        with worker_deaths_explained():
            try:
                for batch in source:
                    if isinstance(batch, UserError):
                        raise batch
                    self.step = batch.step + 1
                    yield batch
            except (OSError, EOFError) as error:  # the sender of a batch is gone, and torch has not noticed yet
                if not self.workers:
                    raise
                with suppress(RuntimeError):  # torch's own word on it comes in the midst of anything: let it be this
                    time.sleep(1.0)
                raise _worker_death(error) from None

    def _plan(self, rank: int, world_size: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        if self.order.batch_size % world_size:
            raise UserError(f"a batch of {self.order.batch_size} cannot be shared evenly by {world_size} processes")
        for step in range(self.step, self.steps):
            places = self.places(step).numpy()
            yield step, share(self.order.batch(step), rank, world_size), share(places, rank, world_size)


class _Crops(Dataset):
    """What a worker does: a planned batch in, crops out."""

    def __init__(self, log_mels: LogMels, frames: int, fill: float):
        self.log_mels, self.frames, self.fill = log_mels, frames, fill

    def __getitem__(self, planned: tuple[int, np.ndarray, np.ndarray]) -> Batch | UserError:
        step, items, places = planned
        try:
            return Batch(step, items, self.log_mels.crops(items, places, self.frames, self.fill))
        except UserError as error:  # raised here, torch would bury it in the worker's traceback
            return error


def _as_it_is(batch: Batch | UserError) -> Batch | UserError:
    return batch


def _rank() -> tuple[int, int]:
    """Rank of this process and number of processes that train together."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _start_worker(parent: int, worker: int) -> None:
    shards.die_with_parent(parent)


@contextmanager
def worker_deaths_explained() -> Iterator[None]:
    """Make torch's words on a dead worker (it may raise them anywhere in the main thread) a UserError."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise _worker_death(error) from None


def _worker_death(error: Exception) -> UserError:
    return UserError(
        f"a process that reads spectrograms for the training died ({str(error).partition(chr(10))[0]}): out of memory, or killed. "
        "Run it again: it resumes from its last checkpoint; with a smaller `execution.workers` if memory was short"
    )
