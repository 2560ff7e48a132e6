"""Parameters of diffusion: noise schedule, objective, sampler."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from soundmill.errors import UserError
from soundmill.params import Probability, StageParams

TOLERANCE = 1e-9  # for comparing noise levels


def check_betas(betas: Sequence[float], table: Sequence[float]) -> None:
    """UserError if betas do not increase within (0, 1), or if a noise level is outside those trained on, alpha_bar `table`."""
    if any(not 0 < beta < 1 for beta in betas):
        raise UserError(f"noise schedule {betas}: every beta must lie between 0 and 1")
    if any(beta <= before for before, beta in pairwise(betas)):
        raise UserError(f"noise schedule {betas}: betas must increase")
    first, last = 1 - betas[0], math.prod(1 - beta for beta in betas)
    if first**0.5 > table[0] ** 0.5 + TOLERANCE or last**0.5 < table[-1] ** 0.5 - TOLERANCE:
        raise UserError(
            f"noise schedule {betas}: its alpha_bar goes from {first:.6g} to {last:.6g}; it must stay within the training's range, "
            f"{table[0]:.6g} to {table[-1]:.6g}"
        )


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

    @model_validator(mode="after")
    def _something_is_left(self) -> Self:
        if "linear" in self.schedule and self.num_timesteps * (self.beta_start + self.beta_end) > 200:  # alpha_bar below e^-60
            raise ValueError(
                f"beta_end {self.beta_end} leaves nothing of the sound after {self.num_timesteps} timesteps, which cannot be "
                "sampled: lower it, or num_timesteps"
            )
        return self


class RestylingParams(StageParams):
    amount: Probability = Field(
        0.5, description="of noise that `soundmill restyle`, which sets this, adds first: 2/π · atan(sigma / alpha)"
    )
    keep: list[Annotated[list[int], Field(min_length=2, max_length=2)]] | None = Field(
        None, description="samples [start, stop) that `soundmill inpaint`, which sets this, keeps; null: restyle"
    )
    resamples: int = Field(1, ge=1, le=1000, description="how often each step of inpainting is repeated")

    @field_validator("keep")
    @classmethod
    def _spans_fit(cls, keep: list[list[int]] | None) -> list[list[int]] | None:
        if odd := [span for span in keep or [] if not 0 <= span[0] < span[1]]:
            raise ValueError(f"{odd[0]} is not a span of samples: 0 <= start < stop must hold")
        return keep


class SamplerParams(RestylingParams):
    sampler: Literal["ddpm", "ddim", "dpm++", "unipc"]
    num_steps: int = Field(ge=1, le=10_000)
    guidance_scale: float = Field(ge=0, le=100, description="1: no guidance")

    def check_steps(self, timesteps: int) -> None:
        """ValueError if it takes more steps than there are timesteps trained on."""
        if self.num_steps > timesteps:
            raise ValueError(f"sampling.num_steps {self.num_steps} must not exceed the {timesteps} timesteps trained on")
