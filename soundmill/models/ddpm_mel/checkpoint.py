"""A trained model of this family on disk: weights in safetensors, everything else in JSON; nothing in it runs code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from soundmill import params as strict
from soundmill.audio.mel import MelSpec
from soundmill.models import registry
from soundmill.models.ddpm_mel.params import TrainParams
from soundmill.models.ddpm_mel.picture import PictureCodec
from soundmill.models.ddpm_mel.residual import ResidualUNet
from soundmill.models.ddpm_mel.unet import UNet
from soundmill.training import weights

FAMILY = "ddpm_mel"
WEIGHTS = "model.safetensors"


@dataclass
class Model:
    """All that sampling needs; `net` carries the averaged weights.

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

    @property
    def num_samples(self) -> int:
        return self.picture.num_samples

    def condition(self, labels: list[str]) -> Tensor:
        """Label weights [num_labels]: equal shares, summing to 1; all zero for no label (or none the model knows)."""
        return label_weights(labels, self.labels)


def label_weights(labels: list[str], known: list[str]) -> Tensor:
    weights = torch.zeros(len(known))
    for label in set(labels) & set(known):
        weights[known.index(label)] = 1
    return weights / weights.sum().clamp_min(1)


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
    """The interface of models/registry.py; without labels, each of which adds an embedding."""
    params = strict.parse(TrainParams, strict.section(document, f"{FAMILY}.train", "parameters"), f"{FAMILY}.train")
    return {"unet": build_net(params, num_labels=0)}


def save(model: Model, directory: Path, facts: dict[str, Any]) -> None:
    """Write the checkpoint into `directory` (made anew); `facts` are added to its config for people to read."""
    directory.mkdir(parents=True)
    tensors = {f"net.{name}": value for name, value in model.net.state_dict().items()}
    tensors |= {f"picture.{name}": value for name, value in model.picture.state_dict().items()}
    weights.write(tensors | {"levels": model.levels, "level_labels": model.level_labels}, directory / WEIGHTS)
    registry.write_config(directory, FAMILY, model.params, facts, labels=model.labels, mel_spec=model.spec.model_dump(mode="json"))


def load(directory: Path) -> Model:
    """Rebuild a model from its directory alone; one that does not fit this code is a UserError that says where."""
    config = registry.checkpoint_config(directory, FAMILY, ("params", "mel_spec", "labels"))
    params = registry.checkpoint_part(TrainParams, config, "params", directory)
    spec = registry.checkpoint_part(MelSpec, config, "mel_spec", directory)
    labels = config["labels"]
    net, picture = build_net(params, len(labels)), PictureCodec(params.picture, spec)
    tensors = weights.read(directory / WEIGHTS)
    with weights.must_fit(directory / WEIGHTS):
        net.load_state_dict(_below(tensors, "net."))
        picture.load_state_dict(_below(tensors, "picture."))
        levels, level_labels = tensors["levels"], tensors["level_labels"]
    return Model(params, spec, labels, net.eval(), picture.eval(), levels, level_labels)


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
