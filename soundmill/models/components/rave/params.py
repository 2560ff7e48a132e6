"""Knobs of RAVE."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from soundmill.audio.mel import MelSpec
from soundmill.params import Probability, StageParams
from soundmill.training.params import HardwareParams, OptimiserParams, TrainingParams


class NoiseParams(StageParams):
    """The branch that adds filtered noise to the bands; it speaks in phase 2 alone."""

    ratios: list[int] = Field(min_length=1, description="its filters change once in so many frames of the bands, multiplied")
    filters: int = Field(ge=2, description="gains that each band's noise is shaped by, evenly spaced over the band")


class NetworkParams(StageParams):
    """RAVE (Caillon & Esling 2021; v1: 64 channels, ratios 4, 4, 4, 2, latents 128) or its second version (v2: 96 channels)."""

    version: Literal["v1", "v2"]
    bands: int = Field(ge=2, multiple_of=2, description="that the PQMF makes of a wave, each at a `bands`-th of its rate")
    channels: int = Field(ge=1, description="of the first level; each of `ratios` doubles them")
    ratios: list[int] = Field(min_length=1, description="by which each level is shorter than the one before")
    dilations: list[list[int]] = Field(description="of the residual units of each level; v1 has them in its decoder alone")
    latent_channels: int = Field(ge=1)
    noise: NoiseParams | None = Field(description="null: no such branch")
    causal: bool = Field(description="no layer looks ahead: the least latency when it is played live")

    @model_validator(mode="after")
    def _levels_fit(self) -> NetworkParams:
        if len(self.dilations) != len(self.ratios):
            raise ValueError(f"dilations {self.dilations} must be one list for each of ratios {self.ratios}")
        if min(self.ratios) < 2:
            raise ValueError(f"ratios {self.ratios} must be 2 or more")
        if any(dilation < 1 for of_level in self.dilations for dilation in of_level):
            raise ValueError(f"dilations {self.dilations} must be 1 or more")
        if self.noise and math.prod(self.ratios) % (frames := math.prod(self.noise.ratios)):
            raise ValueError(
                f"noise.ratios {self.noise.ratios} make frames of {frames}, no part of the {math.prod(self.ratios)} of a latent"
            )
        return self

    @property
    def samples_per_latent(self) -> int:
        return self.bands * math.prod(self.ratios)


class DiscriminatorsParams(StageParams):
    """What phase 2 is trained against: waves at `scales` rates, and (v2) rows of every `period`-th sample."""

    channels: int = Field(ge=1, description="of the first layer; each further one doubles them. 64 in the paper")
    layers: int = Field(ge=1)
    scales: int = Field(ge=1, description="each sees the wave at half the rate of the one before")
    periods: list[int] = Field(description="2, 3, 5, 7, 11 in v2; [] in v1")
    optimiser: OptimiserParams


class KlParams(StageParams):
    """Weight of the KL divergence: from `first` to `last` over `steps`, evenly in its logarithm; then it stays."""

    first: float = Field(gt=0)
    last: float = Field(gt=0)
    steps: int = Field(ge=0)

    def weight(self, step: int) -> float:
        done = 1.0 if self.steps == 0 else min(1.0, step / self.steps)
        return self.first ** (1 - done) * self.last**done


class FeaturesParams(StageParams):
    """The difference of the discriminators' feature maps, in phase 2."""

    weight: float = Field(ge=0, description="used once; the code of its authors multiplies with it twice")
    relative: bool = Field(description="to the mean size of the real ones (v2)")
    skip: int = Field(ge=0, description="first maps that do not count (v2: 1); the last is that of the scores")


class AugmentationParams(StageParams):
    """What happens to training crops; held-out ones stay as they are."""

    phase_mangle: Probability = Field(description="share of crops whose phases an all-pass filter turns; 0.8 as published")
    dequantise_bits: int | None = Field(ge=1, description="noise even in [0, 2^-bits) is added; 16 as published; null: none")


class WeightsParams(TrainingParams):
    """The codec is trained on the corpus's training clips: representation, then (encoder frozen) against discriminators."""

    kind: Literal["train"]
    batch_size: int = Field(ge=1)
    steps: int = Field(ge=1, description="of both phases")
    phase_1_steps: int = Field(ge=1, description="phase 2 begins after so many; as many as `steps`: there is none")
    num_samples: int = Field(ge=1, description="of a crop of each clip; a shorter one is followed by silence")
    scales: list[int] = Field(min_length=1, description="windows of the spectral distance, in samples of the wave and of the bands")
    valid_signal_crop: bool = Field(description="the bands' distance leaves out the ends, where padding is heard (v2)")
    augmentation: AugmentationParams
    kl: KlParams
    features: FeaturesParams
    discriminators: DiscriminatorsParams
    discriminator_every: int = Field(ge=2, description="in phase 2 each so-manieth batch is theirs, and not the generator's")


class RaveParams(StageParams):
    kind: Literal["rave"]
    network: NetworkParams
    fidelity: Probability = Field(gt=0, description="share of the latents' variance that is kept: it chooses their number")
    weights: WeightsParams
    hardware: HardwareParams

    def latent_shape(self, spec: MelSpec, num_samples: int) -> tuple[int, int, int]:
        """(channels, frames, bands) of the latent of so many samples, none of them left out."""
        return self.network.latent_channels, num_samples // self.network.samples_per_latent, 1

    @model_validator(mode="after")
    def _consistent(self) -> RaveParams:
        weights, stride = self.weights, self.network.samples_per_latent
        if weights.num_samples % stride:
            raise ValueError(f"weights.num_samples {weights.num_samples} must be a multiple of {stride}, the samples of a latent")
        if unfit := [scale for scale in weights.scales if scale < 8 or scale % 4 or scale > weights.num_samples]:
            raise ValueError(f"weights.scales {unfit} must be multiples of 4 from 8 to num_samples {weights.num_samples}")
        if min(weights.scales) > (crop := weights.num_samples // self.network.bands):
            raise ValueError(f"weights.scales {weights.scales}: at least one must fit into a band's crop, which has {crop} samples")
        if weights.phase_1_steps > weights.steps:
            raise ValueError(f"weights.phase_1_steps {weights.phase_1_steps} must not exceed weights.steps {weights.steps}")
        if weights.features.skip > (layers := weights.discriminators.layers):
            raise ValueError(
                f"weights.features.skip {weights.features.skip} leaves nothing of a discriminator's {layers + 1} maps "
                "(weights.discriminators.layers, and the scores)"
            )
        if weights.phase_1_steps < weights.steps and weights.optimiser.decay in ("linear", "cosine"):
            raise ValueError(
                f"weights.optimiser.decay {weights.optimiser.decay} is at zero when phase 1 ends: in phase 2 nothing would be "
                "learned; take none, exponential or tenth"
            )
        if weights.ema is not None:
            raise ValueError("weights.ema must be null: an average would go on moving the encoder after phase 1")
        if weights.batch_size % self.hardware.devices:
            raise ValueError(f"weights.batch_size {weights.batch_size} must be a multiple of hardware.devices")
        return self
