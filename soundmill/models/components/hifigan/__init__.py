"""HiFi-GAN (Kong, Kim & Bae 2020, arXiv:2010.05646): a vocoder trained against discriminators, or loaded."""

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from soundmill.audio.mel import MelSpec
from soundmill.errors import UserError
from soundmill.models.components.contracts import AdversaryParams, LoadedParams, NetVocoderParams, check_hop
from soundmill.params import Size, StageParams


class NetworkParams(StageParams):
    """HiFi-GAN (Kong et al. 2020): the product of `rates` is the hop."""

    channels: int = Field(ge=2, description="at the frame rate; halved after each of `rates`")
    rates: list[Size] = Field(min_length=1)
    kernels: list[Size]
    resblock_kernels: list[Size] = Field(min_length=1)
    resblock_dilations: list[list[Size]]

    @model_validator(mode="after")
    def _lists_fit(self) -> Self:
        if len(self.kernels) != len(self.rates):
            raise ValueError(f"kernels {self.kernels} must be one for each of rates {self.rates}")
        if any(kernel < rate for kernel, rate in zip(self.kernels, self.rates, strict=True)):
            raise ValueError(f"no kernel of {self.kernels} may be shorter than its rate of {self.rates}: it would leave gaps")
        if self.channels % 2 ** len(self.rates):
            raise ValueError(f"channels {self.channels} cannot be halved {len(self.rates)} times")
        if even := [kernel for kernel in self.resblock_kernels if kernel % 2 == 0]:
            raise ValueError(f"resblock_kernels {even} must be odd: with others a block does not keep its length")
        if len(self.resblock_dilations) != len(self.resblock_kernels):
            raise ValueError(f"resblock_dilations {self.resblock_dilations} must be one list for each of {self.resblock_kernels}")
        return self

    @property
    def context(self) -> int:
        """Receptive field on either side, in frames."""
        seen, rate = 3.0, 1
        for factor, kernel in zip(self.rates, self.kernels, strict=True):
            seen += kernel / factor / rate
            rate *= factor
            blocks = zip(self.resblock_kernels, self.resblock_dilations, strict=True)
            seen += max(sum((size - 1) / 2 * (dilation + 1) for dilation in dilations) for size, dilations in blocks) / rate
        return math.ceil(seen + 3 / rate)


class HifiGanParams(NetVocoderParams):
    kind: Literal["hifigan"]
    network: NetworkParams = Field(description="loaded weights must have the same architecture")
    weights: AdversaryParams | LoadedParams = Field(discriminator="kind")

    def check_spec(self, spec: MelSpec) -> None:
        super().check_spec(spec)
        check_hop(self.network.rates, spec)
        if self.weights.kind == "load" and spec.win_length != spec.n_fft:
            raise UserError(
                f"the loaded vocoder expects windows as long as n_fft ({spec.n_fft}), but win_length of its spectrogram is "
                f"{spec.win_length}; set win_length to {spec.n_fft}, or add `latents=audioldm`"
            )
