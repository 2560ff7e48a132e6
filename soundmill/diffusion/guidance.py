"""Classifier-free guidance (Ho & Salimans 2022): one pass of the net, of items with a condition also without it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Condition = tuple[Tensor, ...]  # each [B, …]: label weights, or text states and their mask


def guided(net: Callable[..., Tensor], xt: Tensor, t: Tensor, condition: Condition, null: Condition, scale: float) -> Tensor:
    """u + scale·(c − u) of the conditional answer c = net(xt, t, *condition) and the unconditional u; xt [B, …], t [B].

    `null` has the shapes of `condition`. A scale of 1 is the conditional answer itself, and so is an item whose condition is the
    null one: these are computed once.
    """
    if scale == 1:
        return net(xt, t, *condition)
    differing = [(its != nothing).reshape(len(xt), -1).any(1) for its, nothing in zip(condition, null, strict=True)]
    items = torch.stack(differing).any(0).nonzero()[:, 0]
    whole = len(items) == len(xt)
    again = [part if whole else part[items] for part in (xt, t, *null)]
    answers = net(*[torch.cat(parts) for parts in zip((xt, t, *condition), again, strict=True)])
    conditional, unconditional = answers[: len(xt)], answers[len(xt) :]
    if whole:
        return unconditional + scale * (conditional - unconditional)
    return conditional.index_copy(0, items, unconditional + scale * (conditional[items] - unconditional))
