"""The mel autoencoder: diffusers' AutoencoderKL on log-mels (Rombach et al. 2022; as in AudioLDM)."""

from typing import Literal, Self

from pydantic import Field, model_validator

from soundmill.audio.mel import MelSpec
from soundmill.errors import UserError
from soundmill.models.components.contracts import CodecTrainingParams, ComponentParams, LoadedParams
from soundmill.params import Probability, Size, StageParams


class AutoencoderNetParams(StageParams):
    """The mel autoencoder: len(widths) − 1 halvings of both axes (AudioLDM's: 128, 256, 512, two blocks, z 8)."""

    widths: list[Size] = Field(min_length=2, description="channels of levels 0, 1, …")
    blocks: int = Field(ge=1, description="residual blocks per level")
    latent_channels: int = Field(ge=1)
    groups: int = Field(ge=1, description="groups of the group norms; must divide every width")
    pca: bool = Field(  # earlier checkpoints lack this key
        default=False,
        description="start from the principal components of the training clips' patches and learn only what they lack",
    )

    @model_validator(mode="after")
    def _groups_fit(self) -> Self:
        odd = [width for width in self.widths if width % self.groups]
        if odd:
            raise ValueError(f"widths {odd} cannot be split into {self.groups} groups")
        if self.pca and self.latent_channels > self.factor**2:
            raise ValueError(f"latent_channels {self.latent_channels}: with pca at most {self.factor**2}, the numbers of a patch")
        return self

    @property
    def factor(self) -> int:
        """Downsampling factor of both axes of a log-mel."""
        return 2 ** (len(self.widths) - 1)

    def check_spec(self, spec: MelSpec) -> None:
        """UserError if the spec's bands cannot be halved as often as the network does."""
        if spec.n_mels % self.factor:
            raise UserError(
                f"mel spec: n_mels {spec.n_mels} must be a multiple of {self.factor}: the autoencoder halves it "
                f"{len(self.widths) - 1} times"
            )


class TrainedParams(CodecTrainingParams):
    """Train the autoencoder on the training clips."""

    whitening: Probability = Field(
        description="with network.pca: 1 gives each principal component unit variance, 0 all of them together"
    )
    crop_frames: int = Field(ge=1, description="length of a crop of each clip; shorter clips are padded with silence")
    kl_weight: float = Field(
        ge=0, description="weight of the KL divergence per latent value; errors are in standard deviations of the log-mels"
    )


class AutoencoderParams(ComponentParams):
    kind: Literal["mel_autoencoder"]
    network: AutoencoderNetParams = Field(description="loaded weights must have the same architecture")
    weights: TrainedParams | LoadedParams = Field(discriminator="kind")

    def check_spec(self, spec: MelSpec) -> None:
        self.network.check_spec(spec)

    def latent_shape(self, spec: MelSpec, num_samples: int) -> tuple[int, int, int]:
        """Shape (channels, frames, bands) of the latent of `num_samples`."""
        factor = self.network.factor
        return self.network.latent_channels, num_samples // spec.hop_length // factor, spec.n_mels // factor

    def stride(self, spec: MelSpec) -> int:
        """Samples that lengths of waves must be multiples of."""
        return spec.hop_length * self.network.factor

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        weights, factor = self.weights, self.network.factor
        if weights.kind == "load" and self.network.pca:
            raise ValueError("network.pca must be false for loaded weights, which have no principal components")
        if weights.kind == "train" and weights.crop_frames % factor:
            raise ValueError(f"weights.crop_frames {weights.crop_frames} must be a multiple of {factor}, 2^(levels − 1)")
        return self
