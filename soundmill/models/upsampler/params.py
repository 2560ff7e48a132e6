"""Parameters of the family; the checkpoint stores the training parameters, so using it does not need params.yaml."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from soundmill.models.components.unet1d.params import SamplingParams, UNet1dParams, UnitVariance
from soundmill.models.params import BatchedTrainParams, GridParams


class TrainParams(BatchedTrainParams):
    factor: int = Field(ge=2, description="clip rate divided by the input rate: 16 upsamples 3 to 48 kHz")
    num_samples: int = Field(ge=1, le=2**28, description="length of a crop of each clip, and of a window of a sound")
    crop: Literal["start", "random"] = Field(description="where a crop of a longer clip is taken")
    unit_variance: UnitVariance = False
    network: UNet1dParams
    grid: GridParams
    sampling: SamplingParams = Field(description="how the grid, and the commands that make sound, sample the checkpoint")

    @model_validator(mode="after")
    def _consistent(self) -> TrainParams:
        if self.num_samples % self.network.stride or self.num_samples % self.factor:
            raise ValueError(f"num_samples {self.num_samples} must be a multiple of {self.network.stride} and of {self.factor}")
        return self
