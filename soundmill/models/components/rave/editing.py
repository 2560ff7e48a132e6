"""Manual edits of latents before decoding."""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from soundmill.errors import UserError

EDIT = re.compile(r"(\d{1,6})=([+*]?)([+-]?\d{1,12}(?:\.\d{0,12})?(?:e[+-]?\d{1,2})?)", re.IGNORECASE)


LARGEST = torch.finfo(torch.float32).max


class Edit(NamedTuple):
    dimension: int  # 0: the component with the largest variance
    how: Literal["", "+", "*"]
    value: float


def parse_edits(texts: Sequence[str], count: int) -> list[Edit]:
    """Parse `0=1.5` (set), `0=+0.5` (add) or `0=*2` (multiply) for one of `count` latents; UserError for anything else."""
    edits = []
    for text in texts:
        match = EDIT.fullmatch(text.strip())
        if not match:
            raise UserError(
                f"--latent {text[:100]!r}: write DIM=VALUE to set a latent, DIM=+VALUE to add to it, DIM=*VALUE to scale it"
            )
        if int(match[1]) >= count:
            raise UserError(f"--latent {text[:100]!r}: this model has latents 0 to {count - 1}, ordered by variance")
        value = float(match[3])
        if abs(value) > LARGEST:
            raise UserError(f"--latent {text[:100]!r}: {value:g} is beyond {LARGEST:.3g}; latents have unit deviation")
        edits.append(Edit(int(match[1]), match[2], value))
    return edits


def edited(latents: Tensor, edits: Sequence[Edit]) -> Tensor:
    """Latents [N, count, T] with the edits applied in order."""
    result = latents.clone()
    for dimension, how, value in edits:
        if how == "":
            result[:, dimension] = value
        elif how == "+":
            result[:, dimension] += value
        else:
            result[:, dimension] *= value
    return result
