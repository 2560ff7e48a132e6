"""The audio network of OpenL3 (Cramer et al. 2019) on mel spectrograms of 256 bands, with embeddings of 512 dimensions."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, pad, relu
from torch.nn.utils import fuse_conv_bn_eval

WINDOW = 48_000  # samples, one second
FFT, HOP = 2048, 242  # samples
PADDING = 982  # zeros on either side of a window
BANDS, DIMENSIONS = 256, 512
WIDTHS = (1, 64, 64, 128, 128, 256, 256, 512)
POOLED = (2, 4, 6)  # convolutions that a maximum over 2 × 2 follows
AMIN = 1e-10  # smallest amplitude that the logarithm is taken of
RANGE = 80.0  # below the window's maximum; quieter values are raised to it


class OpenL3(nn.Module):
    """Windows [N, 48000] → embeddings [N, 512]; its state has torchopenl3's names."""

    def __init__(self) -> None:
        super().__init__()
        self.speclayer = nn.ParameterDict({"mel_basis": torch.empty(BANDS, FFT // 2 + 1)})
        self.batch_normalization_1 = nn.BatchNorm2d(1, eps=0.001)
        for number, (width, wider) in enumerate(itertools.pairwise(WIDTHS), 1):
            setattr(self, f"conv2d_{number}", nn.Conv2d(width, wider, 3, padding=1))
            setattr(self, f"batch_normalization_{number + 1}", nn.BatchNorm2d(wider, eps=0.001))
        self.audio_embedding_layer = nn.Conv2d(WIDTHS[-1], DIMENSIONS, 3, padding=1)

    def fused(self) -> OpenL3:
        """The same network with every BatchNorm but the first fused into the convolution before it."""
        for number in range(1, len(WIDTHS)):
            convolution, norm = f"conv2d_{number}", f"batch_normalization_{number + 1}"
            setattr(self, convolution, fuse_conv_bn_eval(getattr(self, convolution), getattr(self, norm)))
            setattr(self, norm, nn.Identity())
        return self

    def forward(self, windows: Tensor) -> Tensor:
        x = self.batch_normalization_1(self.log_mel(windows)[:, None])
        x = x.contiguous(memory_format=torch.channels_last)  # [N, 1, 256, 199]
        for number in range(1, len(WIDTHS)):
            x = relu(getattr(self, f"batch_normalization_{number + 1}")(getattr(self, f"conv2d_{number}")(x)), inplace=True)
            if number in POOLED:
                x = max_pool2d(x, 2)
        return self.audio_embedding_layer(x).amax(dim=(2, 3))  # over the [32, 24] that remain

    def log_mel(self, windows: Tensor) -> Tensor:
        """10·log10 of mel amplitudes relative to each window's maximum, [N, 256, 199]; periodic Hann window.

        In float64: rounding in a float32 FFT is louder than the quietest amplitudes that count, 1e-8 of the loudest.
        """
        window = torch.hann_window(FFT, dtype=torch.float64, device=windows.device)
        padded = pad(windows.double(), (PADDING, PADDING))
        spectra = torch.stft(padded, FFT, HOP, window=window, center=False, return_complex=True)
        amplitudes = (self.speclayer["mel_basis"].double() @ (spectra.real**2 + spectra.imag**2)).sqrt()
        decibels = 10 * torch.log10(amplitudes.clamp_min(AMIN))
        return (decibels - decibels.amax(dim=(1, 2), keepdim=True)).clamp_min(-RANGE).float()
