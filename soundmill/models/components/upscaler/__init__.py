"""A vocoder for small mel pictures: a net enlarges them to whole spectrograms, Griffin-Lim finds phases."""

from typing import Literal

from pydantic import Field

from soundmill.models.components.contracts import CropsParams, NetVocoderParams
from soundmill.params import StageParams


class NetworkParams(StageParams):
    """Convolutions at the small picture's size, then a sub-pixel convolution (Shi et al. 2016, arXiv:1609.05158)."""

    height: int = Field(ge=4, description="rows of the small picture")
    columns_per_second: float = Field(gt=0, description="of the small picture")
    exponent: float = Field(gt=0, le=1, description="pixels are mel values to this power")
    channels: int = Field(ge=1)
    layers: int = Field(ge=1, description="convolutions between the first and the last")


class UpscalerParams(NetVocoderParams):
    kind: Literal["upscaler"]
    network: NetworkParams
    weights: CropsParams
