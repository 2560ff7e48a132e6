"""Parameters common to trained vocoders."""

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from soundmill.audio.mel import MelSpec, check_overlap
from soundmill.errors import UserError
from soundmill.models.components.contracts import ComponentParams
from soundmill.models.components.griffin_lim.params import GriffinLimParams
from soundmill.training.params import TrainingParams


class CropsParams(TrainingParams):
    """Train the vocoder on the training clips."""

    kind: Literal["train"]
    batch_size: int = Field(ge=1, le=65_536)
    steps: int = Field(ge=1, le=100_000_000)
    crop_frames: int = Field(ge=1, description="length of a crop of each clip; shorter clips are padded with silence")

    def check_crop(self, spec: MelSpec) -> None:
        """UserError if a crop is too short for log-mels of `spec`."""


class AdversaryParams(CropsParams):
    """Train the vocoder on the training clips, against discriminators."""

    discriminator_width: int = Field(ge=4, multiple_of=4, description="32 in HiFi-GAN's paper")
    feature_weight: float = Field(ge=0, description="weight of the feature matching loss; MelGAN's paper: 10")
    mel_weight: float = Field(ge=0, description="weight of the log-mel loss; MelGAN's paper: 0")

    def check_crop(self, spec: MelSpec) -> None:
        """UserError if a crop is shorter than the reflection padding of the centred transform."""
        if self.crop_frames * spec.hop_length <= spec.n_fft // 2:
            raise UserError(
                f"vocoder.weights.crop_frames {self.crop_frames} of {spec.hop_length} samples must be more than half of n_fft "
                f"{spec.n_fft}"
            )


class NetVocoderParams(GriffinLimParams, ComponentParams):
    """`griffin_lim_iterations` and `griffin_lim_momentum` configure Griffin-Lim as the baseline of the vocoder's error."""

    def check_spec(self, spec: MelSpec) -> None:
        """UserError if this vocoder cannot be made for log-mels of `spec`, or not be compared with Griffin-Lim."""
        check_overlap(spec)
        if self.weights.kind == "train":
            self.weights.check_crop(spec)


def check_hop(rates: Sequence[int], spec: MelSpec) -> None:
    """UserError if the product of a network's rates differs from the spec's hop length."""
    product = math.prod(rates)
    if product != spec.hop_length:
        raise UserError(
            f"vocoder.network.rates {rates} multiply to {product} samples per frame, but hop_length of its spectrogram is "
            f"{spec.hop_length}; make them agree"
        )
