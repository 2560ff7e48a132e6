"""Diffusion over the latents of a wave codec by the 1-D U-Net: by label, by caption or unconditional."""

from typing import ClassVar

from pydantic import Field

from soundmill.errors import UserError
from soundmill.models.components.unet1d.params import PathName, UNet1dParams
from soundmill.models.params import VectorTrainParams
from soundmill.params import Probability, StageParams


class PriorSamplingParams(StageParams):
    """Sampling of latents; a family adds the decoding by its codec."""

    num_steps: int = Field(ge=1, le=10_000, description="evenly spaced noise levels of the latents")
    guidance_scale: float = Field(ge=0, le=100, description="1: none")


class PriorTrainParams(VectorTrainParams):
    dropout_key: ClassVar = "condition_dropout"

    path: PathName = "v"
    condition_dropout: Probability = Field(description="share of items trained without their label or caption, as guidance needs")
    network: UNet1dParams = Field(description="U-Net on the latents")
    sampling: PriorSamplingParams = Field(description="how the grid, and the commands that make sound, sample the checkpoint")

    def check_latents(self, shape: tuple[int, int, int]) -> None:
        if shape[1] % (stride := self.network.stride):
            raise UserError(
                f"network: a sound has {shape[1]} latents, and it needs a multiple of {stride}: change latents.num_samples, or "
                "network.factors"
            )
