"""Every knob of the family; the checkpoint carries the training's, so that nothing needs params.yaml later."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from soundmill.diffusion.params import DiffusionParams, SamplerParams
from soundmill.models.params import FamilyGenerateParams, FamilyTrainParams, GridParams, GriffinLimParams
from soundmill.params import Probability, StageParams
from soundmill.training.params import HardwareParams, TrainingParams


class AutoencoderNetParams(StageParams):
    """The mel autoencoder: len(widths) − 1 halvings of both axes (AudioLDM's: 128, 256, 512, two blocks, z 8)."""

    widths: list[int] = Field(min_length=2, description="channels of levels 0, 1, …")
    blocks: int = Field(ge=1, description="residual blocks per level")
    latent_channels: int = Field(ge=1)
    groups: int = Field(ge=1, description="of the group norms; must divide every width")

    @model_validator(mode="after")
    def _groups_fit(self) -> AutoencoderNetParams:
        odd = [width for width in self.widths if width < 1 or width % self.groups]
        if odd:
            raise ValueError(f"widths {odd} cannot be split into {self.groups} groups")
        return self

    @property
    def factor(self) -> int:
        """By which both axes of a log-mel shrink."""
        return 2 ** (len(self.widths) - 1)


class VocoderNetParams(StageParams):
    """HiFi-GAN (Kong et al. 2020): the product of `rates` is the hop."""

    channels: int = Field(ge=2, description="at the rate of frames; each of `rates` halves them")
    rates: list[int] = Field(min_length=1)
    kernels: list[int]
    resblock_kernels: list[int] = Field(min_length=1)
    resblock_dilations: list[list[int]]

    @model_validator(mode="after")
    def _lists_fit(self) -> VocoderNetParams:
        if len(self.kernels) != len(self.rates):
            raise ValueError(f"kernels {self.kernels} must be one for each of rates {self.rates}")
        if any(kernel < rate or rate < 1 for kernel, rate in zip(self.kernels, self.rates, strict=True)):
            raise ValueError(f"no kernel of {self.kernels} may be shorter than its rate of {self.rates}: it would leave gaps")
        if self.channels % 2 ** len(self.rates):
            raise ValueError(f"channels {self.channels} cannot be halved {len(self.rates)} times")
        if len(self.resblock_dilations) != len(self.resblock_kernels):
            raise ValueError(f"resblock_dilations {self.resblock_dilations} must be one list for each of {self.resblock_kernels}")
        return self


class TrainedParams(TrainingParams):
    """The autoencoder is trained on the corpus's training clips."""

    kind: Literal["train"]
    batch_size: int = Field(ge=1)
    steps: int = Field(ge=1)
    crop_frames: int = Field(ge=1, description="of each clip, seen in one step; a shorter one is followed by silence")
    kl_weight: float = Field(ge=0, description="of the KL divergence per latent value; errors count in deviations of the corpus")


class LoadedParams(StageParams):
    """Weights that others trained, in AudioLDM's layout: the autoencoder in `vae/`, the vocoder in `vocoder/`, as safetensors."""

    kind: Literal["load"]
    name: str = Field(min_length=1, description="id on the Hugging Face hub, or a directory")
    revision: str | None = Field(description="of the hub: the commit, 40 hex digits")


class AutoencoderParams(StageParams):
    network: AutoencoderNetParams = Field(description="of a loaded one as well: it must be so")
    weights: TrainedParams | LoadedParams = Field(discriminator="kind")
    hardware: HardwareParams

    @model_validator(mode="after")
    def _consistent(self) -> AutoencoderParams:
        weights = self.weights
        if weights.kind == "load":
            if self.hardware.devices != 1:
                raise ValueError("hardware.devices must be 1 for weights that are loaded")
            return self
        if weights.crop_frames % self.network.factor:
            raise ValueError(
                f"weights.crop_frames {weights.crop_frames} must be a multiple of {self.network.factor}, 2^(levels − 1)"
            )
        if weights.batch_size % self.hardware.devices:
            raise ValueError(f"weights.batch_size {weights.batch_size} must be a multiple of hardware.devices")
        return self


class TrainedVocoderParams(TrainingParams):
    """The vocoder is trained on the corpus's training clips, against discriminators."""

    kind: Literal["train"]
    batch_size: int = Field(ge=1)
    steps: int = Field(ge=1)
    crop_frames: int = Field(ge=1, description="of each clip, seen in one step; a shorter one is followed by silence")
    discriminator_width: int = Field(ge=4, multiple_of=4, description="32 in the paper")
    feature_weight: float = Field(ge=0, description="of the difference of the discriminators' feature maps")
    mel_weight: float = Field(ge=0, description="of the difference of log-mels")


class VocoderParams(GriffinLimParams):
    """`griffin_lim_iterations` and `griffin_lim_momentum` are of what the vocoder is measured beside."""

    mel: str = Field(min_length=1, description="the spectrogram it speaks; must be the one of the family's latents")
    network: VocoderNetParams = Field(description="of a loaded one as well: it must be so")
    weights: TrainedVocoderParams | LoadedParams = Field(discriminator="kind")
    hardware: HardwareParams

    @model_validator(mode="after")
    def _one_device(self) -> VocoderParams:
        if self.hardware.devices != 1:
            raise ValueError("hardware.devices must be 1: a vocoder is trained, or loaded, on one")
        return self


class LatentsParams(StageParams):
    frames: int = Field(ge=1, description="of a log-mel; a shorter clip is followed by silence before it is encoded")
    batch_size: int = Field(ge=1, description="of a GPU; a CPU takes clips one at a time")
    accelerator: Literal["cpu", "gpu", "auto"]
    precision: Literal["32", "bf16"] = Field(description="of a GPU")


class UNetParams(StageParams):
    """The text-conditioned U-Net (TANGO's: 320, 640, 1280, 1280, text on levels 0 to 2, heads 5, 10, 20, 20)."""

    widths: list[int] = Field(min_length=2, description="channels of levels 0, 1, …, each half the size of the one before")
    heads: list[int] = Field(description="attention heads of each level")
    text_levels: list[int] = Field(description="levels that attend to themselves and to the text; the middle always does")
    blocks: int = Field(ge=1, description="residual blocks per level")
    groups: int = Field(ge=1, description="of the group norms")
    text_width: int = Field(ge=1, description="of the text encoder's states; conf/text/ sets it with the encoder")
    gradient_checkpointing: bool = Field(description="compute activations again on the way back: less memory, a third more time")

    @model_validator(mode="after")
    def _levels_fit(self) -> UNetParams:
        if len(self.heads) != len(self.widths):
            raise ValueError(f"heads {self.heads} must be one for each of widths {self.widths}")
        for width, heads in zip(self.widths, self.heads, strict=True):
            if heads < 1 or width % heads or width % self.groups:
                raise ValueError(f"width {width} must be a multiple of its {heads} heads and of {self.groups} groups")
        beyond = [level for level in self.text_levels if not 0 <= level < len(self.widths)]
        if beyond:
            raise ValueError(f"text_levels {beyond} do not exist: there are levels 0 to {len(self.widths) - 1}")
        return self


class SamplingParams(SamplerParams, GriffinLimParams):
    """From noise and a prompt to sound."""

    vocoder: Literal["griffin_lim", "hifigan"] = Field(description="hifigan: the one that the stage `vocoder` made")
    spacing: Literal["trailing", "leading"] = Field(description="of the timesteps; `leading` ends at 1, as TANGO does")
    variance: Literal["large", "small"] = Field(description="of ddpm's noise")
    grain: float = Field(ge=0, description="of the noise that the autoencoder smoothed away, the share to give back; 0: none")


class TrainParams(FamilyTrainParams):
    real_items: int = Field(ge=1, description="clips in a batch of one device")
    mixed_items: int = Field(ge=0, description="mixes in a batch of one device, beside the clips")
    accumulate: int = Field(ge=1, description="batches whose gradients add up in one step")
    text_dropout: Probability = Field(description="share of items trained with the null text, as guidance needs")
    null_text: Literal["empty", "zeros"] = Field(description="the encoder's states of the empty caption, or one state of zeros")
    network: UNetParams
    diffusion: DiffusionParams
    grid: GridParams
    sampling: SamplingParams = Field(description="how the grid, and `soundmill generate`, sample the checkpoint")

    @property
    def items(self) -> int:
        return self.real_items + self.mixed_items


class GenerateParams(FamilyGenerateParams):
    """A sound is made for a clip by its first caption."""

    sampling: SamplingParams
