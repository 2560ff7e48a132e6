"""The diffusion autoencoder: an encoder of mels, and a U-Net that diffuses waves given the latents (Schneider et al. 2023)."""

from soundmill.models.components.contracts import Kind
from soundmill.models.components.unet1d.codec.params import AutoencoderParams

KIND = Kind(AutoencoderParams, maker=f"{__name__}.make", component=f"{__name__}.codec")
