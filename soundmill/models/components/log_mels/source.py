"""Log-mels as a training source."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from soundmill import manifest, shards
from soundmill.audio import log_mels
from soundmill.errors import UserError
from soundmill.training.loader import Arrays, Described, gather

AT_ONCE = 32  # items per batch when all are measured


class LogMels:
    """Log-mels of chosen clips, float16 [n_mels, frames] each."""

    def __init__(self, arrays: Arrays):
        self.arrays = arrays

    def __len__(self) -> int:
        return len(self.arrays)

    def crops(self, items: Sequence[int], places: Sequence[float], frames: int, fill: float) -> Tensor:
        """Crops of `frames` of each item, float16 [B, n_mels, frames].

        `places` in [0, 1) select the start of each crop, uniformly; 0 is the first frame. Shorter clips are padded with `fill`.
        """
        crops = [self.arrays.crop(item, place, frames, fill) for item, place in zip(items, places, strict=True)]
        return torch.from_numpy(np.stack(crops))

    def beginnings(self, frames: int, fill: float) -> Iterator[Tensor]:
        """Batches [B, n_mels, frames] of all items in order, float32, from the start of each."""
        for first in range(0, len(self), AT_ONCE):
            items = range(first, min(first + AT_ONCE, len(self)))
            yield self.crops(items, [0.0] * len(items), frames, fill).float()


def gather_log_mels(directory: Path, clip_ids: Sequence[str], scratch: Path) -> LogMels:
    """The log-mels of `clip_ids`, in that order, from the shards below `directory`, as a flat file in `scratch`."""

    def index() -> Iterator[Described]:
        for row in shards.rows_below(directory, manifest.SPECTROGRAMS, ["clip_id", "num_mels", "num_frames", "digest"]):
            yield Described(row["clip_id"], (row["num_mels"], row["num_frames"]), row["digest"])

    what = f"{directory}: the spectrogram of clip"
    arrays = gather(index, partial(log_mels.iterate_log_mels, directory), clip_ids, scratch / "log-mels", what)
    bands = dict(zip(arrays.shapes[::-1, 0].tolist(), clip_ids[::-1], strict=True))
    if len(bands) > 1:
        listed = ", ".join(f"{clip_id!r} has {count}" for count, clip_id in sorted(bands.items()))
        raise UserError(f"{directory}: clips with different numbers of bands ({listed}); remake it: `dvc repro`")
    return LogMels(arrays)


@dataclass(frozen=True)
class Crops:
    """A source of crops [b, n_mels, frames]; `drawn` in [0, 1) selects their start. Shorter log-mels are padded with `fill`."""

    log_mels: LogMels
    frames: int
    fill: float

    def batch(self, items: np.ndarray, drawn: np.ndarray) -> tuple[Tensor]:
        return (self.log_mels.crops(items, drawn, self.frames, self.fill),)
