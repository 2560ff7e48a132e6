"""A vocoder by v-diffusion with the 1-D U-Net (Schneider et al. 2023, arXiv:2301.11757, and audio-diffusion-pytorch)."""

from typing import Literal

from soundmill.models.components.contracts import CropsParams, NetVocoderParams
from soundmill.models.components.unet1d.params import SamplingParams, UNet1dParams, UnitVariance


class WeightsParams(CropsParams):
    unit_variance: UnitVariance = False


class DiffusionVocoderParams(NetVocoderParams):
    kind: Literal["unet1d"]
    network: UNet1dParams
    weights: WeightsParams
    sampling: SamplingParams
