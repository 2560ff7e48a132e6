"""Oobleck: the autoencoder of waves of Stable Audio (Evans et al. 2024); diffusers' AutoencoderOobleck."""

from soundmill.models.components.oobleck.params import OobleckParams
from soundmill.models.components.waves.kind import wave_codec

KIND = wave_codec(__name__, OobleckParams, pretrained=True)
