"""RAVE (Caillon & Esling 2021, arXiv:2111.05011): a variational autoencoder of multiband waves that plays in real time."""

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from soundmill.models.components.contracts import WaveCodecParams, WaveCodecTrainingParams
from soundmill.params import Probability, Size, StageParams
from soundmill.training.params import OptimiserParams


class NoiseParams(StageParams):
    """The branch that adds filtered noise to the bands: in phase 2 only, unless it starts from principal components."""

    ratios: list[Size] = Field(
        min_length=1, description="strides of its layers; the filters change once per product of them, in band frames"
    )
    filters: int = Field(ge=2, description="number of gains per band, evenly spaced in frequency")


class NetworkParams(StageParams):
    """RAVE (Caillon & Esling 2021; v1: 64 channels, ratios 4, 4, 4, 2, latents 128) or its second version (v2: 96 channels)."""

    version: Literal["v1", "v2"]
    bands: int = Field(ge=2, multiple_of=2, description="number of PQMF bands, each at 1 / `bands` of the sample rate")
    channels: int = Field(ge=1, description="channels of the first level; doubled at each further level")
    ratios: list[Size] = Field(min_length=1, description="downsampling factor of each level")
    dilations: list[list[Size]] = Field(description="dilations of the residual units of each level; in v1 only in the decoder")
    latent_channels: int = Field(ge=1)
    noise: NoiseParams | None = Field(description="null: no noise branch")
    causal: bool = Field(description="no lookahead, which minimises the latency of streaming")
    pca: bool = Field(  # earlier checkpoints lack this key
        default=False,
        description="start from principal components of the gains that make noise as loud as the training clips in every part of "
        "the bands, and learn only what they lack",
    )

    @model_validator(mode="after")
    def _levels_fit(self) -> Self:
        if len(self.dilations) != len(self.ratios):
            raise ValueError(f"dilations {self.dilations} must be one list for each of ratios {self.ratios}")
        if min(self.ratios) < 2:
            raise ValueError(f"ratios {self.ratios} must be 2 or more")
        if self.noise and math.prod(self.ratios) % (frames := math.prod(self.noise.ratios)):
            raise ValueError(
                f"noise.ratios {self.noise.ratios} multiply to {frames}, which does not divide the {math.prod(self.ratios)} "
                "frames of a latent"
            )
        if self.pca and not self.noise:
            raise ValueError("pca needs noise, whose gains it starts from")
        if self.pca and self.noise.filters > (bins := math.prod(self.noise.ratios) // 2 + 1):
            raise ValueError(
                f"noise.filters {self.noise.filters}: with pca at most {bins}, the frequencies in a frame of "
                f"{math.prod(self.noise.ratios)}; more would be empty"
            )
        if self.pca and self.latent_channels > (levels := self.levels_per_latent):
            raise ValueError(f"latent_channels {self.latent_channels}: with pca at most {levels}, the number of gains in a latent")
        return self

    @property
    def levels_per_latent(self) -> int:
        """Number of gains of the noise branch in the time of a latent."""
        return self.bands * self.noise.filters * math.prod(self.ratios) // math.prod(self.noise.ratios)

    @property
    def samples_per_latent(self) -> int:
        return self.bands * math.prod(self.ratios)


class DiscriminatorsParams(StageParams):
    """The discriminators of phase 2: of waves at `scales` rates, and (v2) of every `period`-th sample."""

    channels: int = Field(ge=1, description="channels of the first layer, 64 in the paper; doubled at each further one")
    layers: int = Field(ge=1)
    scales: int = Field(ge=1, description="number of scale discriminators, each at half the rate of the one before")
    periods: list[Size] = Field(description="2, 3, 5, 7, 11 in v2; [] in v1")
    optimiser: OptimiserParams


class KlParams(StageParams):
    """Weight of the KL divergence: from `first` to `last` over `steps`, linear in its logarithm, then constant."""

    first: float = Field(gt=0)
    last: float = Field(gt=0)
    steps: int = Field(ge=0, le=100_000_000)

    def weight(self, step: int) -> float:
        done = 1.0 if self.steps == 0 else min(1.0, step / self.steps)
        return self.first ** (1 - done) * self.last**done


class FeaturesParams(StageParams):
    """Feature matching in phase 2."""

    weight: float = Field(ge=0, description="applied once; the authors' code applies it twice")
    relative: bool = Field(description="divide by the mean absolute value of the real maps (v2)")
    skip: int = Field(ge=0, description="number of first maps to skip (v2: 1); the last map is the scores")


class AugmentationParams(StageParams):
    """Augmentation of training crops; held-out crops are not augmented."""

    phase_mangle: Probability = Field(description="share of crops whose phases an all-pass filter changes; 0.8 as published")
    dequantise_bits: int | None = Field(ge=1, description="add uniform noise in [0, 2^-bits); 16 as published; null: none")


class WeightsParams(WaveCodecTrainingParams):
    """Train the codec on the training clips: representation learning, then (encoder frozen) adversarial training.

    `steps` are those of both phases together.
    """

    phase_1_steps: int = Field(ge=1, le=100_000_000, description="steps before phase 2; equal to `steps`: no phase 2")
    scales: list[Size] = Field(
        min_length=1, description="window lengths of the spectral distance, in samples of the wave and of the bands"
    )
    log_epsilon: float = Field(
        gt=0, description="added to the magnitudes whose logarithms the spectral distance compares; 1e-7 as published"
    )
    valid_signal_crop: bool = Field(description="exclude the ends, which padding affects, from the bands' distance (v2)")
    augmentation: AugmentationParams
    kl: KlParams
    features: FeaturesParams
    discriminators: DiscriminatorsParams
    discriminator_every: int = Field(
        ge=2, description="in phase 2 every n-th batch trains the discriminators, the others the generator"
    )


class RaveParams(WaveCodecParams):
    kind: Literal["rave"]
    network: NetworkParams
    fidelity: Probability = Field(gt=0, description="share of the latents' variance to keep; sets the number of latents")
    weights: WeightsParams

    @property
    def fixed(self) -> tuple[str, ...]:
        """Of a codec that is taken as it is also `fidelity`, which its rank follows from."""
        return ("network",) if self.weights.steps else ("network", "fidelity")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        weights = self.weights
        if unfit := [scale for scale in weights.scales if scale < 8 or scale % 4 or scale > weights.num_samples]:
            raise ValueError(f"weights.scales {unfit} must be multiples of 4 from 8 to num_samples {weights.num_samples}")
        if min(weights.scales) > (crop := weights.num_samples // self.network.bands):
            raise ValueError(f"weights.scales {weights.scales}: at least one must fit into a band's crop, which has {crop} samples")
        if weights.phase_1_steps > weights.steps > 0:
            raise ValueError(f"weights.phase_1_steps {weights.phase_1_steps} must not exceed weights.steps {weights.steps}")
        if weights.features.skip > (layers := weights.discriminators.layers):
            raise ValueError(
                f"weights.features.skip {weights.features.skip} leaves none of a discriminator's {layers + 1} maps "
                "(weights.discriminators.layers, and the scores)"
            )
        if weights.phase_1_steps < weights.steps and weights.optimiser.decay in ("linear", "cosine"):
            raise ValueError(
                f"weights.optimiser.decay {weights.optimiser.decay} reaches zero at the end of phase 1, so phase 2 would learn "
                "nothing; use none, exponential or tenth"
            )
        if weights.ema is not None:
            raise ValueError("weights.ema must be null: an average would keep changing the encoder after phase 1")
        return self
