"""The mel autoencoder: log-mels to latents and back, by diffusers' AutoencoderKL (Rombach et al. 2022, as AudioLDM has it)."""

from __future__ import annotations

from soundmill.models.components.contracts import Kind
from soundmill.models.components.mel_autoencoder.params import AutoencoderParams

KIND = Kind(AutoencoderParams, making=f"{__name__}.making", component=f"{__name__}.autoencoder", sounding=f"{__name__}.codec")
