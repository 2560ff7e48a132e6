"""Parameters common to the families that use this U-Net."""

from __future__ import annotations

from pydantic import Field, model_validator

from soundmill.models.params import FamilyTrainParams


class BatchedTrainParams(FamilyTrainParams):
    """Training parameters with a batch size, checked against the devices."""

    batch_size: int = Field(ge=1, le=65_536)

    @model_validator(mode="after")
    def _shared_among_devices(self) -> BatchedTrainParams:
        if self.batch_size % self.hardware.devices:
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of hardware.devices {self.hardware.devices}")
        return self

    @property
    def items(self) -> int:
        return self.batch_size
