"""The diffusion autoencoder: an encoder of mels, and a U-Net that diffuses waves given the latents (Schneider et al. 2023)."""

import math
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from soundmill.audio.mel import MelSpec, check_overlap
from soundmill.errors import UserError
from soundmill.models.components.contracts import ComponentParams, WaveCodecTrainingParams
from soundmill.models.components.unet1d.params import SamplingParams, UNet1dParams, UnitVariance
from soundmill.params import StageParams


class EncoderParams(StageParams):
    """Residual blocks over mels, after a convolution with stride `factor`."""

    channels: int = Field(ge=1)
    blocks: int = Field(ge=1)
    factor: int = Field(ge=1)
    latent_channels: int = Field(ge=1)
    groups: int = Field(ge=1, description="groups of the group norms; must divide `channels`")
    pca: bool = Field(  # earlier checkpoints lack this key
        default=False,
        description="start from principal components of the training clips' log-mels, decoded to noise with their spectrum, and "
        "learn only what they lack",
    )

    @model_validator(mode="after")
    def _groups_fit(self) -> Self:
        if self.channels % self.groups:
            raise ValueError(f"channels {self.channels} cannot be split into {self.groups} groups")
        return self


class WeightsParams(WaveCodecTrainingParams):
    """Train the autoencoder on the training clips."""

    steps: int = Field(ge=1, le=100_000_000)
    unit_variance: UnitVariance = False


class AutoencoderParams(ComponentParams):
    fixed: ClassVar = ("encoder", "network", "latents_at")

    kind: Literal["unet1d"]
    encoder: EncoderParams
    network: UNet1dParams
    latents_at: int = Field(ge=0, description="U-Net level that the latents join; it must have the same number of frames")
    weights: WeightsParams
    decoding: SamplingParams

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.latents_at >= len(self.network.channels):
            raise ValueError(f"latents_at {self.latents_at}: the network has levels 0 to {len(self.network.channels) - 1}")
        if self.weights.num_samples % self.network.stride:
            raise ValueError(f"weights.num_samples {self.weights.num_samples} must be a multiple of {self.network.stride}")
        return self

    def check_spec(self, spec: MelSpec) -> None:
        """UserError, too, if the encoder's latents do not have the rate of the U-Net level that they join."""
        samples = spec.hop_length * self.encoder.factor
        if samples != self.samples_per_latent:
            raise UserError(
                f"the encoder makes a latent of {samples} samples (hop_length · encoder.factor), but level {self.latents_at} of "
                f"the network has a frame of {self.samples_per_latent}: make them equal"
            )
        if spec.peak is not None:
            raise UserError("the encoder does not change the level of waves: set its spectrogram's `peak` to null")
        if self.weights.num_samples <= spec.n_fft // 2:
            raise UserError(f"weights.num_samples {self.weights.num_samples} must be more than half of n_fft {spec.n_fft}")
        if self.encoder.pca:
            check_overlap(spec)
            if self.encoder.latent_channels > (numbers := spec.n_mels * self.encoder.factor):
                raise UserError(
                    f"encoder.latent_channels {self.encoder.latent_channels}: with encoder.pca at most {numbers}, the numbers of "
                    f"{self.encoder.factor} frames of {spec.n_mels} bands"
                )

    def latent_shape(self, spec: MelSpec, num_samples: int) -> tuple[int, int, int]:
        """Shape (channels, frames, bands) of the latent of `num_samples`."""
        return self.encoder.latent_channels, num_samples // self.samples_per_latent, 1

    def stride(self, spec: MelSpec) -> int:
        """Samples that lengths of waves must be multiples of."""
        return self.network.stride

    @property
    def samples_per_latent(self) -> int:
        """Samples per frame of the level that the latents join."""
        return math.prod(self.network.factors[: self.latents_at + 1])
