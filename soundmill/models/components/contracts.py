"""The contracts of components that families share, `Vocoder` and `Codec`, their common parameters, and `Kind`, by which stages make
them. On disk, each is a directory with its weights in `model.safetensors`, and everything else in `config.json`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from soundmill import hashing
from soundmill.audio.mel import MelSpec, check_overlap
from soundmill.errors import UserError
from soundmill.params import StageParams, parse
from soundmill.training import checkpoint
from soundmill.training.params import HardwareParams, TrainingParams

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

Build = Callable[[Any, Any, int], Any]  # parameters or a config, MelSpec (None: no log-mels), channels of waves → a new net
PYTORCH = {"format": "pt"}  # metadata of the weights; other programs expect it


class Vocoder(Protocol):
    """Turns log-mels of one spec into waves."""

    spec: MelSpec

    def to(self, device: Any) -> Vocoder: ...

    def vocode(self, log_mels: Tensor, seed: int = 0) -> Tensor:
        """Waves [N, channels, frames · hop_length] of log-mels [N, n_mels, frames]; not clipped.

        `seed` is that of the grain; vocoders without grain ignore it.
        """

    def pieces(self, log_mels: Tensor) -> Iterator[Tensor]:
        """`vocode` in pieces [N, channels, n], so that memory does not grow with the length of the sound."""


class VocoderConfig(checkpoint.Config):
    """The `config.json` of a vocoder; a kind adds how its net is built."""

    kind: str
    mel_spec: MelSpec  # of its input
    source: dict[str, Any]  # `kind`: train | load, and facts about that


def save_vocoder(model: Saved, directory: Path, source: dict[str, Any]) -> None:
    """Write a vocoder into a new directory; `source` as in `VocoderConfig`. Its net has no weight norms."""
    checkpoint.save(directory, model.stored(source).model_dump(mode="json"), model.net.state_dict(), metadata=PYTORCH)


def restore_vocoder(model: type[S], network: Build, directory: Path, spec: MelSpec | None) -> S:
    """A saved vocoder; UserError if it is for another spec than `spec` (None: any)."""
    saved = checkpoint.load_config(directory, model.config, "vocoder")
    if spec:
        check_vocoder_spec(str(directory), saved.mel_spec.model_dump(), spec)
    return model.restored(saved, directory, network)


def check_vocoder_spec(where: str, required: Mapping[str, Any], spec: MelSpec, more: Sequence[str] = ()) -> None:
    """UserError if `spec` lacks the values that a vocoder requires; `more` are further differences, in words."""
    differing = [f"{key} {value}, not {getattr(spec, key)}" for key, value in required.items() if value != getattr(spec, key)]
    if differing or more:
        raise UserError(
            f"{where}: this vocoder is for other spectrograms than these ({'; '.join([*differing, *more])}); make them agree, or "
            "take Griffin-Lim (`vocoder=griffin_lim`)"
        )


class Saved:
    """A vocoder or codec: a dataclass with a net, in evaluation mode and float32, and fields of its `config` by the same names.

    `spec` is the config's `mel_spec`. It is where its net is.
    """

    config: ClassVar[type[checkpoint.Config]]
    net: Any

    def to(self, device: Any) -> Self:
        self.net.to(device)
        return self

    def stored(self, source: dict[str, Any]) -> Any:
        """Its config."""
        own = {"mel_spec": "spec"}
        names = self.config.model_fields.keys() - {"kind", "source"}
        return self.config(source=source, **{name: getattr(self, own.get(name, name)) for name in names})

    @classmethod
    def restored(cls, saved: Any, directory: Path, network: Build) -> Self:
        """With a saved config, and the net that `network` makes of it with the weights in a directory."""
        made = partial(network, saved, getattr(saved, "mel_spec", None), getattr(saved, "channels", 1))
        net = checkpoint.load_weights(made, directory / checkpoint.WEIGHTS)
        stored = {"spec" if name == "mel_spec" else name: value for name, value in saved}
        return cls(net=net, **{field.name: stored[field.name] for field in fields(cls) if field.name in stored})


S = TypeVar("S", bound=Saved)


class Codec(Protocol):
    """Encodes waves as latents, and decodes them."""

    def encode(self, waves: Tensor) -> Tensor:
        """Latents [N, …] of waves [N, channels, T]."""

    def decode(self, latents: Tensor, seeds: Sequence[int] = ()) -> Tensor:
        """Waves [N, channels, T] in [−1, 1] of latents; `seeds` are those of each item's grain, if a vocoder makes the waves."""


