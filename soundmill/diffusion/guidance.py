"""Classifier-free guidance (Ho & Salimans 2022), with conditional and unconditional items in one batch."""

from collections.abc import Callable

import torch
from torch import Tensor

from soundmill.diffusion.paths import Net

Condition = tuple[Tensor, ...]  # each [B, …]: label weights, or text states and their mask


def guided(net: Callable[..., Tensor], condition: Condition, null: Condition, scale: float) -> Net:
    """A net (xt [B, …], t [B]) → u + scale·(c − u), with c = net(xt, t, *condition) and u = net(xt, t, *null).

    `null` has the shapes of `condition`. With scale 1, and for items whose condition equals the null one, the result is c, so u is
    not computed. These items are found here, once for all steps, because reading them waits for the GPU.
    """
    if scale == 1:
        return lambda xt, t: net(xt, t, *condition)
    differing = [(c != u).reshape(len(c), -1).any(1) for c, u in zip(condition, null, strict=True)]
    items = torch.stack(differing).any(0).nonzero()[:, 0]
    count = len(condition[0])
    all_guided = len(items) == count
    both = [torch.cat([c, u if all_guided else u[items]]) for c, u in zip(condition, null, strict=True)]

    def predict(xt: Tensor, t: Tensor) -> Tensor:
        guided_items = (xt, t) if all_guided else (xt[items], t[items])
        outputs = net(*[torch.cat(parts) for parts in zip((xt, t), guided_items, strict=True)], *both)
        conditional, unconditional = outputs[:count], outputs[count:]
        if all_guided:
            return unconditional + scale * (conditional - unconditional)
        return conditional.index_copy(0, items, unconditional + scale * (conditional[items] - unconditional))

    return predict
