"""Every knob of the family; the checkpoint carries the training's, so that nothing needs params.yaml later."""

from __future__ import annotations

from pydantic import Field

from soundmill.models.components.unet1d.prior.params import PriorSamplingParams, PriorTrainParams
from soundmill.models.params import FamilyGenerateParams
from soundmill.params import Seed


class SamplingParams(PriorSamplingParams):
    seed: Seed = Field(description="of the latents that fidelity left out, and of the decoder's noise")
    latent: list[str] = Field(description="of the report's transfers: edits of latents, DIM=VALUE, DIM=+VALUE or DIM=*VALUE")


class TrainParams(PriorTrainParams):
    sampling: SamplingParams = Field(description="how the grid, and the commands that make sound, sample the checkpoint")


class GenerateParams(FamilyGenerateParams):
    sampling: SamplingParams
    transfer_count: int = Field(ge=0, description="clips that `catalog.only` leaves out, given the codec's timbre for the report")

    @property
    def transfers(self) -> int:
        return self.transfer_count
