"""HiFi-GAN (Kong, Kim & Bae 2020, arXiv:2010.05646): a vocoder trained against discriminators, or loaded."""

from soundmill.models.components.contracts import Kind
from soundmill.models.components.hifigan.params import HifiGanParams

KIND = Kind(HifiGanParams, maker=f"{__name__}.make", component=f"{__name__}.vocoder")
