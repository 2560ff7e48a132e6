"""A trained model of this family on disk: weights in safetensors, everything else in JSON; nothing in it runs code.

The autoencoder lies within, whole. The text encoder does not (a gigabyte and more): it is found again by its name, and must be
the same.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from soundmill import params as strict
from soundmill.diffusion.schedules import alpha_bar
from soundmill.errors import UserError
from soundmill.models import registry
from soundmill.models.tango import autoencoder as autoencoders
from soundmill.models.tango.autoencoder import Autoencoder, build_autoencoder
from soundmill.models.tango.conditions import TextConfig
from soundmill.models.tango.params import AutoencoderParams, TrainParams
from soundmill.models.tango.unet import TextUNet
from soundmill.models.tango.vocoder import build_vocoder

FAMILY = "tango"
WEIGHTS, CONFIG, AUTOENCODER = "unet.safetensors", "config.json", "autoencoder"


@dataclass
class Model:
    """All that sampling needs but the text encoder; `net` carries the averaged weights."""

    params: TrainParams
    net: TextUNet
    autoencoder: Autoencoder
    frames: int  # of the log-mels it makes
    text: TextConfig

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.autoencoder.latent_shape(self.frames)

    @property
    def num_samples(self) -> int:
        return self.frames * self.autoencoder.spec.hop_length

    def alpha_bar(self) -> Tensor:
        diffusion = self.params.diffusion
        return alpha_bar(diffusion.schedule, diffusion.num_timesteps, diffusion.beta_start, diffusion.beta_end, diffusion.shift)


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
    if autoencoder.vocoder is not None:
        spec = strict.section(document, f"spectrogram.{FAMILY}", "parameters")
        parts["vocoder"] = build_vocoder(autoencoder.vocoder, spec["n_mels"], spec["sample_rate"])
    return parts


def save(model: Model, autoencoder: Path, directory: Path, facts: dict[str, Any]) -> None:
    """Write the checkpoint into `directory` (made anew), a copy of the directory `autoencoder` in it; `facts` are for people."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.net.state_dict().items()}
    save_file(tensors, directory / WEIGHTS)
    shutil.copytree(autoencoder, directory / AUTOENCODER, copy_function=shutil.copyfile)
    config = {
        "family": FAMILY,
        "frames": model.frames,
        "text": model.text.model_dump(mode="json"),
        "params": model.params.model_dump(mode="json"),
        **facts,
    }
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (directory / CONFIG).write_text(text, encoding="utf-8")


def load(directory: Path) -> Model:
    """Rebuild a model from its directory alone; one that does not fit this code is a UserError that says where."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = registry.checkpoint_config(directory, FAMILY)
    where = f"{directory / CONFIG}: "
    missing = [key for key in ("params", "frames", "text") if key not in config]
    if missing:
        raise UserError(f"{where}{', '.join(missing)} missing: not a whole checkpoint; retrain with `dvc repro`")
    params = strict.parse(TrainParams, config["params"], where + "params")
    text = strict.parse(TextConfig, config["text"], where + "text")
    autoencoder = autoencoders.load(directory / AUTOENCODER)
    net = build_net(params, autoencoder.latent_shape(config["frames"]))
    try:
        net.load_state_dict(load_file(directory / WEIGHTS))
    except (SafetensorError, FileNotFoundError) as error:
        raise UserError(f"{directory / WEIGHTS}: weights cannot be read ({error}); retrain with `dvc repro`") from None
    except RuntimeError as error:
        first = " ".join(line.strip() for line in str(error).strip().splitlines()[:2])
        raise UserError(
            f"{directory}: its weights are of another architecture than its config.json says ({first}); retrain with `dvc repro`"
        ) from None
    return Model(params, net.eval(), autoencoder, config["frames"], text)
