"""The family `waveform_unet`: v-diffusion on waves by a 1-D U-Net, unconditional, by label or by caption."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from soundmill.diffusion.params import RestylingParams
from soundmill.models.components.unet1d.params import PathName, TransformParams, UNet1dParams
from soundmill.models.family import Family
from soundmill.models.params import ConditionedTrainParams
from soundmill.params import Probability, StageParams


class TextParams(StageParams):
    """Conditioning on captions; conf/waveform_unet/ sets it together with the encoder."""

    width: int = Field(ge=1, description="width of the text encoder's states")
    null_tokens: int = Field(ge=1, description="length of the learned null text")


class SamplingParams(RestylingParams):
    """Sampling from noise, or from a recording and noise."""

    num_steps: int = Field(ge=1, le=10_000, description="evenly spaced noise levels; 10 to 100")
    guidance_scale: float = Field(ge=0, le=100, description="1: none")


class TrainParams(ConditionedTrainParams):
    text_key: ClassVar = "text.width"
    dropout_key: ClassVar = "condition_dropout"

    accumulate: int = Field(ge=1, le=65_536, description="batches whose gradients are accumulated per step")
    num_samples: int = Field(
        ge=1, le=2**28, description="length of a sound and of a crop of each clip; shorter clips are padded with silence"
    )
    crop: Literal["start", "random"] = Field(description="where a crop of a longer clip is taken")
    unit_variance: Literal[False, True, "per_frequency"] = Field(
        False, description="divide waves by the standard deviation of the training clips: of all samples (true), or per frequency"
    )
    condition_dropout: Probability = Field(description="share of items trained without their label or caption, as guidance needs")
    path: PathName = "v"
    transform: TransformParams
    network: UNet1dParams
    text: TextParams = Field(description="text encoding of `condition: caption`")
    sampling: SamplingParams = Field(description="how the grid, and the commands that make sound, sample the checkpoint")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        stride = self.transform.stride * self.network.stride
        if self.num_samples % stride:
            raise ValueError(f"num_samples {self.num_samples} must be a multiple of {stride}, the strides of transform and network")
        return self


FAMILY = Family(
    name="waveform_unet",
    title="diffusion or rectified flow on short stereo waves: by label, caption or unconditional",
    paper="Schneider, Kamal, Jin & Schölkopf 2023, Moûsai (arXiv:2301.11757), at the size of tiny-audio-diffusion",
    train_params=TrainParams,
    commands=("generate", "restyle", "inpaint", "interpolate"),
    weights="unet.safetensors",
    published=True,
    fixed=("condition", "transform", "network", "text", "path"),
)
