"""Parameters of the diffusion vocoder."""

from typing import Literal

from soundmill.models.components.unet1d.params import SamplingParams, UNet1dParams, UnitVariance
from soundmill.models.components.vocoder_params import CropsParams, NetVocoderParams


class WeightsParams(CropsParams):
    unit_variance: UnitVariance = False


class DiffusionVocoderParams(NetVocoderParams):
    kind: Literal["unet1d"]
    network: UNet1dParams
    weights: WeightsParams
    sampling: SamplingParams
