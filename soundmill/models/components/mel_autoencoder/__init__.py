"""The mel autoencoder: diffusers' AutoencoderKL on log-mels (Rombach et al. 2022; as in AudioLDM)."""

from soundmill.models.components.contracts import Kind
from soundmill.models.components.mel_autoencoder.params import AutoencoderParams

KIND = Kind(AutoencoderParams, maker=f"{__name__}.make", component=f"{__name__}.autoencoder", sounding=f"{__name__}.codec")
