"""The two contracts of components that several families share: `Vocoder` and `Codec`; and `Kind`, by which stages make them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from soundmill.audio.mel import MelSpec
from soundmill.params import StageParams

if TYPE_CHECKING:
    from torch import Tensor, nn


class Vocoder(Protocol):
    """From log-mels of one spec to sound."""

    spec: MelSpec

    def to(self, device: Any) -> Vocoder: ...

    def vocode(self, log_mels: Tensor) -> Tensor:
        """Waves [N, channels, frames · hop_length] of log-mels [N, n_mels, frames]; not clipped."""


class Codec(Protocol):
    """Between waves and latents."""

    sample_rate: int
    channels: int
    latent_rate: float  # latents a second

    def encode(self, waves: Tensor) -> Tensor:
        """Latents [N, …] of waves [N, channels, T]."""

    def decode(self, latents: Tensor) -> Tensor:
        """Waves [N, channels, T] in [−1, 1] of latents."""


@dataclass(frozen=True)
class Made:
    """A component that was trained or loaded, for its stage to publish."""

    save: Callable[[Path], dict[str, Any]]  # into a directory that is not there yet; more metrics, such as its digest
    points: list[dict[str, float]]  # of the training's curve; loaded: none
    metrics: dict[str, Any]
    draw: Callable[[], Any]  # the figure of what it does to held-out clips


@dataclass(frozen=True)
class Kind:
    """A kind of vocoder or codec, as its package offers it."""

    params: type[StageParams]  # with a `kind`
    make: Callable[[Any, Any, Path, Path, Path], Made]  # (params, ctx, clips, mels, catalog)
    load: Callable[..., Any]  # a directory that `Made.save` wrote; of a vocoder: and the spec that it must speak
    network: Callable[[Any, Any], nn.Module]  # (params, spec as plain values): its net, freshly initialised