class Encoder(Protocol):
    """What the stage `latents` needs of a codec; a kind's `load` returns it."""

    sample_rate: int
    channels: int

    def to(self, device: Any) -> Encoder: ...

    def posterior(self, waves: Sequence[np.ndarray], num_samples: int) -> Tensor:
        """Mean and ln variance [N, 2, latent channels, frames, bands] of the unscaled latents; a codec of waves has one band.

        The waves, [channels, T] each, are padded with silence to `num_samples`. UserError if it cannot encode that length.
        """


class LatentCodec(Encoder, Protocol):
    """What a family that diffuses latents [N, channels, frames, bands] also needs of a codec."""

    spec: MelSpec | None  # of the log-mels that it decodes to, which need a vocoder; None: it decodes to waves
    samples_per_frame: int  # of the sound, per frame of the latents
    digest: str
    scaling_factor: float  # x0 = scaling_factor · latent

    def latent_shape(self, frames: int) -> tuple[int, int, int]:
        """(channels, frames, bands) of the latent of a sound of `frames` frames."""

    def sounding(self, vocoder: Vocoder | None, frames: int, grain: float, device: torch.device) -> Codec:
        """A codec between waves of `frames` frames and scaled latents, both on the CPU; it decodes log-mels with `vocoder`.

        `grain` is the share to restore of the noise that the codec smooths away.
        """


class CodecIdentity(checkpoint.Config):
    """The part of `config.json` that all codecs have."""

    model_config = ConfigDict(extra="ignore")

    kind: str
    digest: str  # of weights and constants
    scaling_factor: float  # x0 = scaling_factor · latent


class CodecConfig(CodecIdentity):
    """The `config.json` of a codec; a kind adds how its nets are built, and its constants."""

    model_config = ConfigDict(extra="forbid")

    source: dict[str, Any]  # how it was trained or loaded


def save_codec(model: Saved, directory: Path, source: dict[str, Any]) -> dict[str, Any]:
    """Write a codec into a new directory, and set and return its `digest`; `source` as in `CodecConfig`."""
    config = model.stored(source)
    directory.mkdir(parents=True)
    weights = directory / checkpoint.WEIGHTS
    checkpoint.write_weights(model.net.state_dict(), weights, PYTORCH)
    constants = config.model_dump(mode="json", exclude={"source", "digest"})
    model.digest = hashing.digest(constants, {checkpoint.WEIGHTS: hashing.file_digest(weights)})
    checkpoint.write_config(config.model_dump(mode="json") | {"digest": model.digest}, directory)
    return {"digest": model.digest}


def restore_codec(model: type[S], network: Build, directory: Path) -> S:
    return model.restored(checkpoint.load_config(directory, model.config, "autoencoder"), directory, network)


def read_codec(directory: Path) -> CodecIdentity:
    """The identity of the codec in a directory, without loading it; UserError if there is none."""
    return checkpoint.load_config(directory, CodecIdentity, "autoencoder")


class LoadedParams(StageParams):
    """Pretrained weights: AudioLDM's (autoencoder in `vae/`, vocoder in `vocoder/`) or Vocos'."""

    kind: Literal["load"]
    name: str = Field(min_length=1, description="id on the Hugging Face hub, or a directory")
    revision: str | None = Field(description="commit on the hub, 40 hex digits")


class ComponentParams(StageParams):
    """Parameters of a vocoder or codec: a subclass has `kind`, and `weights` that are trained or loaded."""

    fixed: ClassVar[tuple[str, ...]] = ("network",)  # keys in which the component `weights.start_from` must be equal

    hardware: HardwareParams

    @model_validator(mode="after")
    def _shared_among_devices(self) -> Self:
        weights, devices = self.weights, self.hardware.devices
        if weights.kind == "load" and devices != 1:
            raise ValueError("hardware.devices must be 1 for loaded weights")
        if weights.kind == "train" and weights.batch_size % devices:
            raise ValueError(f"weights.batch_size {weights.batch_size} must be a multiple of hardware.devices {devices}")
        return self

    def check_spec(self, spec: MelSpec) -> None:
        """UserError if this component cannot be made for log-mels of `spec`."""

    def check_start(self, home: Path, **data: Any) -> Path:
        """The directory `weights.start_from`; UserError if its config has another kind, other `fixed` parameters or other `data`.

        `data` are `mel_spec` or `sample_rate`, of the training; a config that lacks the key does not depend on it.
        """
        where = checkpoint.start_directory(home / self.weights.start_from)
        config = checkpoint.read(where, "vocoder or autoencoder", "name one's directory, such as the `autoencoder` of a checkpoint")
        checkpoint.compare(str(where), {"kind": config.get("kind")}, {"kind": self.kind})
        nested = config.get("params")  # of the diffusion autoencoder
        saved = config | nested if isinstance(nested, dict) else config
        here = {key: getattr(self, key) for key in self.fixed} | {key: value for key, value in data.items() if key in saved}
        there = {key: saved.get(key) for key in here}
        for key, value in here.items():
            if isinstance(value, BaseModel):  # an earlier config may lack keys that have a default
                found = parse(type(value), there[key], f"start_from: {where / checkpoint.CONFIG}: {key}")
                here[key], there[key] = value.model_dump(), found.model_dump()
        checkpoint.compare(str(where), there, here)
        return where


