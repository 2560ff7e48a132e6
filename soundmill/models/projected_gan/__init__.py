"""The family `projected_gan`: one-bar loops by a GAN on mel pictures, with discriminators on frozen features."""

from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from soundmill.audio.mel import MelSpec
from soundmill.errors import UserError
from soundmill.models.components.contracts import GriffinLimParams
from soundmill.models.family import Family
from soundmill.models.params import BatchedTrainParams
from soundmill.params import Probability, Size, StageParams
from soundmill.training.params import OptimiserParams

ProjectorName = Literal["vggish", "short_chunk", "tagger", "random", "none"]
SCALES = 4  # of feature maps, each half the size of the one before, with a discriminator each


class GeneratorParams(StageParams):
    """StyleGAN2 on pictures of mels; its initial picture is rows (time) × columns (mels), and each stage doubles both."""

    z_width: int = Field(ge=1)
    w_width: int = Field(ge=1)
    mapping_layers: int = Field(ge=1)
    channels: int = Field(ge=1)
    rows: int = Field(ge=1)
    columns: int = Field(ge=1)
    stages: int = Field(ge=1)
    style_mixing: Probability = Field(description="share of items whose later layers use a second style")

    @property
    def frames(self) -> int:
        return self.rows * 2**self.stages

    @property
    def bands(self) -> int:
        return self.columns * 2**self.stages


class DiscriminatorParams(StageParams):
    projectors: list[ProjectorName] = Field(
        min_length=1, max_length=2, description="networks whose frozen features the discriminators use; the logits of two are added"
    )
    short_chunk: str | None = Field(  # earlier checkpoints lack it
        None, min_length=1, description="file of pjloop-gan's loop-genre classifier, for the projector of this name"
    )
    missing: Literal["random", "fail"] = Field(description="if a projector's weights are unavailable: use random weights, or fail")
    random_widths: list[Size] = Field(min_length=SCALES, max_length=SCALES, description="channels of the maps of `random`")
    mixed_widths: list[Size] = Field(
        min_length=SCALES,
        max_length=SCALES,
        description="channels of the mixed feature maps, finest first, and of the discriminators' blocks",
    )
    optimiser: OptimiserParams

    @field_validator("projectors")
    @classmethod
    def _sensible(cls, names: list[str]) -> list[str]:
        if len(set(names)) < len(names):
            raise ValueError("a projector is named twice")
        if "none" in names and len(names) > 1:
            raise ValueError("`none` cannot be combined: its discriminators use the pictures themselves")
        return names


class SamplingParams(GriffinLimParams):
    """From latents to sound."""

    psi: float = Field(
        ge=0, le=2, description="truncation: 1 is none, smaller values are closer to the mean style, 0 is the mean style"
    )


class TrainParams(BatchedTrainParams):
    without: ClassVar = {"label": "conditional to false"}

    conditional: bool = Field(description="by label, where the training clips have labels")
    fit: Literal["cut", "resize"] = Field(
        description="if a clip has more frames than the picture: cut its end (decoded as silence), or resize it"
    )
    generator: GeneratorParams
    discriminators: DiscriminatorParams
    sampling: SamplingParams = Field(description="how the grid, and `soundmill generate`, sample the checkpoint")

    @property
    def by_label(self) -> bool:
        return self.conditional

    def check_spec(self, spec: MelSpec | None, rate: int, clips: str) -> None:
        if spec and self.generator.bands != spec.n_mels:
            raise UserError(
                f"projected_gan.train.generator has {self.generator.bands} mels, but spectrogram.projected_gan.n_mels is "
                f"{spec.n_mels}; make them agree"
            )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        frames, bands = self.generator.frames, self.generator.bands
        if frames % 32 or frames < 128 or bands % 16 or bands < 32:
            raise ValueError(
                f"the generator makes {frames} frames of {bands} mels; discriminators need a multiple of 32 frames, at least "
                "128, and a multiple of 16 mels, at least 32"
            )
        return self


FAMILY = Family(
    name="projected_gan",
    title="one-bar loops: a StyleGAN2 on mel pictures, its discriminators on frozen features; unconditional or by label",
    paper="Sauer, Chitta, Müller & Geiger 2021, Projected GANs converge faster (arXiv:2111.01007), on loops as pjloop-gan",
    train_params=TrainParams,
    commands=("generate", "interpolate", "reconstruct"),
    part="generator",
    fixed=("conditional", "fit", "generator"),
    tagger=True,
    loops=True,
)
