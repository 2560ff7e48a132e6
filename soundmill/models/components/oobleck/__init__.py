"""Oobleck: the autoencoder of waves of Stable Audio (Evans et al. 2024); diffusers' AutoencoderOobleck."""

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from soundmill.models.components.contracts import LoadedParams, WaveCodecParams, WaveCodecTrainingParams
from soundmill.params import SampleRate, Size, StageParams


class NetworkParams(StageParams):
    """Oobleck (Stable Audio Open's: 128 channels, ratios 2, 4, 4, 8, 8, multiples 1, 2, 4, 8, 16, 64 latents)."""

    channels: int = Field(ge=1, description="channels of the decoder's last level")
    ratios: list[Size] = Field(min_length=1, description="downsampling factor of each level")
    multiples: list[Size] = Field(description="channels of each level, in multiples of the first level's")
    latent_channels: int = Field(ge=1, description="half of the channels of the encoder's first level")
    audio_channels: Literal[1, 2]
    sample_rate: SampleRate

    @model_validator(mode="after")
    def _levels_fit(self) -> Self:
        if len(self.multiples) != len(self.ratios):
            raise ValueError(f"multiples {self.multiples} must have one value for each of ratios {self.ratios}")
        if odd := [ratio for ratio in self.ratios if ratio % 2]:
            raise ValueError(f"ratios {odd} must be even: with others the lengths of waves and latents do not agree")
        return self

    @property
    def samples_per_latent(self) -> int:
        return math.prod(self.ratios)


class TrainedParams(WaveCodecTrainingParams):
    """Train the codec on the training clips by spectral distance and KL divergence, without a discriminator."""

    kl_weight: float = Field(ge=0, description="weight of the KL divergence per latent")


class OobleckParams(WaveCodecParams):
    kind: Literal["oobleck"]
    network: NetworkParams = Field(description="loaded weights must have the same architecture")
    weights: TrainedParams | LoadedParams = Field(discriminator="kind")

    @model_validator(mode="after")
    def _long_enough(self) -> Self:
        weights = self.weights
        if weights.kind == "train" and weights.num_samples < 4096:
            raise ValueError(f"weights.num_samples {weights.num_samples} must be 4096 or more, for the windows of the distance")
        return self
