"""A vocoder by v-diffusion with the 1-D U-Net (Schneider et al. 2023, arXiv:2301.11757, and audio-diffusion-pytorch)."""

from soundmill.models.components.contracts import Kind
from soundmill.models.components.unet1d.vocoder.params import DiffusionVocoderParams

KIND = Kind(DiffusionVocoderParams, maker=f"{__name__}.make", component=f"{__name__}.vocoder")
