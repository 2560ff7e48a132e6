"""Parameters common to all families; each family adds its own."""

from abc import abstractmethod
from operator import attrgetter
from typing import Any, ClassVar, Literal, Self, TypeVar

from pydantic import Field, model_validator

from soundmill.audio.mel import MelSpec
from soundmill.errors import UserError
from soundmill.params import Seed, StageParams, changed, parse_section, section
from soundmill.training.params import HardwareParams, LoraParams, Precision, TrainingParams, Use, check_precision

T = TypeVar("T", bound="FamilyTrainParams")
G = TypeVar("G", bound="FamilyGenerateParams")


class GridParams(StageParams):
    """Size of the grid of samples that training draws at its end and, for tracking, while it runs."""

    columns: int = Field(ge=1)
    rows: int = Field(ge=1)


class FamilyTrainParams(TrainingParams):
    steps: int | None = Field(ge=1, le=100_000_000, description="length of the training; null: `epochs` decides")
    epochs: int | None = Field(ge=1, le=1_000_000, description="length in passes over the training clips; null: `steps` decides")
    hardware: HardwareParams
    grid: GridParams
    # The defaults are for earlier checkpoints, which lack these keys.
    score_every_steps: int | None = Field(
        None, ge=1, description="steps between scores of sounds for validation clips by the tagger, and after the last; null: never"
    )
    score_requests: int = Field(24, ge=2, description="sounds each time; they take as long as in the stage `generate`")
    score_share: float | None = Field(
        None, gt=0, lt=1, description="scores come less often if they would be more of the training's operations; null: no limit"
    )
    patience: int | None = Field(
        None, ge=1, description="held-out losses in a row that are not the lowest, after which the training ends; null: all steps"
    )
    lora: LoraParams | None = Field(
        None, description="train adapters of the weights of `start_from` instead of these weights; null: train the weights"
    )

    @property
    @abstractmethod
    def items(self) -> int:
        """Items per batch."""

    text_key: ClassVar[str] = "text_width"  # parameter that is the width of the text encoder's states
    without: ClassVar[dict[str, str]] = {}  # parameter and value that train without a `label` or `caption`, where there must be one

    dropout_key: ClassVar[str | None] = None  # parameter that is the share of items trained without conditions

    by_label: ClassVar[bool] = False  # whether the net is told labels
    by_caption: ClassVar[bool] = False  # whether it is told captions, so that the family's section of `text` must name an encoder

    def check_spec(self, spec: MelSpec | None, rate: int, clips: str) -> None:
        """UserError if these parameters do not fit `spec`, the family's spectrogram, if it has one; or a spec of their own does not
        fit `clips` of this sample rate."""

    def check_latents(self, shape: tuple[int, int, int]) -> None:
        """UserError if the network does not take latents of (channels, frames, bands)."""

    @property
    def guided_by_dropout(self) -> bool:
        """Whether guidance compares with what the net learns of items without conditions."""
        return self.by_label or self.by_caption

    @model_validator(mode="after")
    def _of_any_family(self) -> Self:
        key = self.dropout_key
        if key and self.guided_by_dropout and attrgetter(key)(self) == 0 and self.sampling.guidance_scale != 1:
            raise ValueError(f"sampling.guidance_scale needs a network trained without conditions too: raise {key}, or set it to 1")
        if self.lora and not self.start_from:
            raise ValueError("lora needs a base: set start_from to its checkpoint")
        if self.patience and self.validate_every_steps is None:
            raise ValueError("patience needs held-out losses: set validate_every_steps")
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("set one of steps and epochs, and set the other to null")
        return self


class BatchedTrainParams(FamilyTrainParams):
    """Of families whose devices share a batch."""

    batch_size: int = Field(ge=1, le=65_536, description="clips in a batch of all devices")

    @model_validator(mode="after")
    def _shared_among_devices(self) -> Self:
        if self.batch_size % self.hardware.devices:
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of hardware.devices {self.hardware.devices}")
        return self

    @property
    def items(self) -> int:
        return self.batch_size


class ConditionedTrainParams(BatchedTrainParams):
    """Of families that are told what their `condition` names."""

    without: ClassVar[dict[str, str]] = {"label": "condition to `none` or `caption`", "caption": "condition to `none` or `label`"}

    condition: Literal["none", "label", "caption"]

    @property
    def by_label(self) -> bool:
        return "label" in self.condition

    @property
    def by_caption(self) -> bool:
        return "caption" in self.condition


class VectorTrainParams(ConditionedTrainParams):
    """Of families whose net is told a vector for each item: label weights, or that of a caption."""

    text_width: int | None = Field(  # earlier checkpoints lack it
        None, ge=1, description="width of the text encoder's states, for `condition: caption`"
    )

    @model_validator(mode="after")
    def _captions_have_a_width(self) -> Self:
        if self.by_caption != (self.text_width is not None):
            raise ValueError("text_width is for condition `caption`, which needs it: set both, or text_width to null")
        return self


class FamilyGenerateParams(StageParams):
    transfers: ClassVar[int] = 0  # clips excluded by `catalog.only` to transform for the report, if the family transforms

    seed: Seed
    use: Use = Field(
        description="weights of the checkpoint: the last, those with the lowest held-out loss or FAD, or those of a kept step"
    )
    count: int | None = Field(ge=1, description="number of test clips to generate for; null: all")
    batch_size: int = Field(ge=1, le=65_536)
    accelerator: Literal["cpu", "gpu", "auto"]
    precision: Precision = Field(description="fp16 needs a GPU; bf16 becomes 32 on a CPU without bf16 instructions")
    threads: int = Field(ge=1)
    codec_count: int | None = Field(ge=1, description="number of real clips that the codec reconstructs; null: all")
    codec_split: Literal["train", "valid", "test"]
    sampling: dict[str, Any] | None = Field(description="changes to `train.sampling` of the checkpoint, by key; null: none")

    @model_validator(mode="after")
    def _precision_fits(self) -> Self:
        check_precision(self)
        return self

    def sampling_of(self, train: FamilyTrainParams, family: str) -> Any:
        """The sampling of a model with these training parameters, changed; UserError that names a key that is wrong or unfit."""
        return changed(train, {"sampling": self.sampling or {}}, f"params.yaml: {family}.generate").sampling


def read_sections(
    document: dict[str, Any], family: str, train: type[T], generate: type[G] = FamilyGenerateParams
) -> tuple[T, G, Any]:
    """A family's sections `train` and `generate` of the content of a params.yaml, and the sampling that they say together."""
    trained = parse_section(document, f"{family}.train", train)
    chosen = parse_section(document, f"{family}.generate", generate)
    try:
        trained.check_use(chosen.use, trained.steps, trained.keep_every_steps)
    except ValueError as error:
        raise UserError(f"params.yaml: {family}.generate: {error}") from None
    return trained, chosen, chosen.sampling_of(trained, family)


def read_clip_plan(document: dict[str, Any], family: str) -> dict[str, Any]:
    """How the clips of a family are cut, by the content of a params.yaml."""
    return plan_of(document, document["families"][family]["clips"])


def plan_of(document: dict[str, Any], variant: str) -> dict[str, Any]:
    """How the clips of a variant are cut, or those that it also has mixes of."""
    clips = document.get("mixed", {}).get(variant, {}).get("clips", variant)
    return section(document, f"clips.{clips}", "params.yaml")
