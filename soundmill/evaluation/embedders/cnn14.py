"""Cnn14, the network of PANNs (Kong et al. 2020, arXiv:1912.10211)."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, relu
from torch.nn.utils import fuse_conv_bn_eval

BANDS, DIMENSIONS, CLASSES = 64, 2048, 527
WIDTHS = (1, 64, 128, 256, 512, 1024, 2048)
AMIN = 1e-10  # smallest power that the logarithm is taken of


class Cnn14(nn.Module):
    """Waves [N, T] → embeddings [N, 2048] and logits [N, 527]; its state has PANNs' names."""

    def __init__(self, window: int, hop: int) -> None:
        super().__init__()
        self.window, self.hop = window, hop
        self.logmel_extractor = nn.ParameterDict({"melW": torch.empty(window // 2 + 1, BANDS)})
        self.bn0 = nn.BatchNorm2d(BANDS)
        for number, (width, wider) in enumerate(itertools.pairwise(WIDTHS), 1):
            setattr(self, f"conv_block{number}", Block(width, wider))
        self.fc1 = nn.Linear(WIDTHS[-1], DIMENSIONS)
        self.fc_audioset = nn.Linear(DIMENSIONS, CLASSES)

    def fused(self) -> Cnn14:
        """The same network with every BatchNorm fused into the convolution before it."""
        for number in range(1, len(WIDTHS)):
            block = getattr(self, f"conv_block{number}")
            for part in ("1", "2"):
                convolution, norm = getattr(block, f"conv{part}"), getattr(block, f"bn{part}")
                setattr(block, f"conv{part}", fuse_conv_bn_eval(convolution, norm))
                setattr(block, f"bn{part}", nn.Identity())
        return self

    def forward(self, waves: Tensor) -> tuple[Tensor, Tensor]:
        x = self.bn0(self.log_mel(waves).transpose(1, 2)[..., None])  # [N, 64, frames, 1]: normalised per band
        x = x.transpose(1, 3).contiguous(memory_format=torch.channels_last)  # [N, 1, frames, 64]
        for number in range(1, len(WIDTHS)):
            x = getattr(self, f"conv_block{number}")(x)
            if number < len(WIDTHS) - 1:
                x = avg_pool2d(x, 2)
        x = x.mean(dim=3)
        embedding = relu(self.fc1(x.amax(dim=2) + x.mean(dim=2)))
        return embedding, self.fc_audioset(embedding)

    def log_mel(self, waves: Tensor) -> Tensor:
        """10·log10 of mel powers, [N, frames, 64]; centred frames, reflected at the ends, periodic Hann window."""
        window = torch.hann_window(self.window, device=waves.device)
        spectra = torch.stft(waves, self.window, self.hop, window=window, pad_mode="reflect", return_complex=True)
        powers = (spectra.real**2 + spectra.imag**2).transpose(1, 2)
        return 10 * torch.log10((powers @ self.logmel_extractor["melW"]).clamp_min(AMIN))


class Block(nn.Module):
    def __init__(self, width: int, wider: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, wider, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(wider, wider, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(wider)
        self.bn2 = nn.BatchNorm2d(wider)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.bn1(self.conv1(x)), inplace=True)
        return relu(self.bn2(self.conv2(x)), inplace=True)
