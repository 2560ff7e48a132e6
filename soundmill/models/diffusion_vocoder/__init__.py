"""The family `diffusion_vocoder`: v-diffusion from log-mels to waves."""

from pydantic import Field

from soundmill.audio.mel import MelSpec, check_bands, check_sample_rate
from soundmill.models.components.unet1d.params import SamplingParams, UNet1dParams, UnitVariance
from soundmill.models.family import Family
from soundmill.models.params import BatchedTrainParams


class TrainParams(BatchedTrainParams):
    crop_frames: int = Field(ge=1, description="length of a crop of each clip; shorter clips are padded with silence")
    mel: MelSpec
    unit_variance: UnitVariance = False
    network: UNet1dParams
    sampling: SamplingParams = Field(description="how the grid, and `soundmill reconstruct`, sample the checkpoint")

    def check_spec(self, spec: MelSpec | None, rate: int, clips: str) -> None:
        check_sample_rate(self.mel, rate, clips)
        check_bands(self.mel)


FAMILY = Family(
    name="diffusion_vocoder",
    title="v-diffusion from log-mels to waves: a vocoder (wave to log-mels and back)",
    paper="Schneider, Kamal, Jin & Schölkopf 2023, Moûsai (arXiv:2301.11757); audio-diffusion-pytorch's DiffusionVocoder",
    train_params=TrainParams,
    commands=("reconstruct",),
    part="net",
    fixed=("mel", "network"),
)
