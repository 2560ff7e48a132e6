"""What families on this U-Net have in common."""

from __future__ import annotations

from pydantic import Field, model_validator

from soundmill.models.params import FamilyTrainParams


class BatchedTrainParams(FamilyTrainParams):
    """Of a family on this U-Net: what all of them check of a batch."""

    batch_size: int = Field(ge=1)

    @model_validator(mode="after")
    def _shared_among_devices(self) -> BatchedTrainParams:
        if self.batch_size % self.hardware.devices:
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of hardware.devices {self.hardware.devices}")
        return self

    @property
    def items(self) -> int:
        return self.batch_size
