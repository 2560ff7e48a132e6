"""Classifier-free guidance (Ho & Salimans 2022): one batched pass of the net with and without its condition."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

ConditionedNet = Callable[[Tensor, Tensor, Tensor], Tensor]


def guided(net: ConditionedNet, xt: Tensor, t: Tensor, condition: Tensor, null: Tensor, scale: float) -> Tensor:
    """u + scale·(c − u) of the conditional answer c and the unconditional u; xt [B, …], t [B], condition and null [B, …].

    A scale of 1 is the conditional answer itself, in one pass.
    """
    if scale == 1:
        return net(xt, t, condition)
    conditional, unconditional = net(torch.cat([xt, xt]), torch.cat([t, t]), torch.cat([condition, null])).chunk(2)
    return unconditional + scale * (conditional - unconditional)
