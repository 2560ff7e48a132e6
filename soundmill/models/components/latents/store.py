"""Latents of clips and mixes on disk, stored as posteriors of the codec so that training can sample them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from soundmill import manifest, shards
from soundmill.errors import UserError
from soundmill.params import StageParams
from soundmill.training.loader import Arrays, Described, gather

ABOUT_KEY = b"latents"  # in the schema metadata of every shard


class LatentsAbout(StageParams):
    """Description of all latents in a directory."""

    autoencoder: str  # its digest
    scaling_factor: float  # x0 = scaling_factor · latent
    num_samples: int  # of each encoded wave


def read_about(directory: Path, autoencoder: str | None = None) -> LatentsAbout:
    """The description that all shards below `directory` share; UserError if they differ, or are not of the `autoencoder`."""
    try:
        about = LatentsAbout.model_validate_json(shards.common_metadata(directory, ABOUT_KEY))
    except ValidationError as error:
        raise UserError(f"{directory}: metadata not readable ({error.errors()[0]['msg']}); remake it: `dvc repro`") from None
    if autoencoder not in (None, about.autoencoder):
        raise UserError(f"{directory}: latents of another autoencoder than in {directory.parents[1]}; run `dvc repro`")
    return about


def iterate_index(directory: Path) -> Iterator[dict[str, Any]]:
    """Every row below `directory` without its posterior, in the order of `iterate_posteriors`."""
    columns = [name for name in manifest.LATENTS.names if name != "posterior"]
    return shards.rows_below(directory, manifest.LATENTS, columns)


def gather_posteriors(directories: Sequence[Path], clip_ids: Sequence[str], scratch: Path) -> Arrays:
    """Posteriors [2, channels, frames, bands] of `clip_ids`, in that order, out of the latents below `directories`."""

    def index() -> Iterator[Described]:
        for directory in directories:
            for row in iterate_index(directory):
                yield Described(row["clip_id"], (2, row["channels"], row["frames"], row["bands"]), row["digest"])

    def contents() -> Iterator[tuple[str, np.ndarray]]:
        for directory in directories:
            yield from iterate_posteriors(directory)

    return gather(index, contents, clip_ids, scratch / "latents", f"{directories[0].parent}: the latent of clip")


def drawn(posterior: Tensor, noise: Tensor) -> Tensor:
    """Unscaled samples [N, …], float32, of posteriors [N, 2, …] (mean, ln variance) from standard normal noise [N, …]."""
    mean, log_variance = posterior.float().unbind(1)
    return mean + (0.5 * log_variance).exp() * noise


@dataclass(frozen=True)
class Posteriors:
    """A source of posteriors [b, 2, channels, frames, bands]; `drawn` is ignored, as latents are not cropped."""

    arrays: Arrays

    def batch(self, items: np.ndarray, drawn: np.ndarray) -> tuple[Tensor]:
        return (torch.from_numpy(np.stack([self.arrays.read(item) for item in items])),)


def iterate_posteriors(directory: Path) -> Iterator[tuple[str, np.ndarray]]:
    """(clip id, float16 [2, channels, frames, bands]: mean and ln variance, not scaled) of every row below `directory`."""
    for path in shards.shard_paths(directory):
        for row in shards.read_rows(path, manifest.LATENTS, ["clip_id", "posterior", "channels", "frames", "bands"]):
            size = 2, row["channels"], row["frames"], row["bands"]
            values = np.frombuffer(row["posterior"], "<f2")
            if len(values) != math.prod(size):
                raise UserError(f"{path}: the latent of clip {row['clip_id']!r} is not {size}; remake it: `dvc repro`")
            yield row["clip_id"], values.reshape(size)
