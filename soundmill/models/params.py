"""Parameters that every family has; a family adds its own to them."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

from pydantic import Field, model_validator

from soundmill.params import Seed, StageParams
from soundmill.training.params import HardwareParams, Precision, TrainingParams, Use


class GridParams(StageParams):
    """The picture of samples that is drawn at the end of a training, and for tracking while it runs."""

    columns: int = Field(ge=1)
    rows: int = Field(ge=1)


class FamilyTrainParams(TrainingParams):
    steps: int | None = Field(ge=1, description="length of the training; null: `epochs` decides")
    epochs: int | None = Field(ge=1, description="length in passes over the training clips; null: `steps` decides")
    hardware: HardwareParams

    @property
    @abstractmethod
    def items(self) -> int:
        """In a batch."""

    @model_validator(mode="after")
    def _one_length(self) -> FamilyTrainParams:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("set one of steps and epochs, and the other to null")
        return self


class FamilyGenerateParams(StageParams):
    seed: Seed
    use: Use = Field(description="weights of the checkpoint: the last, those of the lowest held-out loss, or of a kept step")
    count: int | None = Field(ge=1, description="sounds for so many test clips; null: for all")
    batch_size: int = Field(ge=1)
    accelerator: Literal["cpu", "gpu", "auto"]
    precision: Precision = Field(description="fp16 wants a GPU; bf16 is 32 on a CPU that has no instructions for it")
    threads: int = Field(ge=1)
    codec_count: int | None = Field(ge=1, description="real clips sent through the family's representation and back; null: all")
    codec_split: Literal["train", "valid", "test"]

    @property
    def transfers(self) -> int:
        """Clips that `catalog.only` leaves out, transformed for the report; a family that does it says how many."""
        return 0
