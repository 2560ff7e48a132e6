"""Every knob of the family; the checkpoint carries the training's, so that nothing needs params.yaml later."""

from __future__ import annotations

from pydantic import Field, model_validator

from soundmill.audio.mel import MelSpec
from soundmill.models.components.unet1d.params import SamplingParams, UNet1dParams
from soundmill.models.params import FamilyGenerateParams, FamilyTrainParams, GridParams


class TrainParams(FamilyTrainParams):
    batch_size: int = Field(ge=1)
    crop_frames: int = Field(ge=1, description="of each clip, seen in one step; a shorter one is followed by silence")
    mel: MelSpec
    network: UNet1dParams
    grid: GridParams
    sampling: SamplingParams = Field(description="how the grid, and `soundmill reconstruct`, sample the checkpoint")

    @model_validator(mode="after")
    def _consistent(self) -> TrainParams:
        if self.batch_size % self.hardware.devices:
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of hardware.devices {self.hardware.devices}")
        return self

    @property
    def items(self) -> int:
        return self.batch_size


class GenerateParams(FamilyGenerateParams):
    sampling: SamplingParams
