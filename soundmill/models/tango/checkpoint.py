"""A trained model of this family on disk: weights in safetensors, everything else in JSON; nothing in it runs code.

Autoencoder and vocoder lie within, whole. The text encoder does not (a gigabyte and more): it is found again by its name, and must
be the same.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from soundmill import params as strict
from soundmill.audio.mel import MelSpec
from soundmill.errors import UserError
from soundmill.models import registry
from soundmill.models.tango import autoencoder as autoencoders
from soundmill.models.tango import vocoder as vocoders
from soundmill.models.tango.autoencoder import Autoencoder, build_autoencoder
from soundmill.models.tango.conditions import TextConfig
from soundmill.models.tango.params import AutoencoderParams, TrainParams, VocoderParams
from soundmill.models.tango.unet import TextUNet
from soundmill.models.tango.vocoder import Vocoder, build_vocoder
from soundmill.training import weights

FAMILY = "tango"
WEIGHTS, AUTOENCODER, VOCODER = "unet.safetensors", "autoencoder", "vocoder"


@dataclass
class Model:
    """All that sampling needs but the text encoder; `net` carries the averaged weights."""

    params: TrainParams
    net: TextUNet
    autoencoder: Autoencoder
    frames: int  # of the log-mels it makes
    text: TextConfig
    vocoder: Vocoder | None = None  # none: Griffin-Lim

    @property
    def spec(self) -> MelSpec:
        return self.autoencoder.spec

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.autoencoder.latent_shape(self.frames)

    @property
    def num_samples(self) -> int:
        return self.frames * self.spec.hop_length


def build_net(params: TrainParams, latent_shape: tuple[int, int, int]) -> TextUNet:
    """The U-Net over latents [channels, frames, bands], initialised from torch's global generator."""
    channels, *sides = latent_shape
    halvings = len(params.network.widths) - 1
    if any(side % 2**halvings for side in sides):
        raise UserError(
            f"latents of {sides[0]} frames and {sides[1]} bands cannot be halved {halvings} times, as train.network.widths want; "
            "change latents.frames or the number of widths"
        )
    return TextUNet(params.network, channels)


def networks(document: dict[str, Any]) -> dict[str, nn.Module]:
    """The interface of models/registry.py; the text encoder's size is not known without its files."""
    train = strict.parse(TrainParams, strict.section(document, f"{FAMILY}.train", "parameters"), f"{FAMILY}.train")
    section = strict.section(document, f"{FAMILY}.autoencoder", "parameters")
    autoencoder = strict.parse(AutoencoderParams, section, f"{FAMILY}.autoencoder")
    parts = {"unet": TextUNet(train.network, autoencoder.network.latent_channels), "vae": build_autoencoder(autoencoder.network)}
    if FAMILY in document["vocoder"]:
        vocoder = strict.parse(VocoderParams, document["vocoder"][FAMILY], f"vocoder.{FAMILY}")
        spec = strict.section(document, f"spectrogram.{vocoder.mel}", "parameters")
        parts["vocoder"] = build_vocoder(vocoder.network, spec["n_mels"], spec["sample_rate"])
    return parts


def save(model: Model, inputs: Path, directory: Path, facts: dict[str, Any]) -> None:
    """Write the checkpoint into `directory` (made anew), with copies of what sound is made with out of `inputs`, the directory
    that the training took; `facts` are for people."""
    directory.mkdir(parents=True)
    weights.write(model.net.state_dict(), directory / WEIGHTS)
    for part in (AUTOENCODER, VOCODER) if model.vocoder else (AUTOENCODER,):
        shutil.copytree(inputs / part, directory / part, copy_function=shutil.copyfile)
    registry.write_config(directory, FAMILY, model.params, facts, frames=model.frames, text=model.text.model_dump(mode="json"))


def load(directory: Path) -> Model:
    """Rebuild a model from its directory alone; one that does not fit this code is a UserError that says where."""
    config = registry.checkpoint_config(directory, FAMILY, ("params", "frames", "text"))
    params = registry.checkpoint_part(TrainParams, config, "params", directory)
    text = registry.checkpoint_part(TextConfig, config, "text", directory)
    autoencoder = autoencoders.load(directory / AUTOENCODER)
    net = build_net(params, autoencoder.latent_shape(config["frames"]))
    vocoder = load_vocoder(params, directory, autoencoder)
    return Model(params, weights.fill(net, directory / WEIGHTS), autoencoder, config["frames"], text, vocoder)


def load_vocoder(params: TrainParams, directory: Path, autoencoder: Autoencoder) -> Vocoder | None:
    """The vocoder in `directory` where one is asked for; it must speak the log-mels that the autoencoder makes."""
    return vocoders.load(directory / VOCODER, autoencoder.spec) if params.sampling.vocoder == "hifigan" else None
