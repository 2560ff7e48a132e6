"""DiffWave (Kong et al. 2021, arXiv:2009.09761): diffusion of waves, here as a vocoder trained on the corpus."""

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from soundmill.audio.mel import MelSpec
from soundmill.diffusion.params import check_betas
from soundmill.models.components.contracts import CropsParams, NetVocoderParams
from soundmill.params import Seed, StageParams

NoiseLoss = Annotated[Literal["l1", "l2"], Field(description="distance of the predicted noise")]
Beta = Annotated[float, Field(gt=0, lt=1)]


class NetworkParams(StageParams):
    """DiffWave's network; the dilations of the residual layers double from 1 within each cycle."""

    layers: int = Field(ge=1, description="30 in the paper's vocoders, 36 in its other models")
    channels: int = Field(ge=1, description="64 in the paper's small vocoder, 128 in the large one, 256 in its other models")
    dilation_cycle: int = Field(ge=1, le=20, description="10 in the paper's vocoders, 12 in its other models")

    @property
    def context(self) -> int:
        """Receptive field on either side, in samples."""
        return sum(2 ** (layer % self.dilation_cycle) for layer in range(self.layers))


class NoiseParams(StageParams):
    """The noise of the training: its schedule, evenly spaced betas, and its spectrum."""

    num_timesteps: int = Field(ge=2, le=100_000)
    beta_start: Beta
    beta_end: Beta
    prior: Literal["standard", "mel"] = Field(
        "standard",  # for checkpoints that lack this key
        description="noise of unit variance, or with the spectral envelope of the log-mel; mel: vocoders only",
    )


class SamplingParams(StageParams):
    betas: Annotated[list[Beta], Field(min_length=1)] | Literal["trained"] = Field(
        description="noise schedule of sampling; trained: every timestep of the training"
    )
    seed: Seed = Field(description="seed of the initial noise of a vocoder")

    def check_noise(self, noise: NoiseParams) -> None:
        """UserError if the betas do not increase, or are not within the noise trained on."""
        if self.betas != "trained":
            table = np.cumprod(1 - np.linspace(noise.beta_start, noise.beta_end, noise.num_timesteps))
            check_betas(self.betas, table.tolist())


class WeightsParams(CropsParams):
    loss: NoiseLoss


class DiffWaveParams(NetVocoderParams):
    fixed: ClassVar = ("network", "noise")

    kind: Literal["diffwave"]
    network: NetworkParams
    noise: NoiseParams
    weights: WeightsParams
    sampling: SamplingParams

    def check_spec(self, spec: MelSpec) -> None:
        super().check_spec(spec)
        self.sampling.check_noise(self.noise)
