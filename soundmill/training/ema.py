"""The moving average of a net's weights that is sampled from, kept by diffusers' EMAModel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from soundmill.training.params import EmaParams


class Ema:
    """Average of the trainable weights of `net`; `step` after every optimiser step. Without `params` the net's own weights."""

    def __init__(self, net: nn.Module, params: EmaParams | None):
        from diffusers.training_utils import EMAModel

        self._average = params and EMAModel(
            net.parameters(),
            decay=params.decay,
            min_decay=params.min_decay,
            update_after_step=params.update_after_step,
            foreach=True,
        )

    @property
    def shadow(self) -> list[Any]:
        """The averaged tensors, in the order of `net.parameters()`; without an average none."""
        return self._average.shadow_params if self._average else []

    def step(self, net: nn.Module) -> None:
        if self._average:
            self._average.step(net.parameters())

    def to(self, device: Any) -> None:
        if self._average:
            self._average.to(device)

    @contextmanager
    def applied(self, net: nn.Module) -> Iterator[None]:
        """Within, `net` carries the averaged weights."""
        if not self._average:
            yield
            return
        kept = [weight.detach().clone() for weight in net.parameters()]
        self._average.copy_to(net.parameters())
        try:
            yield
        finally:
            for weight, own in zip(net.parameters(), kept, strict=True):
                weight.data.copy_(own)

    def copy_to(self, net: nn.Module) -> None:
        if self._average:
            self._average.copy_to(net.parameters())

    def state_dict(self) -> dict[str, Any]:
        return self._average.state_dict() if self._average else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._average:
            self._average.load_state_dict(state)
