"""MelGAN (Kumar et al. 2019, arXiv:1910.06711): a vocoder trained against discriminators of several scales."""

from soundmill.models.components.contracts import Kind
from soundmill.models.components.melgan.params import MelGanParams

KIND = Kind(MelGanParams, maker=f"{__name__}.make", component=f"{__name__}.vocoder")
