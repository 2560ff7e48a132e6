"""The exponential moving average of a net's weights, from which sounds are sampled."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from soundmill.training.adapters import trained
from soundmill.training.params import EmaParams


class Ema:
    """Average of the weights of `net` that are trained; call `before_step` and `step` around every optimiser step.

    Without `params` there is no average, and the net's weights are used as they are.
    """

    def __init__(self, net: nn.Module, params: EmaParams | None):
        self.params, self.steps = params, 0
        self.shadow = [weight.detach().clone() for weight in trained(net).values()] if params else []  # in the net's order

    def before_step(self, net: nn.Module, batches: int) -> None:
        """Call before each optimiser step, with the number of its batches."""
        if self._counts_batches:
            self._update(net, batches)

    def step(self, net: nn.Module) -> None:
        """Call after each optimiser step."""
        if self.params and not self._counts_batches:
            self._update(net, 1)

    @property
    def _counts_batches(self) -> bool:
        return self.params is not None and self.params.kind == "ema_pytorch" and self.params.counts == "batches"

    @torch.no_grad()
    def _update(self, net: nn.Module, count: int) -> None:
        """Apply `count` updates with the same weights at once: their decays multiply."""
        decays = [decay_at(self.params, self.steps + number) for number in range(count)]
        self.steps += count
        decays = [decay for decay in decays if decay is not None]
        if decays:
            get_ema_multi_avg_fn(math.prod(decays))(self.shadow, list(trained(net).values()), None)

    def to(self, device: Any) -> None:
        self.shadow = [average.to(device) for average in self.shadow]

    @contextmanager
    def applied(self, net: nn.Module) -> Iterator[None]:
        """Give `net` the averaged weights in the block."""
        original = [weight.detach().clone() for weight in trained(net).values()] if self.params else []
        self.copy_to(net)
        try:
            yield
        finally:
            _copy(original, net)

    def copy_to(self, net: nn.Module) -> None:
        _copy(self.shadow, net)

    def state_dict(self) -> dict[str, Any]:
        return {"shadow": self.shadow, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.shadow, self.steps = state["shadow"], state["steps"]


@torch.no_grad()
def _copy(weights: list[Tensor], net: nn.Module) -> None:
    for weight, value in zip(trained(net).values(), weights, strict=bool(weights)):
        weight.copy_(value)


def decay_at(params: EmaParams, steps: int) -> float | None:
    """Decay of the next update after `steps` updates; 0 copies the weights, None skips the update.

    `diffusers` follows EMAModel of diffusers 0.35 without warm-up, `ema_pytorch` follows EMA of ema-pytorch 0.8.
    """
    since = steps - params.update_after_step
    if params.kind == "diffusers":
        return 0.0 if since <= 0 else max(min(params.decay, (1 + since) / (10 + since)), params.min_decay)
    if steps % params.update_every:
        return None
    return 0.0 if since <= 0 else min(max(1 - (1 + since / params.inv_gamma) ** -params.power, params.min_decay), params.decay)
