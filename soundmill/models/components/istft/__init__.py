"""A vocoder: a ConvNeXt at frame rate and an inverse STFT (Vocos, Siuzdak 2024, arXiv:2306.00814), trained or loaded."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from soundmill.audio.mel import MelSpec
from soundmill.errors import UserError
from soundmill.models.components.contracts import AdversaryParams, CropsParams, LoadedParams, NetVocoderParams
from soundmill.params import StageParams


class NetworkParams(StageParams):
    """A ConvNeXt at frame rate (Vocos: 8 layers of width 512, 1,536 hidden)."""

    head: Literal["magnitude", "wave"] = Field(
        description="magnitude: median and spread of magnitudes, phases by Griffin-Lim; wave: magnitudes and phases, as in Vocos"
    )
    layers: int = Field(ge=1)
    width: int = Field(ge=1, description="channels")
    hidden: int = Field(ge=1, description="channels within a block")

    @property
    def context(self) -> int:
        """Frames on either side in the net's receptive field."""
        return 3 * (1 + self.layers)


class SamplingParams(StageParams):
    """How median and spread of magnitudes become sound."""

    iterations: int = Field(ge=1, le=10_000, description="iterations of Griffin-Lim")
    momentum: float = Field(ge=0, lt=1)
    grain: float = Field(ge=0, description="factor on the spread with which magnitudes are drawn; 0: they are the medians")


class LikelihoodParams(CropsParams):
    def check_crop(self, spec: MelSpec) -> None:
        """UserError if the windows of all frames of a crop reach beyond it."""
        if self.crop_frames <= 2 * edge(spec):
            raise UserError(
                f"vocoder.weights.crop_frames {self.crop_frames} must be more than {2 * edge(spec)}: so many frames of "
                f"{spec.hop_length} samples lose part of their window of n_fft {spec.n_fft} at the ends of a crop"
            )


def edge(spec: MelSpec) -> int:
    """Number of frames at either end of a crop whose windows reach beyond it."""
    return -(-(spec.n_fft // 2) // spec.hop_length)


def _training(weights: Any) -> str:
    values = weights if isinstance(weights, dict) else weights.model_dump()
    if values.get("kind") == "load":
        return "load"
    return "adversary" if "discriminator_width" in values else "likelihood"


class IstftParams(NetVocoderParams):
    kind: Literal["istft"]
    network: NetworkParams = Field(description="a loaded net must have these sizes, too")
    weights: Annotated[
        Annotated[LikelihoodParams, Tag("likelihood")]
        | Annotated[AdversaryParams, Tag("adversary")]
        | Annotated[LoadedParams, Tag("load")],
        Discriminator(_training),
    ]
    sampling: SamplingParams | None = Field(description="for the head `magnitude`; null for the head `wave`, which draws nothing")

    @model_validator(mode="after")
    def _head_fits(self) -> Self:
        of_magnitudes = self.network.head == "magnitude"
        if of_magnitudes == (_training(self.weights) != "likelihood"):
            needed = "no discriminators, and none is loaded" if of_magnitudes else "discriminators, or is loaded"
            raise ValueError(f"network.head {self.network.head!r} is trained with {needed}: see conf/vocoder/")
        if of_magnitudes == (self.sampling is None):
            raise ValueError(f"network.head {self.network.head!r} {'needs' if of_magnitudes else 'has no'} sampling")
        return self
