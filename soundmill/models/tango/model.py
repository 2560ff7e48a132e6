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
from soundmill.audio.mel import MelSpec
from soundmill.errors import UserError
from soundmill.models import registry
from soundmill.models.checkpoint import read_config, read_part, write_config
from soundmill.models.components.contracts import Vocoder
from soundmill.models.components.griffin_lim.vocoder import GriffinLim
from soundmill.models.components.mel_autoencoder import autoencoder as autoencoders
from soundmill.models.components.mel_autoencoder.autoencoder import Autoencoder, build_autoencoder
from soundmill.models.components.mel_autoencoder.codec import MelCodec
from soundmill.models.components.mel_autoencoder.params import AutoencoderParams
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
    autoencoder: Autoencoder
    frames: int  # of the log-mels it makes
    text: TextConfig
    vocoder: Vocoder | None = None  # none: Griffin-Lim
    texts: Texts | None = None  # while it trains, states that a stage made: the text encoder is not loaded
    channels: int = 1
    condition: Literal["caption"] = "caption"
    labels: tuple[str, ...] = ()

    @property
    def spec(self) -> MelSpec:
        return self.autoencoder.spec

    @property
    def sample_rate(self) -> int:
        return self.spec.sample_rate

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.autoencoder.latent_shape(self.frames)

    @property
    def num_samples(self) -> int:
        return self.frames * self.spec.hop_length

    def generate(self, requests: Sequence[Request], run: Run) -> Tensor:
        """Noise and a text → latents → log-mels → waves."""
        states, null = self._states([request.caption for request in requests], run)
        latents = sample_latents(self, states, null, [request.seed for request in requests], run)
        return self.codec(run).decode(latents)

    def reconstruct(self, waves: Tensor, run: Run) -> Tensor:
        """Wave → log-mel → latent → log-mel → wave."""
        codec = self.codec(run)
        return codec.decode(codec.encode(waves))[..., : waves.shape[2]]

    def codec(self, run: Run) -> MelCodec:
        """The autoencoder with the vocoder that the run asks for."""
        if run.sampling.vocoder == "griffin_lim":
            vocoder: Vocoder = GriffinLim(self.spec, run.sampling)
        elif self.vocoder is None:
            raise UserError(
                "this checkpoint has no vocoder: set sampling.vocoder to `griffin_lim`, or train it with `vocoder=hifigan_laptop`"
            )
        else:
            vocoder = self.vocoder
        return MelCodec(self.autoencoder, vocoder, self.frames, run.sampling.grain, run.device)

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
    if any(side % 2**halvings for side in sides):
        raise UserError(
            f"latents of {sides[0]} frames and {sides[1]} bands cannot be halved {halvings} times, as train.network.widths want; "
            "change latents.num_samples or the number of widths"
        )
    return TextUNet(params.network, channels)


def networks(document: dict[str, Any]) -> dict[str, nn.Module]:
    """As models/family.py says; the text encoder's size is not known without its files."""
    train = strict.parse(TrainParams, strict.section(document, f"{FAMILY}.train", "parameters"), f"{FAMILY}.train")
    section = strict.section(document, f"{FAMILY}.autoencoder", "parameters")
    autoencoder = strict.parse(AutoencoderParams, section, f"{FAMILY}.autoencoder")
    parts = {"unet": TextUNet(train.network, autoencoder.network.latent_channels), "vae": build_autoencoder(autoencoder.network)}
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
    autoencoder = autoencoders.load(directory / AUTOENCODER)
    net = build_net(params, autoencoder.latent_shape(config["frames"]))
    vocoder = load_vocoder(params, directory, autoencoder)
    return Tango(params, weights.fill(net, directory / WEIGHTS), autoencoder, config["frames"], text, vocoder)


def load_vocoder(params: TrainParams, directory: Path, autoencoder: Autoencoder) -> Vocoder | None:
    """The vocoder in `directory`, if one is given; it must take the log-mels that the autoencoder makes."""
    return registry.load_vocoder(directory / VOCODER, autoencoder.spec) if params.sampling.vocoder == "trained" else None
