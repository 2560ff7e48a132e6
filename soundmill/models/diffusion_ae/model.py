"""A trained model on disk, its autoencoder within: weights in safetensors, everything else in JSON; nothing in it runs code."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soundmill import params as strict
from soundmill.diffusion import velocity
from soundmill.diffusion.guidance import guided
from soundmill.errors import UserError
from soundmill.models.checkpoint import read_config, read_part, write_config
from soundmill.models.components.unet1d.codec import codec as codecs
from soundmill.models.components.unet1d.codec.codec import DiffusionCodec
from soundmill.models.components.unet1d.codec.params import AutoencoderParams
from soundmill.models.components.unet1d.network import UNet1d
from soundmill.models.components.unet1d.noise import noise_of
from soundmill.models.components.unet1d.params import NO_TRANSFORM
from soundmill.models.diffusion_ae.params import TrainParams
from soundmill.models.family import Request, Run
from soundmill.models.labels import label_weights
from soundmill.training import weights
from soundmill.training.device import autocast, evaluating

FAMILY = "diffusion_ae"
WEIGHTS, AUTOENCODER = "unet.safetensors", "autoencoder"


@dataclass
class DiffusionAE:
    """A `Model` (models/family.py); `net` carries the averaged weights."""

    params: TrainParams
    net: UNet1d
    codec: DiffusionCodec
    frames: int  # latents of a sound
    labels: Sequence[str]

    @property
    def sample_rate(self) -> int:
        return self.codec.sample_rate

    @property
    def channels(self) -> int:
        return self.codec.channels

    @property
    def num_samples(self) -> int:
        return self.frames * self.codec.samples_per_latent

    @property
    def condition(self) -> Literal["labels", "none"]:
        return "labels" if self.params.condition == "label" else "none"

    def generate(self, requests: Sequence[Request], run: Run) -> Tensor:
        """Noise → latents → waves; a request without labels is unconditional."""
        net, codec, made = self.net.to(run.device), self.codec.to(run.device), []
        scale = run.sampling.guidance_scale if self.condition == "labels" else 1.0
        with torch.no_grad(), evaluating(net):
            for start in range(0, len(requests), run.batch_size):
                part = requests[start : start + run.batch_size]
                known = [label_weights(request.labels, self.labels) for request in part]
                condition = (torch.stack(known).to(run.device),) if self.condition == "labels" else ()
                null = tuple(torch.zeros_like(one) for one in condition)

                def denoise(xt: Tensor, level: Tensor, condition: Any = condition, null: Any = null) -> Tensor:
                    with autocast(run.device, run.precision):
                        return guided(net, xt, level, condition, null, scale).float()

                noise = noise_of(part, codec.latent_channels, self.frames).to(run.device)
                latents = velocity.sample(denoise, noise, run.sampling.num_steps)
                made.append(codec.decode(latents, run.sampling.decoding).cpu())
                run.progress(len(part))
        return torch.cat(made)

    def reconstruct(self, waves: Tensor, run: Run) -> Tensor:
        """Wave → latents → wave."""
        codec, length = self.codec.to(run.device), waves.shape[2]
        padded = F.pad(waves, (0, self.num_samples - length))
        made = [codec.decode(codec.encode(wave[None].to(run.device)), run.sampling.decoding).cpu() for wave in padded]
        return torch.cat(made)[..., :length]


def build_net(params: TrainParams, latent_channels: int, frames: int, num_labels: int) -> UNet1d:
    """The net over latents [channels, frames], initialised from torch's global generator."""
    if frames % params.network.stride:
        raise UserError(
            f"a sound has {frames} latents, and {FAMILY}.train.network wants a multiple of {params.network.stride}: change "
            f"{FAMILY}.latents.num_samples, or the net's factors"
        )
    labels = {"num_labels": num_labels} if params.condition == "label" else {}
    return UNet1d(params.network, NO_TRANSFORM, latent_channels, latent_channels, **labels)


def networks(document: dict[str, Any]) -> dict[str, nn.Module]:
    """As models/family.py says; without labels, each of which adds an embedding."""

    def read(name: str, model: type[strict.P]) -> strict.P:
        return strict.parse(model, strict.section(document, name, "parameters"), name)

    params, autoencoder = read(f"{FAMILY}.train", TrainParams), read(f"{FAMILY}.autoencoder", AutoencoderParams)
    channels = strict.section(document, f"clips.{document['families'][FAMILY]['clips']}", "parameters")["channels"]
    spec = strict.section(document, f"spectrogram.{FAMILY}", "parameters")
    frames = strict.section(document, f"{FAMILY}.latents", "parameters")["num_samples"] // autoencoder.samples_per_latent
    net = build_net(params, autoencoder.encoder.latent_channels, frames, num_labels=0)
    return {"unet": net, "autoencoder": codecs.network(autoencoder, spec, channels)}


def save(model: DiffusionAE, inputs: Path, directory: Path, facts: dict[str, Any]) -> None:
    """Write the checkpoint into `directory` (made anew), with a copy of the autoencoder in `inputs`; `facts` are for people."""
    directory.mkdir(parents=True)
    weights.write(model.net.state_dict(), directory / WEIGHTS)
    shutil.copytree(inputs / AUTOENCODER, directory / AUTOENCODER, copy_function=shutil.copyfile)
    write_config(directory, FAMILY, model.params, facts, frames=model.frames, labels=list(model.labels))


def load(directory: Path) -> DiffusionAE:
    """Rebuild a model from its directory alone; one that does not fit this code is a UserError that says where."""
    config = read_config(directory, FAMILY, ("params", "frames", "labels"))
    params, codec = read_part(TrainParams, config, "params", directory), codecs.load(directory / AUTOENCODER)
    net = build_net(params, codec.latent_channels, config["frames"], len(config["labels"]))
    return DiffusionAE(params, weights.fill(net, directory / WEIGHTS), codec, config["frames"], config["labels"])
