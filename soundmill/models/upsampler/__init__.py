"""The family `upsampler`: v-diffusion of the band missing at a lower sample rate."""

from typing import Literal, Self

from pydantic import Field, model_validator

from soundmill.models.components.unet1d.params import SamplingParams, UNet1dParams, UnitVariance
from soundmill.models.family import Family
from soundmill.models.params import BatchedTrainParams


class TrainParams(BatchedTrainParams):
    factor: int = Field(ge=2, description="clip rate divided by the input rate: 16 upsamples 3 to 48 kHz")
    num_samples: int = Field(ge=1, le=2**28, description="length of a crop of each clip, and of a window of a sound")
    crop: Literal["start", "random"] = Field(description="where a crop of a longer clip is taken")
    unit_variance: UnitVariance = False
    network: UNet1dParams
    sampling: SamplingParams = Field(description="how the grid, and the commands that make sound, sample the checkpoint")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.num_samples % self.network.stride or self.num_samples % self.factor:
            raise ValueError(f"num_samples {self.num_samples} must be a multiple of {self.network.stride} and of {self.factor}")
        return self


FAMILY = Family(
    name="upsampler",
    title="v-diffusion of the upper band: recordings of a low rate at a multiple of it (down and up again)",
    paper="Schneider, Kamal, Jin & Schölkopf 2023, Moûsai (arXiv:2301.11757); audio-diffusion-pytorch's DiffusionUpsampler",
    train_params=TrainParams,
    commands=("upsample", "reconstruct"),
    weights="unet.safetensors",
    fixed=("factor", "network"),
)
