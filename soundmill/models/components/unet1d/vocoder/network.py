"""The vocoder's network: a U-Net on the noisy wave and a transposed convolution of the log-mel."""

import torch.nn.functional as F
from torch import Tensor, nn

from soundmill.audio.mel import MelSpec, of_unit_peak
from soundmill.models.components.unet1d.network import UNet1d
from soundmill.models.components.unet1d.params import NO_TRANSFORM, UNet1dParams

LOWEST = -11.512925464970229  # ln 1e-5: lower limit of ln magnitudes


class VocoderNet(nn.Module):
    """v [N, 1, T] of noisy waves [N, 1, T] at levels [N], given log-mels [N, n_mels, frames]; T is frames · hop_length.

    The channels of a wave are separate items of a batch.
    """

    def __init__(self, params: UNet1dParams, spec: MelSpec):
        super().__init__()
        self.spec, self.stride = spec, params.stride
        padding = max(0, spec.win_length - spec.hop_length) // 2
        window = {"kernel_size": spec.win_length, "stride": spec.hop_length, "padding": padding, "bias": False}
        self.to_wave = nn.ConvTranspose1d(spec.n_mels, 1, **window)
        self.unet = UNet1d(params, NO_TRANSFORM, 2, 1)

    def forward(self, xt: Tensor, level: Tensor, log_mels: Tensor) -> Tensor:
        return self.denoise(xt, level, self.prepare(log_mels))

    def prepare(self, log_mels: Tensor) -> Tensor:
        """The input of `denoise` from log-mels, [N, 1, T], which is the same at every level.

        Log-mels are first converted to magnitudes in bands of unit peak.
        """
        length = log_mels.shape[2] * self.spec.hop_length
        log_mels = of_unit_peak(log_mels, self.spec) / self.spec.power
        wave = self.to_wave(log_mels.clamp_min(LOWEST))[..., :length]
        return F.pad(wave, (0, length - wave.shape[2]))

    def denoise(self, xt: Tensor, level: Tensor, prepared: Tensor) -> Tensor:
        length = xt.shape[2]
        padding = (0, -length % self.stride)  # silence, so that every level has whole frames
        return self.unet(F.pad(xt, padding), level, beside=F.pad(prepared, padding))[..., :length]
