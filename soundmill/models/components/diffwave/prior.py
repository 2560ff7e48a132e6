"""Noise with the spectral envelope of the log-mel as the prior of a diffusion.

PriorGrad (Lee et al. 2022) starts from noise with the variance of each frame, and weights the loss by the inverse of it; SpecGrad
(Koizumi et al. 2022) gives the noise the spectral envelope of each frame. Here the waves are divided by the envelope (`whitened`),
noise and loss are DiffWave's, and the result is multiplied by the envelope (`filtered`): the same process in other coordinates, in
which quiet frames and bands are as large as loud ones. With an envelope of 1 it is DiffWave.
"""

import math

import numpy as np
import torch
from torch import Tensor

from soundmill.audio import mel
from soundmill.audio.invert import mel_to_linear
from soundmill.audio.mel import MelSpec, mel_filterbank

RANGE = 1e-3  # of a frame's envelope: 60 dB; a lower floor would amplify the leakage of the window


def envelope(log_mels: Tensor, spec: MelSpec) -> Tensor:
    """The factor of each bin that gives white noise of unit variance these log-mels: [N, bins, frames] of [N, n_mels, frames].

    Bins outside all bands have the factor of the nearest band.
    """
    magnitude = mel_to_linear(log_mels, spec)
    covered = mel_filterbank(spec).sum(1).nonzero()[:, 0]
    bins = torch.arange(magnitude.shape[1]).clamp(int(covered[0]), int(covered[-1])).to(magnitude.device)
    of_noise = torch.hann_window(spec.win_length).square().sum().sqrt()
    if spec.power == 1.0:
        of_noise = of_noise * math.sqrt(math.pi) / 2  # the mean of a Rayleigh distribution, whose mean square is 1
    factors = magnitude[:, bins] / of_noise.to(magnitude)
    return torch.maximum(factors, RANGE * factors.amax(1, keepdim=True))


def filtered(waves: Tensor, factors: Tensor, spec: MelSpec) -> Tensor:
    """Waves [N, T] whose STFT is multiplied by `factors` [N, bins, 1 + T // hop_length]."""
    window = torch.hann_window(spec.win_length, device=waves.device)
    sizes = {"n_fft": spec.n_fft, "hop_length": spec.hop_length, "win_length": spec.win_length, "window": window}
    padding = "reflect" if waves.shape[1] > spec.n_fft // 2 else "constant"
    bins = torch.stft(waves, **sizes, pad_mode=padding, return_complex=True)
    return torch.istft(bins * factors, **sizes, length=waves.shape[1])


def whitened(wave: np.ndarray, spec: MelSpec) -> np.ndarray:
    """The wave [T], with mean and peak as in `spec`, divided by the envelope of its log-mel."""
    samples, log_mels = torch.from_numpy(mel.levelled(wave, spec)), torch.from_numpy(mel.log_mel(wave, spec))
    return filtered(samples[None], 1 / envelope(log_mels[None], spec), spec)[0].numpy()
