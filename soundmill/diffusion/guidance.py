"""Classifier-free guidance (Ho & Salimans 2022): one pass of the net, of items with a condition also without it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from soundmill.diffusion.objectives import Net

Condition = tuple[Tensor, ...]  # each [B, …]: label weights, or text states and their mask


def guided(net: Callable[..., Tensor], condition: Condition, null: Condition, scale: float) -> Net:
    """(xt [B, …], t [B]) → u + scale·(c − u) of the conditional answer c = net(xt, t, *condition) and the unconditional u.

    `null` has the shapes of `condition`. A scale of 1 is the conditional answer itself, and so is an item whose condition is the
    null one: these are computed once. Which items those are is read here, once for all steps: it waits for a GPU.
    """
    if scale == 1:
        return lambda xt, t: net(xt, t, *condition)
    differing = [(given != nothing).reshape(len(given), -1).any(1) for given, nothing in zip(condition, null, strict=True)]
    items = torch.stack(differing).any(0).nonzero()[:, 0]
    count = len(condition[0])
    whole = len(items) == count
    both = [torch.cat([given, nothing if whole else nothing[items]]) for given, nothing in zip(condition, null, strict=True)]

    def answer(xt: Tensor, t: Tensor) -> Tensor:
        again = (xt, t) if whole else (xt[items], t[items])
        answers = net(*[torch.cat(parts) for parts in zip((xt, t), again, strict=True)], *both)
        conditional, unconditional = answers[:count], answers[count:]
        if whole:
            return unconditional + scale * (conditional - unconditional)
        return conditional.index_copy(0, items, unconditional + scale * (conditional[items] - unconditional))

    return answer
