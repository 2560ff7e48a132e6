"""Oobleck: the autoencoder of waves of Stable Audio (Evans et al. 2024); diffusers' AutoencoderOobleck."""

from soundmill.models.components.contracts import Kind
from soundmill.models.components.oobleck.params import OobleckParams

SOUNDING = "soundmill.models.components.waves.sounding"
KIND = Kind(OobleckParams, maker=f"{__name__}.make", component=f"{__name__}.codec", sounding=SOUNDING)
