"""The mel autoencoder: log-mels to latents and back, by diffusers' AutoencoderKL (Rombach et al. 2022, as AudioLDM has it)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from soundmill.models.components.contracts import Kind, Made
from soundmill.models.components.mel_autoencoder.params import AutoencoderParams


def _make(params: AutoencoderParams, ctx: Any, clips: Path, mels: Path, catalog: Path) -> Made:
    from soundmill.models.components.mel_autoencoder import making

    return making.make(params, ctx, mels, catalog)


def _load(directory: Path) -> Any:
    from soundmill.models.components.mel_autoencoder import autoencoder

    return autoencoder.load(directory)


def _network(params: AutoencoderParams, spec: dict[str, Any]) -> Any:
    from soundmill.models.components.mel_autoencoder import autoencoder

    return autoencoder.build_autoencoder(params.network)


KIND = Kind(AutoencoderParams, _make, _load, _network)
