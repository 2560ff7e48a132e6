"""A trained model, and how it lies on disk: weights in safetensors, everything else in JSON; nothing in it runs code."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from soundmill import params as strict
from soundmill.audio.mel import MelSpec, log_mel
from soundmill.models import registry
from soundmill.models.checkpoint import read_config, read_part, write_config
from soundmill.models.components import vocoding
from soundmill.models.components.contracts import Vocoder
from soundmill.models.components.griffin_lim.vocoder import GriffinLim
from soundmill.models.ddpm_mel.params import TrainParams
from soundmill.models.ddpm_mel.picture import PictureCodec
from soundmill.models.ddpm_mel.residual import ResidualUNet
from soundmill.models.ddpm_mel.sample import sample_log_mels
from soundmill.models.ddpm_mel.unet import UNet
from soundmill.models.family import Request, Run
from soundmill.models.labels import label_weights
from soundmill.training import weights

FAMILY = "ddpm_mel"
WEIGHTS, VOCODER = "model.safetensors", "vocoder"


@dataclass
class DdpmMel:
    """A `Model` (models/family.py); `net` carries the averaged weights.

    `levels` [N] are the training clips' picture levels and `level_labels` [N, num_labels] their label weights: a generated
    clip draws its level from them (one row, unused, when the level is absolute).
    """

    params: TrainParams
    spec: MelSpec
    labels: list[str]
    net: nn.Module
    picture: PictureCodec
    levels: Tensor
    level_labels: Tensor
    vocoder: Vocoder | None = None  # none: Griffin-Lim
    channels: int = 1

    @property
    def sample_rate(self) -> int:
        return self.spec.sample_rate

    @property
    def num_samples(self) -> int:
        return self.picture.num_samples

    @property
    def condition(self) -> Literal["labels", "none"]:
        return "labels" if self.labels else "none"

    def generate(self, requests: Sequence[Request], run: Run) -> Tensor:
        """Noise → latents → log-mels → waves; a request's labels share the condition equally."""
        conditions = torch.stack([label_weights(request.labels, self.labels) for request in requests])
        seeds = [request.seed for request in requests]
        return self._to_waves(sample_log_mels(self, conditions, seeds, run), run, seeds)

    def reconstruct(self, waves: Tensor, run: Run) -> Tensor:
        """Wave → log-mel → picture → log-mel → wave."""
        length = waves.shape[2]
        fitted = torch.nn.functional.pad(waves.mean(1), (0, max(0, self.num_samples - length)))[:, : self.num_samples]
        picture = self.picture.cpu()
        with torch.no_grad():
            rebuilt = picture.decode(*picture.encode(torch.from_numpy(log_mel(fitted.numpy(), self.spec))))
        return self._to_waves(rebuilt, run)[..., :length]

    def _to_waves(self, log_mels: Tensor, run: Run, seeds: Sequence[int] = ()) -> Tensor:
        vocoder = self.vocoder or GriffinLim(self.spec, run.sampling)
        return vocoding.to_waves(vocoder, log_mels, run.device, self.num_samples, seeds)


def build_net(params: TrainParams, num_labels: int) -> nn.Module:
    """The net of the parameters, initialised from torch's global generator: (xt, t, label weights) → prediction."""
    network, picture = params.network, params.picture
    sizes = (network.widths, network.attention_levels, network.heads, network.embedding_size, num_labels)
    channels, rows, columns = (
        picture.patch[0] * picture.patch[1],
        picture.height // picture.patch[0],
        picture.width // picture.patch[1],
    )
    if network.kind == "unet":
        net = UNet(channels, *sizes)
    else:
        net = ResidualUNet((channels, rows, columns), *sizes, blocks=network.blocks, dropout=network.dropout)
    return net.to(memory_format=torch.channels_last) if network.channels_last else net


def networks(document: dict[str, Any]) -> dict[str, nn.Module]:
    """As models/family.py says; without labels, each of which adds an embedding."""
    params = strict.parse(TrainParams, strict.section(document, f"{FAMILY}.train", "parameters"), f"{FAMILY}.train")
    return {"unet": build_net(params, num_labels=0), **registry.vocoder_network(document, FAMILY)}


def save(model: DdpmMel, parts: Path, directory: Path, facts: dict[str, Any]) -> None:
    """Write the checkpoint into `directory` (made anew), with a copy of the vocoder in `parts`, the directory that the training
    took; `facts` are added to its config for people to read."""
    directory.mkdir(parents=True)
    if model.vocoder:
        shutil.copytree(parts / VOCODER, directory / VOCODER, copy_function=shutil.copyfile)
    tensors = {f"net.{name}": value for name, value in model.net.state_dict().items()}
    tensors |= {f"picture.{name}": value for name, value in model.picture.state_dict().items()}
    weights.write(tensors | {"levels": model.levels, "level_labels": model.level_labels}, directory / WEIGHTS)
    write_config(directory, FAMILY, model.params, facts, labels=model.labels, mel_spec=model.spec.model_dump(mode="json"))


def load(directory: Path) -> DdpmMel:
    """Rebuild a model from its directory alone; one that does not fit this code is a UserError that says where."""
    config = read_config(directory, FAMILY, ("params", "mel_spec", "labels"))
    params = read_part(TrainParams, config, "params", directory)
    spec = read_part(MelSpec, config, "mel_spec", directory)
    labels = config["labels"]
    net, picture = build_net(params, len(labels)), PictureCodec(params.picture, spec)
    tensors = weights.read(directory / WEIGHTS)
    with weights.must_fit(directory / WEIGHTS):
        net.load_state_dict(_below(tensors, "net."))
        picture.load_state_dict(_below(tensors, "picture."))
        levels, level_labels = tensors["levels"], tensors["level_labels"]
    return DdpmMel(params, spec, labels, net.eval(), picture.eval(), levels, level_labels, load_vocoder(directory, spec))


def load_vocoder(directory: Path, spec: MelSpec) -> Vocoder | None:
    """The vocoder in `directory`, None where there is none; one for other log-mels than `spec`'s is a UserError."""
    return registry.load_vocoder(directory / VOCODER, spec) if (directory / VOCODER).is_dir() else None


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
