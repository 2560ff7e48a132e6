"""The family `ddpm_mel`: diffusion of mel-spectrogram pictures, unconditional, by label or by caption."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from soundmill.diffusion.params import DiffusionParams, SamplerParams
from soundmill.models.components.contracts import GriffinLimParams
from soundmill.models.components.dit.params import SizesParams
from soundmill.models.family import Family
from soundmill.models.params import BatchedTrainParams
from soundmill.params import Decibels, Probability, Seconds, Size, StageParams


class PictureParams(StageParams):
    """The mapping between log-mel spectrograms and the network's input.

    A mel value is relative to a level: `top_db` (10·log10 of the mel value, the same for every clip) or the clip's maximum, which
    is stored and drawn for a generated clip. `log` maps `range_db` below the level to −1 and the level to
    1; `power` maps q to 2·q^exponent − 1. `min_max` then stretches the picture so that its minimum is −1, which is
    not undone by decoding; `polarity: dark` flips its sign. The picture is resized to height × width, or padded if `fit` says so
    and it is at most a patch narrower, cut into patches that become channels, and standardised with constants of the training set
    that the checkpoint stores.
    """

    seconds: Seconds = Field(gt=0, le=3600, description="length of the sound in a picture; shorter clips are padded with silence")
    height: int = Field(ge=4, le=8192)
    width: int = Field(ge=4, le=8192)
    fit: Literal["resize", "pad"] = "resize"  # earlier checkpoints lack it
    level: Literal["absolute", "clip"]
    top_db: Decibels
    compression: Literal["log", "power"]
    range_db: Decibels = Field(gt=0, description="range of `log`")
    exponent: float = Field(gt=0, le=1, description="exponent of `power`, applied to mel values with the spec's power")
    min_max: bool = Field(description="with `level: clip`: stretch every picture to [−1, 1]")
    polarity: Literal["bright", "dark"] = Field(description="appearance of loud sound")
    patch: list[Size] = Field(min_length=2, max_length=2, description="rows, columns that become channels")
    patch_basis: Literal["pixels", "dct"] = Field(description="channels are a patch's pixels, or its cosine transform (JPEG's)")
    standardise: Literal["none", "global", "band", "channel"]
    whitening: Probability = Field(description="with `channel`: 1 gives every channel unit variance, 0 one factor to all")

    @model_validator(mode="after")
    def _patches_fit(self) -> Self:
        if self.height % self.patch[0] or self.width % self.patch[1]:
            raise ValueError(f"patch {self.patch} must divide the picture's height {self.height} and width {self.width}")
        if self.min_max and self.level != "clip":
            raise ValueError("min_max loses the level of a picture: use `level: clip`, which stores it")
        return self


class _NetworkParams(StageParams):
    widths: list[Size] = Field(min_length=2, description="channels of levels 0, 1, …, each half the size of the one before")
    attention_levels: list[int]
    heads: int = Field(ge=1)
    embedding_size: int = Field(ge=2, multiple_of=2)
    channels_last: bool = Field(description="memory layout")

    @property
    def halvings(self) -> int:
        """How often the net halves a picture."""
        return len(self.widths) - 1

    @model_validator(mode="after")
    def _levels_exist(self) -> Self:
        beyond = [level for level in self.attention_levels if not 0 <= level < len(self.widths)]
        if beyond:
            raise ValueError(f"attention_levels {beyond} do not exist: there are levels 0 to {len(self.widths) - 1}")
        odd = [width for width in self.widths if width % self.heads]
        if odd and (self.attention_levels or self.kind == "residual"):  # whose middle always attends
            raise ValueError(f"widths {odd} cannot be split among {self.heads} heads")
        return self


class UNetParams(_NetworkParams):
    """`UNet` of unet.py. Original sizes: widths 64, 128, 256, 256, attention 0–3, 4 heads, embedding 256."""

    kind: Literal["unet"]


class ResidualUNetParams(_NetworkParams):
    """A residual U-Net with adaptive norms and learned frequency and position embeddings (unet.py)."""

    kind: Literal["residual"]
    blocks: int = Field(ge=1, description="residual blocks per level")
    dropout: Probability
    gated: bool = Field(False, description="also predict a gain of each channel of the input")

    @model_validator(mode="after")
    def _groups_fit(self) -> Self:
        odd = [width for width in self.widths if width % 8]
        if odd:
            raise ValueError(f"widths {odd} must be multiples of 8")
        return self


class DiTParams(SizesParams):
    """A transformer over the columns of the picture (components/dit/network.py)."""

    kind: Literal["dit"]
    channels_last: ClassVar[bool] = False
    halvings: ClassVar[int] = 0


class PictureDiffusionParams(DiffusionParams):
    first_timestep: int = Field(ge=0, description="timesteps below are neither trained on nor sampled")
    errors_in: Literal["latent", "picture"] = Field(
        description="where errors are measured; `picture` gives outlines, which whitening attenuates, more weight than grain"
    )


class AugmentationParams(StageParams):
    time_roll: bool = Field(description="rotate every clip in time by a random amount")
    gain_db: Decibels = Field(ge=0, description="random gain within ± this")
    label_dropout: Probability = Field(description="share of items trained without their label, as guidance needs")


class SamplingParams(SamplerParams, GriffinLimParams):
    """From noise to sound."""

    vocoder: Literal["griffin_lim", "trained"] | None = Field(  # earlier checkpoints lack it
        None, description="trained: the one that the stage `vocoder` made; null: that one if the checkpoint has it"
    )
    guidance_interval: list[Probability] = Field(
        min_length=2, max_length=2, description="guide only at t/T within it (Kynkäänniemi et al. 2024)"
    )
    clip: float | None = Field(gt=0, description="clip every estimate of x0 to ± this; null: no clipping")
    rescale: bool = Field(description="silence what is below a sampled picture's mean, stretch the rest to its maximum")

    @model_validator(mode="after")
    def _interval_rises(self) -> Self:
        if self.guidance_interval[0] > self.guidance_interval[1]:
            raise ValueError(f"guidance_interval {self.guidance_interval} must rise")
        return self


class TrainParams(BatchedTrainParams):
    without: ClassVar = {"caption": "text_width to null"}
    dropout_key: ClassVar = "augmentation.label_dropout"

    conditional: bool = Field(description="by label, where the training clips have labels, or by caption")
    text_width: int | None = Field(  # earlier checkpoints lack it
        None, ge=1, description="by caption: width of the text encoder's states; null: by label"
    )
    picture: PictureParams
    network: UNetParams | ResidualUNetParams | DiTParams = Field(discriminator="kind")
    diffusion: PictureDiffusionParams
    augmentation: AugmentationParams
    sampling: SamplingParams = Field(description="how grids, and `soundmill generate`, sample the checkpoint")

    @property
    def by_label(self) -> bool:
        return self.conditional and self.text_width is None

    @property
    def by_caption(self) -> bool:
        return self.text_width is not None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.by_caption and not self.conditional:
            raise ValueError("text_width is for a conditional model; set it to null")
        times, picture = self.network.halvings, self.picture
        for side, size, patch in zip(("height", "width"), (picture.height, picture.width), picture.patch, strict=True):
            if size // patch % 2**times:
                raise ValueError(
                    f"picture.{side} / patch = {size // patch} must be a multiple of {2**times}: "
                    f"the network halves it {times} times"
                )
        if not self.diffusion.first_timestep < self.diffusion.num_timesteps:
            raise ValueError("diffusion.first_timestep must be below num_timesteps")
        self.sampling.check_steps(self.diffusion.num_timesteps - self.diffusion.first_timestep)
        return self


FAMILY = Family(
    name="ddpm_mel",
    title="diffusion on pictures of mel spectrograms, unconditional, by label or by caption; phases by Griffin-Lim",
    paper="Ho, Jain & Abbeel 2020, Denoising diffusion probabilistic models (arXiv:2006.11239)",
    train_params=TrainParams,
    commands=("generate", "restyle", "inpaint", "interpolate", "reconstruct"),
    fixed=("conditional", "text_width", "network", "picture", "diffusion.objective", "diffusion.num_timesteps"),
)
