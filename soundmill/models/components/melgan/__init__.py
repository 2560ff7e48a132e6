"""MelGAN (Kumar et al. 2019, arXiv:1910.06711): a vocoder trained against discriminators of several scales."""

import math
from typing import Annotated, Literal

from pydantic import Field

from soundmill.audio.mel import MelSpec
from soundmill.models.components.contracts import AdversaryParams, NetVocoderParams, check_hop
from soundmill.params import StageParams


class NetworkParams(StageParams):
    """MelGAN's generator: the product of `rates` is the hop."""

    channels: int = Field(ge=1, description="at the sample rate; doubled before each of `rates`")
    rates: list[Annotated[int, Field(ge=2)]] = Field(min_length=1)
    residual_layers: int = Field(ge=1, description="after each of the rates, with dilations 1, 3, 9 …")

    @property
    def context(self) -> int:
        """Receptive field on either side, in frames."""
        seen, rate = 3.0, 1
        for factor in self.rates:
            seen += 2 / rate
            rate *= factor
            seen += sum(3**layer for layer in range(self.residual_layers)) / rate
        return math.ceil(seen + 3 / rate)


class MelGanParams(NetVocoderParams):
    kind: Literal["melgan"]
    network: NetworkParams
    weights: AdversaryParams

    def check_spec(self, spec: MelSpec) -> None:
        super().check_spec(spec)
        check_hop(self.network.rates, spec)
