"""Latents moved by hand, before they are decoded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from soundmill.errors import UserError

EDIT = re.compile(r"(\d{1,6})=([+*]?)([+-]?\d{1,12}(?:\.\d{0,12})?(?:e[+-]?\d{1,2})?)", re.IGNORECASE)


LARGEST = torch.finfo(torch.float32).max


class Edit(NamedTuple):
    dimension: int  # 0: the one of the largest variance
    how: Literal["", "+", "*"]
    value: float


def parse_edits(texts: Sequence[str], count: int) -> list[Edit]:
    """`0=1.5` sets a latent of `count`, `0=+0.5` adds to it and `0=*2` multiplies it; anything else is a UserError."""
    edits = []
    for text in texts:
        match = EDIT.fullmatch(text.strip())
        if not match:
            raise UserError(
                f"--latent {text[:100]!r}: write DIM=VALUE to set a latent, DIM=+VALUE to add to it, DIM=*VALUE to scale it"
            )
        if int(match[1]) >= count:
            raise UserError(f"--latent {text[:100]!r}: this model has latents 0 to {count - 1}, the first varies the most")
        value = float(match[3])
        if abs(value) > LARGEST:
            raise UserError(f"--latent {text[:100]!r}: {value:g} is beyond {LARGEST:.3g}; latents are of deviation 1")
        edits.append(Edit(int(match[1]), match[2], value))
    return edits


def edited(latents: Tensor, edits: Sequence[Edit]) -> Tensor:
    """Latents [N, count, T] with these changes, in their order."""
    changed = latents.clone()
    for dimension, how, value in edits:
        if how == "":
            changed[:, dimension] = value
        elif how == "+":
            changed[:, dimension] += value
        else:
            changed[:, dimension] *= value
    return changed
