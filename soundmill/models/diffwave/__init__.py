"""The family `diffwave`: diffusion on waves, from log-mels, by label, by caption or unconditional."""

from typing import Literal, Self

from pydantic import Field, model_validator

from soundmill.audio.mel import MelSpec, check_bands, check_overlap, check_sample_rate
from soundmill.models.components.diffwave import NetworkParams, NoiseLoss, NoiseParams, SamplingParams
from soundmill.models.family import Family
from soundmill.models.params import VectorTrainParams
from soundmill.params import Seconds


class TrainParams(VectorTrainParams):
    condition: Literal["mel", "label", "caption", "none"] = Field(
        description="mel: a vocoder, which reconstructs; the others generate"
    )
    crop_seconds: Seconds = Field(
        gt=0, le=3600, description="length of a crop of each clip; without mels also the length of generated sounds"
    )
    mel: MelSpec = Field(description="mel spec of `condition: mel`")
    network: NetworkParams
    noise: NoiseParams
    unit_variance: bool = Field(
        False,  # for checkpoints that lack this key
        description="divide waves by the standard deviation of the training clips; of conditions other than mel",
    )
    loss: NoiseLoss
    sampling: SamplingParams = Field(description="how the grid, and `soundmill generate` and `reconstruct`, sample the checkpoint")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.condition == "mel" and not self.crop_frames:
            raise ValueError(f"crop_seconds {self.crop_seconds} must be at least one frame (mel.hop_length {self.mel.hop_length})")
        if self.condition == "mel" and self.unit_variance:
            raise ValueError("unit_variance is for waves without mels: a vocoder's mels give the level; set noise.prior to `mel`")
        if self.condition != "mel" and self.noise.prior == "mel":
            raise ValueError(f"noise.prior `mel` needs mels, which condition `{self.condition}` lacks; set it to `standard`")
        return self

    @property
    def crop_frames(self) -> int:
        return round(self.crop_seconds * self.mel.sample_rate / self.mel.hop_length)

    def check_spec(self, spec: MelSpec | None, rate: int, clips: str) -> None:
        self.sampling.check_noise(self.noise)
        if self.condition == "mel":
            check_sample_rate(self.mel, rate, clips)
            check_bands(self.mel)
        if self.noise.prior == "mel":  # its envelope is applied by an STFT and its inverse
            check_overlap(self.mel)

    def crop_samples(self, sample_rate: int) -> int:
        """Samples of a crop; for a vocoder a whole number of frames."""
        return self.crop_frames * self.mel.hop_length if self.condition == "mel" else round(self.crop_seconds * sample_rate)


FAMILY = Family(
    name="diffwave",
    title="diffusion on waves in six steps: a vocoder (wave to log-mels and back), by label, by caption, or unconditional",
    paper="Kong, Ping, Huang, Zhao & Catanzaro 2021, DiffWave: a versatile diffusion model for audio synthesis (arXiv:2009.09761)",
    train_params=TrainParams,
    commands=("generate", "reconstruct"),
    part="net",
    fixed=("condition", "text_width", "network", "noise"),
)
