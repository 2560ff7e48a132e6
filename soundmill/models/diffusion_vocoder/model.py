"""A trained model on disk: weights in safetensors, everything else in JSON; nothing in it runs code."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from soundmill import params as strict
from soundmill.audio.mel import log_mel
from soundmill.models.checkpoint import read_config, read_part, write_config
from soundmill.models.components.unet1d.vocoder.network import VocoderNet
from soundmill.models.components.unet1d.vocoder.vocoder import DiffusionVocoder
from soundmill.models.diffusion_vocoder.params import TrainParams
from soundmill.models.family import Run
from soundmill.training import weights
from soundmill.training.device import evaluating

FAMILY = "diffusion_vocoder"
WEIGHTS = "model.safetensors"
WINDOW_SECONDS = 10.0


@dataclass
class VocodingModel:
    """A `Model` (models/family.py) that reconstructs; each channel of a wave by itself."""

    params: TrainParams
    net: VocoderNet
    channels: int
    labels: tuple[str, ...] = ()
    condition: Literal["none"] = "none"

    @property
    def sample_rate(self) -> int:
        return self.params.mel.sample_rate

    @property
    def num_samples(self) -> int:
        """Of a window: a longer sound goes through it in several."""
        return round(WINDOW_SECONDS * self.sample_rate / self.params.mel.hop_length) * self.params.mel.hop_length

    @property
    def vocoder(self) -> DiffusionVocoder:
        return DiffusionVocoder(self.params.network, self.params.sampling, self.params.mel, self.net)

    def reconstruct(self, waves: Tensor, run: Run) -> Tensor:
        """Wave → log-mel → wave."""
        vocoder = replace(self.vocoder, sampling=run.sampling).to(run.device)
        log_mels = torch.from_numpy(log_mel(waves.flatten(0, 1).numpy(), self.params.mel))
        with torch.no_grad(), evaluating(self.net):
            made = torch.cat([vocoder.vocode(one[None].to(run.device)).cpu() for one in log_mels])
        made = made[..., : waves.shape[2]].reshape(waves.shape)
        return made / made.abs().amax((1, 2), keepdim=True).clamp_min(1)


def networks(document: dict[str, Any]) -> dict[str, nn.Module]:
    """As models/family.py says."""
    params = strict.parse(TrainParams, strict.section(document, f"{FAMILY}.train", "parameters"), f"{FAMILY}.train")
    return {"net": VocoderNet(params.network, params.mel)}


def save(model: VocodingModel, directory: Path, facts: dict[str, Any]) -> None:
    """Write the checkpoint into `directory` (made anew); `facts` are for people."""
    directory.mkdir(parents=True)
    weights.write(model.net.state_dict(), directory / WEIGHTS)
    write_config(directory, FAMILY, model.params, facts, channels=model.channels)


def load(directory: Path) -> VocodingModel:
    """Rebuild a model from its directory alone; one that does not fit this code is a UserError that says where."""
    config = read_config(directory, FAMILY, ("params", "channels"))
    params = read_part(TrainParams, config, "params", directory)
    return VocodingModel(params, weights.fill(VocoderNet(params.network, params.mel), directory / WEIGHTS), config["channels"])
