"""The family `audio_dit`: a transformer over a codec's latents, by caption, label and length."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from soundmill.diffusion.params import RestylingParams
from soundmill.models.components.contracts import GriffinLimParams
from soundmill.models.components.dit.params import TransformerParams
from soundmill.models.family import Family
from soundmill.models.params import ConditionedTrainParams
from soundmill.params import Probability, Seconds, StageParams


class FlowParams(StageParams):
    """The path from sound to noise, and where on it the net is trained."""

    objective: Literal["v", "rectified_flow"]
    times: Literal["uniform", "logit_normal"] = Field(description="distribution of the training times; spread evenly over a batch")
    base_frames: int | None = Field(
        ge=1,
        description="rectified_flow: sounds of more latents than this are trained and sampled at noisier times; null: none are",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.base_frames is not None and self.objective != "rectified_flow":
            raise ValueError("base_frames is for objective rectified_flow; set it to null")
        return self


class DropoutParams(StageParams):
    """Shares of items that are trained without a condition."""

    condition: Probability = Field(
        description="without the caption; the same share, drawn separately, is trained without the label"
    )
    seconds: Probability = Field(description="without the seconds")
    all: Probability = Field(description="without any condition in the attention, as guidance asks for; the length stays known")


class SamplingParams(RestylingParams, GriffinLimParams):
    """From noise and a request to sound."""

    solver: Literal["euler", "midpoint", "pingpong", "dpm++_sde"] = Field(
        description="rectified_flow: euler; midpoint with two passes per step; pingpong, for a net distilled to few steps; "
        "v: dpm++_sde, or DDIM with any other"
    )
    num_steps: int = Field(ge=1, le=10_000)
    guidance_scale: float = Field(ge=0, le=100, description="1: no guidance")
    seconds: Seconds | None = Field(
        gt=0, le=36_000, description="length of requests that name none; null: that of the longest training clip"
    )
    overlap: float = Field(gt=0, lt=1, description="share of a window of a longer sound that the next one keeps, at least")
    vocoder: Literal["griffin_lim", "trained"] = Field(description="of log-mels; trained: the one that the stage `vocoder` made")
    grain: float = Field(ge=0, description="share of the noise lost in reconstruction that decoding adds back; 0: none")


class TrainParams(ConditionedTrainParams):
    text_key: ClassVar = "network.text_width"
    dropout_key: ClassVar = "dropout.all"
    guided_by_dropout: ClassVar = True  # of the length, too

    condition: Literal["none", "label", "caption", "caption_and_label"]
    accumulate: int = Field(ge=1, le=65_536, description="batches whose gradients are accumulated per step")
    dropout: DropoutParams
    standardise: Literal[False, True, "together"] = Field(
        description="standardise each channel of the latents over the training clips, or divide all by their root mean square"
    )
    network: TransformerParams
    flow: FlowParams
    sampling: SamplingParams = Field(description="how the grid, and `soundmill generate`, sample the checkpoint")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.condition == "caption_and_label" and self.dropout.condition == 0:
            raise ValueError("condition caption_and_label needs dropout.condition above 0, so that the net learns each alone")
        solver, objective = self.sampling.solver, self.flow.objective
        if solver == "dpm++_sde" and objective != "v":
            raise ValueError("sampling.solver dpm++_sde is for flow.objective v; set it to euler or midpoint")
        if solver == "dpm++_sde" and self.sampling.num_steps < 2:
            raise ValueError("sampling.solver dpm++_sde needs sampling.num_steps of 2 or more")
        if solver == "pingpong" and objective != "rectified_flow":
            raise ValueError("sampling.solver pingpong is for flow.objective rectified_flow; set it to dpm++_sde")
        return self


FAMILY = Family(
    name="audio_dit",
    title="text, label and length to sound: a diffusion transformer over a codec's latents, by rectified flow or v-diffusion",
    paper="Evans, Parker, Carr, Zukowski, Taylor & Pons 2024, Stable Audio Open (arXiv:2407.14358)",
    train_params=TrainParams,
    commands=("generate", "restyle", "inpaint", "interpolate", "reconstruct"),
    published=True,
    weights="transformer.safetensors",
    part="transformer",
    adapted=True,
    longer=True,
    fixed=("network", "condition", "flow.objective"),
)
