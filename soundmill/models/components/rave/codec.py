"""RAVE as a `Codec` (components/contracts.py): encodes waves to the principal components of its posterior, and decodes them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from soundmill.errors import UserError
from soundmill.models.components.contracts import CodecConfig, OnItsDevice
from soundmill.models.components.rave import NetworkParams, RaveParams
from soundmill.models.components.rave.network import RaveNet
from soundmill.models.components.waves.sounding import padded
from soundmill.training import checkpoint

CONSTANTS = ("sample_rate", "phase", "fidelity", "rank", "scaling_factor")
EDIT = re.compile(r"(\d{1,6})=([+*]?)([+-]?\d{1,12}(?:\.\d{0,12})?(?:e[+-]?\d{1,2})?)", re.IGNORECASE)
LARGEST = torch.finfo(torch.float32).max


class Edit(NamedTuple):
    """A manual edit of latents before decoding."""

    dimension: int  # 0: the component with the largest variance
    how: Literal["", "+", "*"]
    value: float


def parse_edits(texts: Sequence[str], count: int) -> list[Edit]:
    """Parse `0=1.5` (set), `0=+0.5` (add) or `0=*2` (multiply) for one of `count` latents; UserError for anything else."""
    edits = []
    for text in texts:
        match = EDIT.fullmatch(text.strip())
        if not match:
            raise UserError(
                f"--latent {text[:100]!r}: write DIM=VALUE to set a latent, DIM=+VALUE to add to it, DIM=*VALUE to scale it"
            )
        if int(match[1]) >= count:
            raise UserError(f"--latent {text[:100]!r}: this model has latents 0 to {count - 1}, ordered by variance")
        value = float(match[3])
        if abs(value) > LARGEST:
            raise UserError(f"--latent {text[:100]!r}: {value:g} is beyond {LARGEST:.3g}; latents have unit deviation")
        edits.append(Edit(int(match[1]), match[2], value))
    return edits


def edited(latents: Tensor, edits: Sequence[Edit]) -> Tensor:
    """Latents [N, count, T] with the edits applied in order."""
    result = latents.clone()
    for dimension, how, value in edits:
        if how == "":
            result[:, dimension] = value
        elif how == "+":
            result[:, dimension] += value
        else:
            result[:, dimension] *= value
    return result


class RaveConfig(CodecConfig):
    kind: Literal["rave"]
    network: NetworkParams
    sample_rate: int
    phase: Literal[1, 2]  # in which the weights were trained
    fidelity: float
    rank: int  # number of components kept
    scaling_factor: float = 1.0  # always 1: the components have unit deviation


@dataclass
class RaveCodec(OnItsDevice):
    """The network, in evaluation mode and float32. Latents are the first `rank` principal components, with unit deviation."""

    network: NetworkParams
    sample_rate: int
    net: RaveNet
    phase: int
    fidelity: float
    rank: int
    scaling_factor: float = 1.0
    digest: str = field(default="")  # set when saved
    channels: int = 1
    spec: None = None  # uses no log-mels

    @property
    def samples_per_latent(self) -> int:
        return self.network.samples_per_latent

    @property
    def samples_per_frame(self) -> int:
        return self.samples_per_latent

    def latent_shape(self, frames: int) -> tuple[int, int, int]:
        """Shape (channels, frames, bands) of `frames` latents."""
        return self.rank, frames, 1

    @property
    def latent_rate(self) -> float:
        return self.sample_rate / self.samples_per_latent

    @property
    def latent_channels(self) -> int:
        return self.rank

    @property
    def noisy(self) -> bool:
        """Whether the decoder uses its noise branch, if it has one."""
        return self.phase == 2 or self.network.pca

    def config(self, source: dict[str, Any]) -> RaveConfig:
        constants = {name: getattr(self, name) for name in CONSTANTS}
        return RaveConfig(kind="rave", network=self.network, source=source, digest=self.digest, **constants)

    @torch.no_grad()
    def components(self, waves: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of all principal components [N, latent_channels, ⌈T / samples_per_latent⌉] of waves [N, 1, T]."""
        if waves.shape[1] != 1:
            raise ValueError(f"waves of {waves.shape[1]} channels, but this codec takes one: give their mean")
        whole = F.pad(waves, (0, -waves.shape[2] % self.samples_per_latent))
        mean, deviation = self.net.posterior(self.net.pqmf.analysis(whole))
        scaled_rotation = self.net.rotation / self.net.spread[:, None]
        return self.net.components_of(mean.float()), scaled_rotation.square() @ deviation.float().square()

    def encode(self, waves: Tensor) -> Tensor:
        """Latents [N, rank, ⌈T / samples_per_latent⌉] of waves [N, 1, T]."""
        return self.components(waves)[0][:, : self.rank]

    @torch.no_grad()
    def decode(self, latents: Tensor, seed: int = 0) -> Tensor:
        """Waves [N, 1, T] in [−1, 1] from latents; every item gets the same random components left out and the same noise."""
        rng = torch.Generator().manual_seed(seed)
        count, rank, length = latents.shape
        left_out = torch.randn(1, self.network.latent_channels - rank, length, generator=rng).expand(count, -1, -1)
        components = torch.cat([latents.float(), left_out.to(latents)], 1)
        noise = self.net.draw_noise(components[:1].cpu(), rng) if self.noisy else None
        noise = None if noise is None else noise.expand(count, -1, -1, -1).to(components)
        bands = self.net.decoder(self.net.latents_of(components), noise)
        return self.net.pqmf.synthesis(bands).clamp(-1, 1)

    def edit(self, waves: Tensor, edits: Sequence[Edit], seed: int = 0) -> Tensor:
        """Encode waves [N, 1, T], edit the latents and decode them; same length."""
        return self.decode(edited(self.encode(waves), edits), seed)[..., : waves.shape[2]]

    def posterior(self, waves: Sequence[np.ndarray], num_samples: int) -> Tensor:
        """See components/contracts.py: [N, 2, rank, num_samples / samples_per_latent, 1]."""
        whole = padded(waves, num_samples, self.samples_per_latent)
        mean, variance = self.components(whole.to(self.net.center.device))
        return torch.stack([mean[:, : self.rank], variance[:, : self.rank].log()], 1)[..., None]


def network(params: RaveParams, spec: dict[str, Any], channels: int = 1) -> RaveNet:
    """The network as trained, so that the parameters of weight normalisation count."""
    return RaveNet(params.network).with_norms()


def load(directory: Path) -> RaveCodec:
    saved = checkpoint.load_config(directory, RaveConfig, "autoencoder")
    net = checkpoint.load_weights(lambda: RaveNet(saved.network), directory / checkpoint.WEIGHTS)
    return RaveCodec(saved.network, net=net, digest=saved.digest, **{name: getattr(saved, name) for name in CONSTANTS})
