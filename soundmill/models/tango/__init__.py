"""The family `tango`: text to audio, by diffusion over latents of log-mels."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from soundmill.diffusion.params import DiffusionParams, SamplerParams
from soundmill.errors import UserError
from soundmill.models.components.contracts import GriffinLimParams
from soundmill.models.family import Family
from soundmill.models.params import FamilyTrainParams
from soundmill.params import Probability, Size, StageParams


class UNetParams(StageParams):
    """The text-conditioned U-Net (TANGO's: 320, 640, 1280, 1280, text on levels 0 to 2, heads 5, 10, 20, 20)."""

    widths: list[Size] = Field(min_length=2, description="channels of levels 0, 1, …, each half the size of the one before")
    heads: list[Size] = Field(description="attention heads of each level")
    text_levels: list[int] = Field(description="levels with self- and cross-attention; the middle block always has them")
    blocks: int = Field(ge=1, description="residual blocks per level")
    groups: int = Field(ge=1, description="groups of the group norms")
    text_width: int = Field(ge=1, description="width of the text encoder's states; conf/text/ sets it with the encoder")
    class_width: int | None = Field(  # earlier checkpoints lack this key
        default=None,
        ge=1,
        description="as in AudioLDM: width of a vector of the text, which joins the timestep's embedding in place of attention to "
        "the text's states; null: attention",
    )
    gradient_checkpointing: bool = Field(description="recompute activations in the backward pass: less memory, a third more time")

    @model_validator(mode="after")
    def _levels_fit(self) -> Self:
        if len(self.heads) != len(self.widths):
            raise ValueError(f"heads {self.heads} must have one value for each of widths {self.widths}")
        for width, heads in zip(self.widths, self.heads, strict=True):
            if width % heads or width % self.groups:
                raise ValueError(f"width {width} must be a multiple of its {heads} heads and of {self.groups} groups")
        beyond = [level for level in self.text_levels if not 0 <= level < len(self.widths)]
        if beyond:
            raise ValueError(f"text_levels {beyond} do not exist: there are levels 0 to {len(self.widths) - 1}")
        return self


class SamplingParams(SamplerParams, GriffinLimParams):
    """From noise and a prompt to sound."""

    vocoder: Literal["griffin_lim", "trained"] = Field(description="trained: the one that the stage `vocoder` made")
    spacing: Literal["trailing", "leading"] = Field(description="spacing of the timesteps; `leading` ends at 1, as TANGO does")
    variance: Literal["large", "small"] = Field(description="variance of ddpm's noise")
    grain: float = Field(ge=0, description="share of the noise lost in reconstruction that decoding adds back; 0: none")


class TrainParams(FamilyTrainParams):
    text_key: ClassVar = "network.text_width"
    dropout_key: ClassVar = "text_dropout"
    by_caption: ClassVar = True

    real_items: int = Field(ge=1, description="clips in a batch of one device")
    mixed_items: int = Field(ge=0, description="mixes in a batch of one device, in addition to the clips")
    accumulate: int = Field(ge=1, le=65_536, description="batches whose gradients are accumulated per step")
    text_dropout: Probability = Field(description="share of items trained with the null text, as guidance needs")
    null_text: Literal["empty", "zeros"] = Field(description="the encoder's states of the empty caption, or one state of zeros")
    network: UNetParams
    diffusion: DiffusionParams
    sampling: SamplingParams = Field(description="how the grid, and `soundmill generate`, sample the checkpoint")

    @property
    def items(self) -> int:
        return self.real_items + self.mixed_items

    @property
    def batch_size(self) -> int:
        """Clips in a batch of all devices."""
        return self.real_items * self.hardware.devices

    @property
    def guided_by_dropout(self) -> bool:
        return self.null_text == "zeros"  # the net has learned of `empty` from its encoder, as published

    def check_latents(self, shape: tuple[int, int, int]) -> None:
        halvings, (_, frames, bands) = len(self.network.widths) - 1, shape
        if any(side % 2**halvings for side in (frames, bands) if side > 1):  # a single band is not halved
            raise UserError(
                f"network.widths: latents of {frames} frames and {bands} bands cannot be halved {halvings} times; change "
                "latents.num_samples or the number of widths"
            )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self.sampling.check_steps(self.diffusion.num_timesteps)
        return self


FAMILY = Family(
    name="tango",
    title="text to sound: diffusion over latents of log-mels, conditioned on a frozen text encoder's states",
    paper=(
        "Ghosal, Majumder, Mehrish & Poria 2023, Text-to-audio generation using instruction-tuned LLM and latent diffusion model "
        "(arXiv:2304.13731)"
    ),
    train_params=TrainParams,
    commands=("generate", "restyle", "inpaint", "interpolate", "reconstruct"),
    published=True,
    weights="unet.safetensors",
    codec="vae",
    adapted=True,
    fixed=("network", "diffusion.objective", "diffusion.num_timesteps"),
)
