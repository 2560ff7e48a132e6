"""Classifier-free guidance (Ho & Salimans 2022): one batched pass of the net with and without its condition."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Condition = tuple[Tensor, ...]  # each [B, …]: label weights, or text states and their mask


def guided(net: Callable[..., Tensor], xt: Tensor, t: Tensor, condition: Condition, null: Condition, scale: float) -> Tensor:
    """u + scale·(c − u) of the conditional answer c = net(xt, t, *condition) and the unconditional u; xt [B, …], t [B].

    `null` has the shapes of `condition`. A scale of 1 is the conditional answer itself, in one pass.
    """
    if scale == 1:
        return net(xt, t, *condition)
    both = [torch.cat(parts) for parts in zip(condition, null, strict=True)]
    conditional, unconditional = net(torch.cat([xt, xt]), torch.cat([t, t]), *both).chunk(2)
    return unconditional + scale * (conditional - unconditional)
