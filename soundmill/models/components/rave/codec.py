"""RAVE as a `Codec` (components/contracts.py): waves to the principal components of its posterior, and back.

On disk it is a directory: `model.safetensors`, and `config.json` with all else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from soundmill import hashing
from soundmill import params as strict
from soundmill.errors import UserError
from soundmill.models.components.rave.editing import Edit, edited
from soundmill.models.components.rave.network import RaveNet
from soundmill.models.components.rave.params import NetworkParams, RaveParams
from soundmill.training import weights

KIND = "rave"
CONFIG, WEIGHTS = "config.json", "model.safetensors"


class RaveConfig(BaseModel):
    """What `config.json` says."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    kind: Literal["rave"]
    network: NetworkParams
    sample_rate: int
    phase: Literal[1, 2]  # that the weights are of
    fidelity: float
    rank: int  # of the components, those that are kept
    scaling_factor: float = 1.0  # of codecs that have one: its components are of unit deviation as they are
    source: dict[str, Any]  # what came of its training
    digest: str  # of weights and constants


@dataclass
class RaveCodec:
    """The nets, in evaluation mode and float32. Latents are the first `rank` principal components, each of unit deviation."""

    network: NetworkParams
    sample_rate: int
    net: RaveNet
    phase: int
    fidelity: float
    rank: int
    scaling_factor: float = 1.0
    digest: str = field(default="")  # once it is saved
    channels: int = 1
    spec: None = None  # it has no log-mels

    @property
    def samples_per_latent(self) -> int:
        return self.network.samples_per_latent

    @property
    def samples_per_frame(self) -> int:
        return self.samples_per_latent

    def latent_shape(self, frames: int) -> tuple[int, int, int]:
        """(channels, frames, bands) of so many latents."""
        return self.rank, frames, 1

    @property
    def latent_rate(self) -> float:
        return self.sample_rate / self.samples_per_latent

    @property
    def latent_channels(self) -> int:
        return self.rank

    def to(self, device: torch.device | str) -> RaveCodec:
        self.net.to(device)
        return self

    @torch.no_grad()
    def components(self, waves: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of all principal components [N, latent_channels, ⌈T / samples_per_latent⌉] of waves [N, 1, T]."""
        if waves.shape[1] != 1:
            raise ValueError(f"waves of {waves.shape[1]} channels, and this codec takes one: give their mean")
        padded = F.pad(waves, (0, -waves.shape[2] % self.samples_per_latent))
        mean, deviation = self.net.posterior(self.net.pqmf.analysis(padded))
        turned = self.net.rotation / self.net.spread[:, None]
        return self.net.components_of(mean.float()), turned.square() @ deviation.float().square()

    def encode(self, waves: Tensor) -> Tensor:
        """Latents [N, rank, ⌈T / samples_per_latent⌉] of waves [N, 1, T]."""
        return self.components(waves)[0][:, : self.rank]

    @torch.no_grad()
    def decode(self, latents: Tensor, seed: int = 0) -> Tensor:
        """Waves [N, 1, T] in [−1, 1] of latents; what is left out of them, and noise, is drawn alike for each."""
        rng = torch.Generator().manual_seed(seed)
        count, known, length = latents.shape
        left_out = torch.randn(1, self.network.latent_channels - known, length, generator=rng).expand(count, -1, -1)
        whole = torch.cat([latents.float(), left_out.to(latents)], 1)
        noise = self.net.draw_noise(whole[:1].cpu(), rng) if self.phase == 2 else None
        noise = None if noise is None else noise.expand(count, -1, -1, -1).to(whole)
        made = self.net.decoder(self.net.latents_of(whole), noise)
        return self.net.pqmf.synthesis(made).clamp(-1, 1)

    def through(self, waves: Tensor, edits: Sequence[Edit], seed: int = 0) -> Tensor:
        """Waves [N, 1, T], as long as they were, by way of their latents with these changes."""
        return self.decode(edited(self.encode(waves), edits), seed)[..., : waves.shape[2]]

    def posterior(self, waves: Sequence[np.ndarray], num_samples: int) -> Tensor:
        """As components/contracts.py says: [N, 2, rank, num_samples / samples_per_latent, 1]."""
        if num_samples % self.samples_per_latent:
            nearest = num_samples // self.samples_per_latent * self.samples_per_latent
            raise UserError(
                f"num_samples {num_samples} must be a multiple of {self.samples_per_latent}, the samples of a latent: "
                f"{nearest} or {nearest + self.samples_per_latent}"
            )
        padded = np.stack([np.pad(wave[:, :num_samples], ((0, 0), (0, max(0, num_samples - wave.shape[1])))) for wave in waves])
        mean, variance = self.components(torch.from_numpy(padded.astype(np.float32)).to(self.net.center.device))
        return torch.stack([mean[:, : self.rank], variance[:, : self.rank].log()], 1)[..., None]


def network(params: RaveParams, spec: dict[str, Any]) -> RaveNet:
    """As it is trained: weights of the norms count."""
    return RaveNet(params.network).with_norms()


def save(model: RaveCodec, directory: Path, source: dict[str, Any]) -> dict[str, Any]:
    """Write the directory (made anew); returns the digest that tells this codec from others. `source`: plain values."""
    directory.mkdir(parents=True)
    weights.write(model.net.state_dict(), directory / WEIGHTS, {"format": "pt"})
    values = {
        "kind": KIND,
        "network": model.network.model_dump(mode="json"),
        **{name: getattr(model, name) for name in ("sample_rate", "phase", "fidelity", "rank", "scaling_factor")},
    }
    model.digest = hashing.digest(values, {WEIGHTS: hashing.file_digest(directory / WEIGHTS)})
    weights.write_json(values | {"source": source, "digest": model.digest}, directory / CONFIG)
    return {"digest": model.digest}


def load(directory: Path) -> RaveCodec:
    """The codec that `save` wrote; weights of another architecture are a UserError."""
    path = directory / CONFIG
    saved = strict.parse(RaveConfig, weights.read_json(path, "autoencoder"), str(path))
    net = weights.fill(RaveNet(saved.network), directory / WEIGHTS)
    constants = {name: getattr(saved, name) for name in ("sample_rate", "phase", "fidelity", "rank", "scaling_factor", "digest")}
    return RaveCodec(saved.network, net=net, **constants)
