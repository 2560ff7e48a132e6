"""Parameters of DiffWave."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from soundmill.models.components.vocoder_params import CropsParams, NetVocoderParams
from soundmill.params import Seed, StageParams

NoiseLoss = Annotated[Literal["l1", "l2"], Field(description="distance of the predicted noise")]
Beta = Annotated[float, Field(gt=0, lt=1)]


class NetworkParams(StageParams):
    """DiffWave's network; the dilations of the residual layers double from 1 within each cycle."""

    layers: int = Field(ge=1, description="the paper's vocoders have 30, its others 36")
    channels: int = Field(ge=1, description="the paper's small vocoder has 64, the large one 128, its others 256")
    dilation_cycle: int = Field(ge=1, le=20, description="the paper's vocoders have 10, its others 12")

    @property
    def context(self) -> int:
        """Receptive field on either side, in samples."""
        return sum(2 ** (layer % self.dilation_cycle) for layer in range(self.layers))


class NoiseParams(StageParams):
    """The noise schedule of the training: evenly spaced betas."""

    num_timesteps: int = Field(ge=2)
    beta_start: Beta
    beta_end: Beta


class SamplingParams(StageParams):
    betas: Annotated[list[Beta], Field(min_length=1)] | Literal["trained"] = Field(
        description="noise schedule of sampling; trained: every timestep of the training"
    )
    seed: Seed = Field(description="of the initial noise of a vocoder")


class WeightsParams(CropsParams):
    loss: NoiseLoss


class DiffWaveParams(NetVocoderParams):
    kind: Literal["diffwave"]
    network: NetworkParams
    noise: NoiseParams
    weights: WeightsParams
    sampling: SamplingParams
