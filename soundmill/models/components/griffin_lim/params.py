"""Knobs of Griffin-Lim."""

from __future__ import annotations

from pydantic import Field

from soundmill.params import StageParams


class GriffinLimParams(StageParams):
    griffin_lim_iterations: int = Field(ge=1)
    griffin_lim_momentum: float = Field(ge=0, lt=1)
