"""Parameters of Griffin-Lim."""

from typing import Literal

from pydantic import Field

from soundmill.params import StageParams


class GriffinLimParams(StageParams):
    griffin_lim_iterations: int = Field(ge=1, le=10_000)
    griffin_lim_momentum: float = Field(ge=0, lt=1)
    # With a default, since earlier checkpoints do not have this key.
    griffin_lim_grain: Literal["none", "speckle"] = Field(
        "none",
        description="fluctuations that bands average away: none, or drawn by the request's seed in noisy bands",
    )
