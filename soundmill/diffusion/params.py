"""Parameters of diffusion: noise schedule, objective, sampler."""

from typing import Literal

from pydantic import Field

from soundmill.params import Probability, StageParams


class DiffusionParams(StageParams):
    """The noise schedule, the prediction target and the loss weighting."""

    num_timesteps: int = Field(ge=2, le=100_000)
    schedule: Literal["linear", "scaled_linear", "cosine", "shifted_cosine", "rectified_flow"]
    beta_start: float = Field(gt=0, lt=1, description="for `linear` and `scaled_linear`")
    beta_end: float = Field(gt=0, lt=1, description="for `linear` and `scaled_linear`")
    shift: float = Field(gt=0, description="for `shifted_cosine`; below 1: more timesteps at high noise")
    objective: Literal["eps", "x0", "v", "flow"] = Field(
        description="what the net predicts: the noise, the sound, v, or the noise minus the sound"
    )
    weighting: Literal["none", "min_snr", "min_snr_tango"]
    min_snr_gamma: float = Field(gt=0)
    stratified: bool = Field(description="spread the timesteps of a batch evenly instead of drawing them independently")


class RestylingParams(StageParams):
    amount: Probability = Field(
        0.5, description="of noise that `soundmill restyle`, which sets this, adds first: 2/π · atan(sigma / alpha)"
    )


class SamplerParams(RestylingParams):
    sampler: Literal["ddpm", "ddim", "dpm++", "unipc"]
    num_steps: int = Field(ge=1, le=10_000)
    guidance_scale: float = Field(ge=0, le=100, description="1: no guidance")
