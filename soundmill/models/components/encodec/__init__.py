"""EnCodec (Défossez et al. 2022, arXiv:2210.13438), MusicGen's codec; transformers' EncodecModel. It is loaded, not trained."""

import math
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from soundmill.models.components.contracts import LoadedParams, WaveCodecParams
from soundmill.params import SampleRate, Size, StageParams


class NetworkParams(StageParams):
    """Sizes; all else is as in transformers' defaults."""

    channels: int = Field(ge=1, description="channels of the first level")
    ratios: list[Size] = Field(min_length=1, description="upsampling factor of each level of the decoder")
    latent_channels: int = Field(ge=1)
    codebook_size: int = Field(ge=2, description="entries of each codebook")
    bandwidths: list[float] = Field(min_length=1, description="kbit/s; the largest sets the number of codebooks")
    causal: bool = Field(description="whether convolutions see no later samples")
    conv_shortcut: bool = Field(description="whether residual blocks have a convolution in their shortcut")
    audio_channels: Literal[1, 2]
    sample_rate: SampleRate

    @field_validator("bandwidths")
    @classmethod
    def _rise(cls, bandwidths: list[float]) -> list[float]:
        if bandwidths != sorted(bandwidths):
            raise ValueError(f"{bandwidths} must rise: the last sets the number of codebooks")
        return bandwidths

    @property
    def samples_per_latent(self) -> int:
        return math.prod(self.ratios)


class EncodecParams(WaveCodecParams):
    kind: Literal["encodec"]
    network: NetworkParams = Field(description="loaded weights must have the same architecture")
    bandwidth: float = Field(description="kbit/s of the codes that latents are rounded to, one of `network.bandwidths`")
    weights: LoadedParams

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.bandwidth not in self.network.bandwidths:
            raise ValueError(f"bandwidth {self.bandwidth} must be one of network.bandwidths {self.network.bandwidths}")
        return self
