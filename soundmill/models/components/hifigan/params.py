"""Knobs of HiFi-GAN."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from soundmill.models.components.loaded import LoadedParams
from soundmill.models.components.vocoder_params import AdversaryParams, NetVocoderParams
from soundmill.params import StageParams


class NetworkParams(StageParams):
    """HiFi-GAN (Kong et al. 2020): the product of `rates` is the hop."""

    channels: int = Field(ge=2, description="at the rate of frames; each of `rates` halves them")
    rates: list[int] = Field(min_length=1)
    kernels: list[int]
    resblock_kernels: list[int] = Field(min_length=1)
    resblock_dilations: list[list[int]]

    @model_validator(mode="after")
    def _lists_fit(self) -> NetworkParams:
        if len(self.kernels) != len(self.rates):
            raise ValueError(f"kernels {self.kernels} must be one for each of rates {self.rates}")
        if any(kernel < rate or rate < 1 for kernel, rate in zip(self.kernels, self.rates, strict=True)):
            raise ValueError(f"no kernel of {self.kernels} may be shorter than its rate of {self.rates}: it would leave gaps")
        if self.channels % 2 ** len(self.rates):
            raise ValueError(f"channels {self.channels} cannot be halved {len(self.rates)} times")
        if len(self.resblock_dilations) != len(self.resblock_kernels):
            raise ValueError(f"resblock_dilations {self.resblock_dilations} must be one list for each of {self.resblock_kernels}")
        return self


class HifiGanParams(NetVocoderParams):
    kind: Literal["hifigan"]
    network: NetworkParams = Field(description="of a loaded one as well: it must be so")
    weights: AdversaryParams | LoadedParams = Field(discriminator="kind")
