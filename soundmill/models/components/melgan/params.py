"""Knobs of MelGAN."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from soundmill.models.components.vocoder_params import AdversaryParams, NetVocoderParams
from soundmill.params import StageParams


class NetworkParams(StageParams):
    """MelGAN's generator: the product of `rates` is the hop."""

    channels: int = Field(ge=1, description="at the rate of samples; before each of `rates` twice as many")
    rates: list[int] = Field(min_length=1)
    residual_layers: int = Field(ge=1, description="behind each of the rates, of dilations 1, 3, 9 …")


class MelGanParams(NetVocoderParams):
    kind: Literal["melgan"]
    network: NetworkParams
    weights: AdversaryParams
