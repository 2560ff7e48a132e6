"""Parameters of the diffusion vocoder."""

from __future__ import annotations

from typing import Literal

from soundmill.models.components.unet1d.params import SamplingParams, UNet1dParams
from soundmill.models.components.vocoder_params import CropsParams, NetVocoderParams


class DiffusionVocoderParams(NetVocoderParams):
    kind: Literal["unet1d"]
    network: UNet1dParams
    weights: CropsParams
    sampling: SamplingParams
