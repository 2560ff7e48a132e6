"""Sizes of the 1-D U-Net."""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from soundmill.params import Seed, Size, StageParams


class TransformParams(StageParams):
    """The transform between waves and the U-Net: none, patches of `size` samples as channels, a learned filter bank, or an STFT."""

    kind: Literal["none", "patch", "learned", "stft"]
    size: int = Field(ge=1, description="samples of a patch; stride of the filters and of the STFT")
    filters: int = Field(ge=1, description="number of learned filters per channel of the waves")
    window: int | None = Field(None, ge=1, description="samples of a filter and of the STFT; null: `size`; stft: 4 · `size`")

    @model_validator(mode="after")
    def _window_fits(self) -> Self:
        if self.kind == "learned" and (self.samples < self.size or (self.samples - self.size) % 2):
            raise ValueError(f"window {self.window} must be size {self.size} or longer by an even number")
        if self.kind == "stft" and (self.size % 2 or self.samples % (4 * self.size)):
            raise ValueError(f"size {self.size}, window {self.samples}: stft needs an even size and a multiple of 4 · size")
        return self

    @property
    def samples(self) -> int:
        """Samples of a filter or window."""
        return self.window or self.size * (4 if self.kind == "stft" else 1)

    def channels(self, waves: int) -> int:
        """Channels of the U-Net's input for `waves` channels."""
        return waves * {"none": 1, "patch": self.size, "learned": self.filters, "stft": self.samples}[self.kind]

    @property
    def stride(self) -> int:
        return 1 if self.kind == "none" else self.size


NO_TRANSFORM = TransformParams(kind="none", size=1, filters=1)


# False by default, because earlier checkpoints lack this key.
UnitVariance = Annotated[bool, Field(description="divide waves by the standard deviation of the training clips")]


PathName = Annotated[
    Literal["v", "rectified_flow"],  # v-diffusion by default, because earlier checkpoints lack this key
    Field(description="path from sound to noise: v-diffusion's circle, or rectified flow's straight line"),
]


class SamplingParams(StageParams):
    """Sampling of a network that decodes its condition: all sounds start from the same noise."""

    num_steps: int = Field(ge=1, le=10_000, description="evenly spaced noise levels; 10 to 100")
    seed: Seed = Field(description="seed of the initial noise")


class UNet1dParams(StageParams):
    """The U-Net of waves (tiny-audio-diffusion's: 32, 32, 64, 64, 128, 128, 256, 256; factors 1 and seven times 2)."""

    channels: list[Size] = Field(min_length=1, description="channels of levels 0, 1, …")
    factors: list[Size] = Field(description="downsampling factor of each level")
    items: list[Size] = Field(description="residual blocks per level on the way down, and again on the way up")
    attention: list[bool] = Field(description="levels with self-attention")
    text_attention: list[bool] = Field(description="levels with cross-attention to a text, if there is one")
    heads: int = Field(ge=1, description="attention heads")
    head_width: int = Field(ge=1)
    groups: int = Field(ge=1, description="groups of the group norms")
    modulation: int = Field(ge=1, description="width of the embedding of noise level and label")
    gated: bool = Field(False, description="predict a gain of each channel of the transform, instead of a residual")

    @model_validator(mode="after")
    def _levels_fit(self) -> Self:
        for name in ("factors", "items", "attention", "text_attention"):
            if len(getattr(self, name)) != len(self.channels):
                raise ValueError(f"{name} {getattr(self, name)} must have one value for each of channels {self.channels}")
        if unfit := [width for width in self.channels if width % self.groups]:
            raise ValueError(f"channels {unfit} must be multiples of {self.groups} groups")
        return self

    @property
    def stride(self) -> int:
        """Samples per frame of the lowest level."""
        return math.prod(self.factors)
