"""Parameters of the stage that encodes clips and mixes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from soundmill.params import StageParams


class LatentsParams(StageParams):
    num_samples: int = Field(ge=1, description="of every wave before it is encoded: silence follows a shorter one")
    batch_size: int = Field(ge=1, description="of a GPU; a CPU takes clips one at a time")
    accelerator: Literal["cpu", "gpu", "auto"]
    precision: Literal["32", "bf16"] = Field(description="of a GPU")
