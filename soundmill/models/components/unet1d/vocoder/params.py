"""Knobs of the diffusion vocoder."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from soundmill.models.components.griffin_lim.params import GriffinLimParams
from soundmill.models.components.unet1d.params import SamplingParams, UNet1dParams
from soundmill.training.params import HardwareParams, TrainingParams


class WeightsParams(TrainingParams):
    """The vocoder is trained on the corpus's training clips."""

    kind: Literal["train"]
    batch_size: int = Field(ge=1)
    steps: int = Field(ge=1)
    crop_frames: int = Field(ge=1, description="of each clip, seen in one step; a shorter one is followed by silence")


class DiffusionVocoderParams(GriffinLimParams):
    """`griffin_lim_iterations` and `griffin_lim_momentum` are of what the vocoder is measured beside."""

    kind: Literal["unet1d"]
    network: UNet1dParams
    weights: WeightsParams
    sampling: SamplingParams
    hardware: HardwareParams

    @model_validator(mode="after")
    def _one_device(self) -> DiffusionVocoderParams:
        if self.hardware.devices != 1:
            raise ValueError("hardware.devices must be 1: a vocoder is trained on one")
        return self