class CodecTrainingParams(TrainingParams):
    """Train the codec on the training clips, or take one that was trained."""

    kind: Literal["train"]
    batch_size: int = Field(ge=1, le=65_536)
    steps: int = Field(ge=0, le=100_000_000, description="0: take the weights of `start_from` as they are")

    @model_validator(mode="after")
    def _taken_from_somewhere(self) -> Self:
        if not self.steps and not self.start_from:
            raise ValueError("steps: 0 steps take the weights of start_from, which is null")
        return self


class WaveCodecTrainingParams(CodecTrainingParams):
    num_samples: int = Field(ge=1, le=2**28, description="length of a crop of each clip; shorter clips are padded with silence")


class WaveCodecParams(ComponentParams):
    """Parameters of a codec of waves; its `network` has `latent_channels` and `samples_per_latent`."""

    def latent_shape(self, spec: MelSpec, num_samples: int) -> tuple[int, int, int]:
        """Shape (channels, frames, bands) of the latent of `num_samples`."""
        return self.network.latent_channels, num_samples // self.network.samples_per_latent, 1

    def stride(self, spec: MelSpec) -> int:
        """Samples that lengths of waves must be multiples of."""
        return self.network.samples_per_latent

    def check_waves(self, rate: int, channels: int, clips: str) -> None:
        """UserError if `network` states another form of waves than `clips` have."""
        stated = getattr(self.network, "audio_channels", channels), getattr(self.network, "sample_rate", rate)
        if stated != (channels, rate):
            there, here = (f"{one[0]} channels at {one[1]} Hz" for one in ((channels, rate), stated))
            raise UserError(f"{clips} has {there}, but autoencoder.network has {here}; make them agree")

    @model_validator(mode="after")
    def _whole_latents(self) -> Self:
        weights, stride = self.weights, self.network.samples_per_latent
        if weights.kind == "train" and weights.num_samples % stride:
            raise ValueError(f"weights.num_samples {weights.num_samples} must be a multiple of {stride}, the samples of a latent")
        return self


class GriffinLimParams(StageParams):
    griffin_lim_iterations: int = Field(ge=1, le=10_000)
    griffin_lim_momentum: float = Field(ge=0, lt=1)
    # With a default, since earlier checkpoints do not have this key.
    griffin_lim_grain: Literal["none", "speckle"] = Field(
        "none", description="fluctuations that bands average away: none, or drawn by the request's seed in noisy bands"
    )


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


@dataclass(frozen=True)
class Kind:
    """A kind of vocoder or codec. Its module is named, not imported: parameters are read without torch.

    The module has
    make(params, ctx, clips, mels, catalog): the MadeComponent (making.py) that its stage publishes
    load(directory, spec): what was saved; UserError if weights do not fit, or a vocoder is for another spec (None: any);
      a codec's has no `spec`
    network(params, spec, channels): its net, newly initialised, for log-mels of `spec` or waves of so many channels
    check(params, spec, home): if `params.weights` can be published ones
    The directories that it saves have a `config.json` with its `kind`; a codec's has all of `CodecIdentity`.
    """

    component: str  # its module
    of_params: str  # name of the type of its parameters, in its package
    latents: bool = False  # whether `load` returns a LatentCodec

    @property
    def package(self) -> str:
        return self.component.rpartition(".")[0]

    @property
    def params(self) -> type[ComponentParams]:
        return getattr(import_module(self.package), self.of_params)

    @property
    def module(self) -> ModuleType:
        return import_module(self.component)


class LatentsParams(StageParams):
    num_samples: int = Field(ge=1, le=2**28, description="length of every encoded wave; shorter ones are padded with silence")
    batch_size: int = Field(ge=1, le=65_536, description="clips per batch on a GPU; a CPU encodes one at a time")
    accelerator: Literal["cpu", "gpu", "auto"]
    precision: Literal["32", "bf16"] = Field(description="precision on a GPU")
