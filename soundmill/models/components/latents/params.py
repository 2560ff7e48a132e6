"""Parameters of the stage `latents`, which encodes clips and mixes."""

from typing import Literal

from pydantic import Field

from soundmill.params import StageParams


class LatentsParams(StageParams):
    num_samples: int = Field(ge=1, le=2**28, description="length of every encoded wave; shorter ones are padded with silence")
    batch_size: int = Field(ge=1, le=65_536, description="clips per batch on a GPU; a CPU encodes one at a time")
    accelerator: Literal["cpu", "gpu", "auto"]
    precision: Literal["32", "bf16"] = Field(description="precision on a GPU")
