"""OpenL3 (Cramer et al. 2019, trained on AudioSet's environmental or music videos), with torchopenl3's weights."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, pad, relu
from torch.nn.utils import fuse_conv_bn_eval

from soundmill.errors import UserError
from soundmill.evaluation.embedders.base import Embedder, Embeddings, in_batches
from soundmill.training import torch_weights
from soundmill.training.device import pick_device

SAMPLE_RATE = 48_000
WINDOW = SAMPLE_RATE  # samples
WINDOWS_AT_ONCE = 8  # 300 MB of activations
TRANSFORM = ("speclayer.dft_real_kernels", "speclayer.dft_imag_kernels")  # of a checkpoint; torch.stft computes it

FFT, HOP = 2048, 242  # samples
PADDING = 982  # zeros on either side of a window
BANDS, DIMENSIONS = 256, 512
WIDTHS = (1, 64, 64, 128, 128, 256, 256, 512)
POOLED = (2, 4, 6)  # convolutions that a maximum over 2 × 2 follows
AMIN = 1e-10  # smallest amplitude that the logarithm is taken of
RANGE = 80.0  # below the window's maximum; quieter values are raised to it


class OpenL3Embedder(Embedder):
    """512-d embeddings per window of one second every `hop` seconds; not a classifier, so logits are [N, 0].

    With two channels they are 1024-d: those of the left and of the right channel.
    """

    sample_rate = SAMPLE_RATE

    def __init__(self, name: str, path: Path, *, hop: float = 0.5, channels: int = 1):
        if not 1 / SAMPLE_RATE <= hop <= 60:
            raise UserError(f"{name}: a hop of {hop} seconds; it is between {1 / SAMPLE_RATE:.2g} and 60")
        if channels not in (1, 2):
            raise UserError(f"{name}: {channels} channels; it has 1 (sounds are mixed down) or 2")
        self.channels = channels
        self._hop = int(hop * SAMPLE_RATE)
        state = torch_weights.read_state(path, "torchopenl3")
        with torch.device("meta"):
            net = OpenL3()
        torch_weights.load_state(net, torch_weights.without_transform(state, TRANSFORM, FFT, path), path)
        self._net = net.eval().fused().to(pick_device("auto"), memory_format=torch.channels_last)

    def embed(self, waves: Sequence[np.ndarray]) -> Embeddings:
        frames = []
        for wave in waves:
            channels = [wave] if self.channels == 1 else list(wave)
            distinct = channels[:1] if len(channels) == 2 and np.array_equal(*channels) else channels
            cut = [windows(one, self._hop) for one in distinct]
            rows = [in_batches(self._net, some, WINDOWS_AT_ONCE, [DIMENSIONS])[0] for some in cut]
            frames.append(np.concatenate(rows * (len(channels) // len(rows)), axis=1))
        return Embeddings(frames, np.zeros((len(waves), 0), np.float32))


def windows(wave: np.ndarray, hop: int) -> np.ndarray:
    """Windows [P, 48000] every `hop` samples of a wave [T], the first centred on its beginning; P = 0 if T = 0.

    Zeros fill what lies before the wave and after it.
    """
    wave = np.asarray(wave, np.float32)
    if not len(wave):
        return np.zeros((0, WINDOW), np.float32)
    samples = WINDOW // 2 + len(wave)
    count = 1 + max(0, -(-(samples - WINDOW) // hop))
    padded = np.pad(wave, (WINDOW // 2, (count - 1) * hop + WINDOW - samples))
    return np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::hop]


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

    def fused(self) -> Self:
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
