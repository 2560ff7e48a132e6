"""Parameters of the diffusion over latents."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from soundmill.models.components.unet1d.params import PathName, UNet1dParams
from soundmill.models.params import BatchedTrainParams, GridParams
from soundmill.params import Probability, StageParams


class PriorSamplingParams(StageParams):
    """Sampling of latents; a family adds the decoding by its codec."""

    num_steps: int = Field(ge=1, le=10_000, description="evenly spaced noise levels of the latents")
    guidance_scale: float = Field(ge=0, le=100, description="1: none")


class PriorTrainParams(BatchedTrainParams):
    condition: Literal["none", "label", "caption"]
    text_width: int | None = Field(  # earlier checkpoints lack it
        None, ge=1, description="width of the text encoder's states, for `condition: caption`"
    )
    path: PathName = "v"
    condition_dropout: Probability = Field(description="share of items trained without their label or caption, as guidance needs")
    network: UNet1dParams = Field(description="U-Net on the latents")
    grid: GridParams
    sampling: PriorSamplingParams = Field(description="how the grid, and the commands that make sound, sample the checkpoint")

    @model_validator(mode="after")
    def _consistent(self) -> PriorTrainParams:
        if (self.condition == "caption") != (self.text_width is not None):
            raise ValueError("text_width is for condition `caption`, which needs it: set both, or text_width to null")
        if self.sampling.guidance_scale != 1 and self.condition != "none" and self.condition_dropout == 0:
            raise ValueError(
                "sampling.guidance_scale needs a network trained also without conditions: raise condition_dropout, or set it to 1"
            )
        return self
