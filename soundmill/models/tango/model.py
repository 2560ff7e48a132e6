"""A trained model of this family on disk: weights in safetensors, everything else in JSON; nothing in it runs code.

Autoencoder and vocoder lie within, whole. The text encoder does not (a gigabyte and more): it is loaded by its name, and must
have the same digest.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from soundmill import params as strict
from soundmill.errors import UserError
from soundmill.models import registry
from soundmill.models.checkpoint import read_config, read_part, write_config
from soundmill.models.components.contracts import Codec, Kind, LatentCodec, Vocoder
from soundmill.models.components.griffin_lim.vocoder import GriffinLim
from soundmill.models.components.text_states import states as text_states
from soundmill.models.components.text_states.states import TextConfig, Texts
from soundmill.models.family import Request, Run
from soundmill.models.tango.params import TrainParams
from soundmill.models.tango.sample import sample_latents
from soundmill.models.tango.unet import TextUNet
from soundmill.training import weights

FAMILY = "tango"
WEIGHTS, AUTOENCODER, VOCODER = "unet.safetensors", "autoencoder", "vocoder"


@dataclass
class Tango:
    """A `Model` (models/family.py); `net` carries the averaged weights. Of a request it reads the caption."""

    params: TrainParams
    net: TextUNet
    kind: Kind  # of the autoencoder
    autoencoder: LatentCodec
    frames: int  # of the log-mels it makes; where it makes none, latents
    text: TextConfig
    vocoder: Vocoder | None = None  # none: Griffin-Lim
    texts: Texts | None = None  # while it trains, states that a stage made: the text encoder is not loaded
    channels: int = 1
    condition: Literal["caption"] = "caption"
    labels: tuple[str, ...] = ()

    @property
    def sample_rate(self) -> int:
        return self.autoencoder.sample_rate

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.autoencoder.latent_shape(self.frames)

    @property
    def num_samples(self) -> int:
        return self.frames * self.autoencoder.samples_per_frame

    def generate(self, requests: Sequence[Request], run: Run) -> Tensor:
        """Noise and a text → latents → waves, by way of log-mels where the latents are of such."""
        states, null = self._states([request.caption for request in requests], run)
        seeds = [request.seed for request in requests]
        return self.codec(run).decode(sample_latents(self, states, null, seeds, run), seeds)

    def reconstruct(self, waves: Tensor, run: Run) -> Tensor:
        """Wave → latent → wave."""
        codec = self.codec(run)
        return codec.decode(codec.encode(waves))[..., : waves.shape[2]]

    def codec(self, run: Run) -> Codec:
        """The autoencoder with the vocoder that the run asks for, if it needs one."""
        return self.kind.sound(self.autoencoder, self._vocoder(run), self.frames, run.sampling.grain, run.device)

    def _vocoder(self, run: Run) -> Vocoder | None:
        if self.autoencoder.spec is None:
            return None
        if run.sampling.vocoder == "griffin_lim":
            return GriffinLim(self.autoencoder.spec, run.sampling)
        if self.vocoder is None:
            raise UserError(
                "this checkpoint has no vocoder: set sampling.vocoder to `griffin_lim`, or train it with `vocoder=hifigan_laptop`"
            )
        return self.vocoder

    def _states(self, captions: Sequence[str], run: Run) -> tuple[list[np.ndarray], np.ndarray]:
        """States [tokens, width] of captions, and those of no text."""
        if self.texts is not None:
            return [self.texts.of(caption) for caption in captions], self.texts.null
        *states, empty = text_states.encode(self.text, [*captions, ""], run.home, run.scratch, run.digests)
        return states, text_states.null_of(self.params.null_text, empty)


def build_net(params: TrainParams, latent_shape: tuple[int, int, int]) -> TextUNet:
    """The U-Net over latents [channels, frames, bands], initialised from torch's global generator."""
    channels, *sides = latent_shape
    halvings = len(params.network.widths) - 1
    if any(side % 2**halvings for side in sides if side > 1):  # a single band stays one
        raise UserError(
            f"latents of {sides[0]} frames and {sides[1]} bands cannot be halved {halvings} times, as train.network.widths want; "
            "change latents.num_samples or the number of widths"
        )
    return TextUNet(params.network, channels)


def networks(document: dict[str, Any]) -> dict[str, nn.Module]:
    """As models/family.py says; the text encoder's size is not known without its files."""
    train = strict.parse(TrainParams, strict.section(document, f"{FAMILY}.train", "parameters"), f"{FAMILY}.train")
    autoencoder, spec = registry.codec_params(document, FAMILY), strict.section(document, f"spectrogram.{FAMILY}", "parameters")
    vae = registry.codec(autoencoder.kind).network(autoencoder, spec)
    parts = {"unet": TextUNet(train.network, autoencoder.network.latent_channels), "vae": vae}
    return parts | registry.vocoder_network(document, FAMILY)


def save(model: Tango, inputs: Path, parts: Path, directory: Path, facts: dict[str, Any]) -> None:
    """Write the checkpoint into `directory` (made anew), with copies of what sound is made with, out of the directories that the
    training took; `facts` are for people."""
    directory.mkdir(parents=True)
    weights.write(model.net.state_dict(), directory / WEIGHTS)
    for part in (inputs / AUTOENCODER, parts / VOCODER) if model.vocoder else (inputs / AUTOENCODER,):
        shutil.copytree(part, directory / part.name, copy_function=shutil.copyfile)
    write_config(directory, FAMILY, model.params, facts, frames=model.frames, text=model.text.model_dump(mode="json"))


def load(directory: Path) -> Tango:
    """Rebuild a model from its directory alone; one that does not fit this code is a UserError that says where."""
    config = read_config(directory, FAMILY, ("params", "frames", "text"))
    params = read_part(TrainParams, config, "params", directory)
    text = read_part(TextConfig, config, "text", directory)
    kind, autoencoder = registry.load_latent_codec(directory / AUTOENCODER)
    net = build_net(params, autoencoder.latent_shape(config["frames"]))
    vocoder = load_vocoder(params, directory, autoencoder)
    return Tango(params, weights.fill(net, directory / WEIGHTS), kind, autoencoder, config["frames"], text, vocoder)


def load_vocoder(params: TrainParams, directory: Path, autoencoder: LatentCodec) -> Vocoder | None:
    """The vocoder in `directory`, if one is given; it must take the log-mels that the autoencoder makes."""
    if params.sampling.vocoder != "trained":
        return None
    if autoencoder.spec is None:
        raise UserError(
            "latents of waves need no vocoder: leave `vocoder=` out, or take those of log-mels (`latents=mel_autoencoder`)"
        )
    return registry.load_vocoder(directory / VOCODER, autoencoder.spec)
