"""Every knob of the family; the checkpoint carries the training's, so that nothing needs params.yaml later."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from soundmill.models.components.unet1d.family import BatchedTrainParams
from soundmill.models.components.unet1d.params import SamplingParams as DecodingParams
from soundmill.models.components.unet1d.params import UNet1dParams
from soundmill.models.params import FamilyGenerateParams, GridParams
from soundmill.params import Probability, StageParams


class SamplingParams(StageParams):
    """From noise to latents, and from latents to sound."""

    num_steps: int = Field(ge=1, description="evenly spaced noise levels of the latents")
    guidance_scale: float = Field(ge=0, description="1: none")
    decoding: DecodingParams


class TrainParams(BatchedTrainParams):
    condition: Literal["none", "label"]
    condition_dropout: Probability = Field(description="share of items trained without their label, as guidance needs")
    network: UNet1dParams = Field(description="of the latents")
    grid: GridParams
    sampling: SamplingParams = Field(description="how the grid, and the commands that make sound, sample the checkpoint")

    @model_validator(mode="after")
    def _consistent(self) -> TrainParams:
        if self.sampling.guidance_scale != 1 and self.condition != "none" and self.condition_dropout == 0:
            raise ValueError("sampling.guidance_scale wants a net trained without labels too: raise condition_dropout, or set 1")
        return self


class GenerateParams(FamilyGenerateParams):
    sampling: SamplingParams
