"""Parameters of the family; the checkpoint stores the training parameters, so using it does not need params.yaml."""

from pydantic import Field

from soundmill.audio.mel import MelSpec, check_bands
from soundmill.models.components.unet1d.params import SamplingParams, UNet1dParams, UnitVariance
from soundmill.models.params import BatchedTrainParams, GridParams


class TrainParams(BatchedTrainParams):
    crop_frames: int = Field(ge=1, description="length of a crop of each clip; shorter clips are padded with silence")
    mel: MelSpec
    unit_variance: UnitVariance = False
    network: UNet1dParams
    grid: GridParams
    sampling: SamplingParams = Field(description="how the grid, and `soundmill reconstruct`, sample the checkpoint")

    def check_spec(self, spec: MelSpec | None) -> None:
        check_bands(self.mel)
