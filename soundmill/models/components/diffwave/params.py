"""Knobs of DiffWave."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from soundmill.models.components.griffin_lim.params import GriffinLimParams
from soundmill.params import Seed, StageParams
from soundmill.training.params import HardwareParams, TrainingParams

NoiseLoss = Annotated[Literal["l1", "l2"], Field(description="of the noise that is predicted")]
Beta = Annotated[float, Field(gt=0, lt=1)]


class NetworkParams(StageParams):
    """DiffWave's net: dilations of the residual layers go 1, 2, 4 … through a cycle, and begin again."""

    layers: int = Field(ge=1, description="the paper's vocoders have 30, its others 36")
    channels: int = Field(ge=1, description="the paper's small vocoder has 64, the large one 128, its others 256")
    dilation_cycle: int = Field(ge=1, le=20, description="the paper's vocoders have 10, its others 12")


class NoiseParams(StageParams):
    """The schedule that the net is trained on: betas evenly spaced."""

    num_timesteps: int = Field(ge=2)
    beta_start: Beta
    beta_end: Beta


class SamplingParams(StageParams):
    betas: Annotated[list[Beta], Field(min_length=1)] | Literal["trained"] = Field(
        description="the steps to sound; trained: every timestep of the training"
    )
    seed: Seed = Field(description="of what a vocoder's sounds begin with")


class WeightsParams(TrainingParams):
    """The vocoder is trained on the corpus's training clips."""

    kind: Literal["train"]
    batch_size: int = Field(ge=1)
    steps: int = Field(ge=1)
    crop_frames: int = Field(ge=1, description="of each clip, seen in one step; a shorter one is followed by silence")
    loss: NoiseLoss


class DiffWaveParams(GriffinLimParams):
    """`griffin_lim_iterations` and `griffin_lim_momentum` are of what the vocoder is measured beside."""

    kind: Literal["diffwave"]
    network: NetworkParams
    noise: NoiseParams
    weights: WeightsParams
    sampling: SamplingParams
    hardware: HardwareParams

    @model_validator(mode="after")
    def _one_device(self) -> DiffWaveParams:
        if self.hardware.devices != 1:
            raise ValueError("hardware.devices must be 1: a vocoder is trained on one")
        return self
