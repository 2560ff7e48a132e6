"""Parameters of the family; the checkpoint stores the training parameters, so using it does not need params.yaml."""

from pydantic import Field

from soundmill.models.components.unet1d.params import SamplingParams as DecodingParams
from soundmill.models.components.unet1d.prior import PriorSamplingParams, PriorTrainParams


class SamplingParams(PriorSamplingParams):
    decoding: DecodingParams = Field(description="from latents to sound")


class TrainParams(PriorTrainParams):
    sampling: SamplingParams = Field(description="how the grid, and the commands that make sound, sample the checkpoint")
