"""Latents of clips and mixes on disk: for each the posterior of the codec, so that a training still draws from it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from soundmill import manifest, shards
from soundmill.errors import UserError

ABOUT_KEY = b"latents"  # in the schema metadata of every shard


class LatentsAbout(BaseModel):
    """What all latents of a directory have in common."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    autoencoder: str  # its digest
    scaling_factor: float  # x0 = scaling_factor · latent
    num_samples: int  # of the wave that each was made of


def read_about(directory: Path) -> LatentsAbout:
    """What the shards below `directory` say of themselves; shards that disagree are a UserError."""
    common: LatentsAbout | None = None
    for path in shards.shard_paths(directory):
        text = (pq.read_schema(path).metadata or {}).get(ABOUT_KEY)
        if text is None:
            raise UserError(f"{path}: not a shard of latents (no {ABOUT_KEY.decode()} in its metadata); remake it: `dvc repro`")
        try:
            about = LatentsAbout.model_validate_json(text)
        except ValidationError as error:
            raise UserError(f"{path}: what it says of itself is not readable ({error.errors()[0]['msg']}); `dvc repro`") from None
        if common not in (None, about):
            raise UserError(f"{path}: of another autoencoder or length than its neighbours; remake {directory}: `dvc repro`")
        common = about
    assert common is not None  # shard_paths gives at least one
    return common


def iterate_index(directory: Path) -> Iterator[dict[str, Any]]:
    """Every row below `directory` without its numbers, in the order of `iterate_posteriors`."""
    columns = [name for name in manifest.LATENTS.names if name != "posterior"]
    for path in shards.shard_paths(directory):
        yield from shards.read_rows(path, manifest.LATENTS, columns)


def iterate_posteriors(directory: Path) -> Iterator[tuple[str, np.ndarray]]:
    """(clip id, float16 [2, channels, frames, bands]: mean and ln variance, not scaled) of every row below `directory`."""
    for path in shards.shard_paths(directory):
        for row in shards.read_rows(path, manifest.LATENTS, ["clip_id", "posterior", "channels", "frames", "bands"]):
            size = 2, row["channels"], row["frames"], row["bands"]
            values = np.frombuffer(row["posterior"], "<f2")
            if len(values) != math.prod(size):
                raise UserError(f"{path}: the latent of clip {row['clip_id']!r} is not {size}; remake it: `dvc repro`")
            yield row["clip_id"], values.reshape(size)
