"""The two contracts of components that several families share: `Vocoder` and `Codec`; and `Kind`, by which stages make them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pydantic import ConfigDict

from soundmill import hashing
from soundmill.audio.mel import MelSpec
from soundmill.errors import UserError
from soundmill.params import StageParams
from soundmill.training import checkpoint

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

    from soundmill.models.samples import Samples


PYTORCH = {"format": "pt"}  # metadata that other programs look for in the weights of a component


class Vocoder(Protocol):
    """From log-mels of one spec to sound."""

    spec: MelSpec

    def to(self, device: Any) -> Vocoder: ...

    def vocode(self, log_mels: Tensor, seed: int = 0) -> Tensor:
        """Waves [N, channels, frames · hop_length] of log-mels [N, n_mels, frames]; not clipped.

        `seed`: of the grain; a vocoder without grain makes the same of any.
        """

    def pieces(self, log_mels: Tensor) -> Iterator[Tensor]:
        """The same in pieces [N, channels, n], so that memory does not grow with the sound."""


class VocoderConfig(checkpoint.Config):
    """The `config.json` of a vocoder; a kind adds how its net is built."""

    kind: str
    mel_spec: MelSpec  # of the log-mels that it takes
    source: dict[str, Any]  # `kind`: train | load, and what came of it


C = TypeVar("C", bound=VocoderConfig)


def save_vocoder(directory: Path, config: VocoderConfig, net: nn.Module) -> dict[str, Any]:
    """Write a vocoder into a new directory; returns its metrics, of which there are none."""
    checkpoint.save(directory, config.model_dump(mode="json"), net.state_dict(), metadata=PYTORCH)
    return {}


def read_vocoder(directory: Path, config: type[C], spec: MelSpec | None) -> C:
    """The config of a saved vocoder; UserError where there is none, or it is for other log-mels than `spec`'s, if given."""
    saved = checkpoint.load_config(directory, config, "vocoder")
    if spec:
        check_vocoder_spec(str(directory), saved.mel_spec.model_dump(), spec)
    return saved


def check_vocoder_spec(where: str, wants: Mapping[str, Any], spec: MelSpec, more: Sequence[str] = ()) -> None:
    """UserError where a vocoder is for other log-mels than `spec`'s: what it `wants` of a spec, and in words what `more`."""
    differing = [f"{key} {value}, not {getattr(spec, key)}" for key, value in wants.items() if value != getattr(spec, key)]
    if differing or more:
        raise UserError(
            f"{where}: this vocoder is for other spectrograms than these ({'; '.join([*differing, *more])}); make them agree, or "
            "take Griffin-Lim (`vocoder=griffin_lim`)"
        )


class Codec(Protocol):
    """Between waves and latents."""

    sample_rate: int
    channels: int
    latent_rate: float  # latents a second

    def encode(self, waves: Tensor) -> Tensor:
        """Latents [N, …] of waves [N, channels, T]."""

    def decode(self, latents: Tensor, seeds: Sequence[int] = ()) -> Tensor:
        """Waves [N, channels, T] in [−1, 1] of latents; `seeds`: of each one's grain, where log-mels become sound."""


class Encoder(Protocol):
    """What the stage `latents` needs of a codec, and its kind's `load` gives."""

    sample_rate: int
    channels: int

    def to(self, device: Any) -> Encoder: ...

    def posterior(self, waves: Sequence[np.ndarray], num_samples: int) -> Tensor:
        """Mean and ln variance [N, 2, latent channels, frames, bands] of the latents, not scaled; a codec of waves has one band.

        Of waves [channels, T] each, followed by silence to `num_samples`. A length that it cannot encode is a UserError.
        """


class LatentCodec(Encoder, Protocol):
    """What a family that diffuses latents [N, channels, frames, bands] needs of a codec beside: its kind has a `sounding`."""

    spec: MelSpec | None  # of the log-mels that a vocoder makes sound of; None: it makes sound itself
    samples_per_frame: int  # `frames` of a sound are so many samples each
    digest: str
    scaling_factor: float  # x0 = scaling_factor · latent

    def latent_shape(self, frames: int) -> tuple[int, int, int]:
        """(channels, frames, bands) of the latent of so many frames of a sound."""


class CodecIdentity(checkpoint.Config):
    """What every codec's `config.json` has."""

    model_config = ConfigDict(extra="ignore")

    kind: str
    digest: str  # of weights and constants
    scaling_factor: float  # x0 = scaling_factor · latent


class CodecConfig(CodecIdentity):
    """The `config.json` of a codec; a kind adds how its nets are built, and its constants."""

    model_config = ConfigDict(extra="forbid")

    source: dict[str, Any]  # how it was trained or loaded


def save_codec(directory: Path, config: CodecConfig, net: nn.Module) -> str:
    """Write a codec into a new directory; returns its digest, which takes the place of the config's."""
    directory.mkdir(parents=True)
    weights = directory / checkpoint.WEIGHTS
    checkpoint.write_weights(net.state_dict(), weights, PYTORCH)
    constants = config.model_dump(mode="json", exclude={"source", "digest"})
    digest = hashing.digest(constants, {checkpoint.WEIGHTS: hashing.file_digest(weights)})
    checkpoint.write_config(config.model_dump(mode="json") | {"digest": digest}, directory)
    return digest


def read_codec(directory: Path) -> CodecIdentity:
    """What identifies the codec in a directory; it is not loaded. UserError where there is none."""
    return checkpoint.load_config(directory, CodecIdentity, "autoencoder")


@dataclass(frozen=True)
class Made:
    """A component that was trained or loaded, for its stage to publish."""

    save: Callable[[Path], dict[str, Any]]  # into a directory that is not there yet; more metrics, such as its digest
    points: list[dict[str, float]]  # of the training's curve; loaded: none
    metrics: dict[str, Any]
    steps: int  # of the training; loaded: 0
    draw: Callable[[int], Samples]  # what it does to held-out clips, after so many steps


@dataclass(frozen=True)
class Kind:
    """What the package of a vocoder or codec offers as `KIND`. Its modules are named, not imported, as a family's are.

    What it saves has a `config.json` with its `kind`; a codec's has all of `CodecIdentity`.
    """

    params: type[StageParams]  # with a `kind`
    making: str  # module that has `make`
    component: str  # module that has `load` and `network`
    sounding: str = ""  # of a kind whose `load` gives a LatentCodec: module that has `sounding`

    def make(self, params: StageParams, ctx: Any, clips: Path, mels: Path, catalog: Path) -> Made:
        return import_module(self.making).make(params, ctx, clips, mels, catalog)

    def load(self, directory: Path, *spec: MelSpec | None) -> Any:
        """What `Made.save` wrote; a vocoder's `spec` is the one that it must be for, or None: whichever it is for."""
        return import_module(self.component).load(directory, *spec)

    def sound(self, codec: LatentCodec, vocoder: Vocoder | None, frames: int, grain: float, device: torch.device) -> Codec:
        """The codec, with a vocoder where it makes log-mels, between waves of so many frames and scaled latents, both on the CPU.

        `grain`: of the noise that it smoothed away, the share to give back.
        """
        return import_module(self.sounding).sounding(codec, vocoder, frames, grain, device)

    def network(self, params: StageParams, spec: dict[str, Any]) -> nn.Module:
        """Its net, freshly initialised; `spec` as plain values."""
        return import_module(self.component).network(params, spec)
