"""Knobs of HiFi-GAN."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from soundmill.models.components.griffin_lim.params import GriffinLimParams
from soundmill.models.components.loaded import LoadedParams
from soundmill.params import StageParams
from soundmill.training.params import HardwareParams, TrainingParams


class NetworkParams(StageParams):
    """HiFi-GAN (Kong et al. 2020): the product of `rates` is the hop."""

    channels: int = Field(ge=2, description="at the rate of frames; each of `rates` halves them")
    rates: list[int] = Field(min_length=1)
    kernels: list[int]
    resblock_kernels: list[int] = Field(min_length=1)
    resblock_dilations: list[list[int]]

    @model_validator(mode="after")
    def _lists_fit(self) -> NetworkParams:
        if len(self.kernels) != len(self.rates):
            raise ValueError(f"kernels {self.kernels} must be one for each of rates {self.rates}")
        if any(kernel < rate or rate < 1 for kernel, rate in zip(self.kernels, self.rates, strict=True)):
            raise ValueError(f"no kernel of {self.kernels} may be shorter than its rate of {self.rates}: it would leave gaps")
        if self.channels % 2 ** len(self.rates):
            raise ValueError(f"channels {self.channels} cannot be halved {len(self.rates)} times")
        if len(self.resblock_dilations) != len(self.resblock_kernels):
            raise ValueError(f"resblock_dilations {self.resblock_dilations} must be one list for each of {self.resblock_kernels}")
        return self


class TrainedParams(TrainingParams):
    """The vocoder is trained on the corpus's training clips, against discriminators."""

    kind: Literal["train"]
    batch_size: int = Field(ge=1)
    steps: int = Field(ge=1)
    crop_frames: int = Field(ge=1, description="of each clip, seen in one step; a shorter one is followed by silence")
    discriminator_width: int = Field(ge=4, multiple_of=4, description="32 in the paper")
    feature_weight: float = Field(ge=0, description="of the difference of the discriminators' feature maps")
    mel_weight: float = Field(ge=0, description="of the difference of log-mels")


class HifiGanParams(GriffinLimParams):
    """`griffin_lim_iterations` and `griffin_lim_momentum` are of what the vocoder is measured beside."""

    kind: Literal["hifigan"]
    network: NetworkParams = Field(description="of a loaded one as well: it must be so")
    weights: TrainedParams | LoadedParams = Field(discriminator="kind")
    hardware: HardwareParams

    @model_validator(mode="after")
    def _one_device(self) -> HifiGanParams:
        if self.hardware.devices != 1:
            raise ValueError("hardware.devices must be 1: a vocoder is trained, or loaded, on one")
        return self
