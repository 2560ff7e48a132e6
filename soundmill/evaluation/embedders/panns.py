"""Cnn14 of PANNs (Kong et al. 2020), pretrained on AudioSet (527 classes), for sounds of 16 and of 32 kHz."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import _reconstruct
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, relu
from torch.nn.utils import fuse_conv_bn_eval

from soundmill.errors import UserError
from soundmill.evaluation.embedders.base import Embeddings
from soundmill.training import weights
from soundmill.training.device import full_precision, pick_device

BANDS, DIMENSIONS, CLASSES = 64, 2048, 527
WIDTHS = (1, 64, 128, 256, 512, 1024, 2048)
AMIN = 1e-10  # of the power that is taken the logarithm of
SHORTEST = 2.0  # seconds; a shorter wave is followed by silence, as audioldm_eval has it
SECONDS_AT_ONCE = 80.0  # of waves that run through the net together: 400 MB of features
# The tensors of a checkpoint that stand for the transform itself, not for what was learnt.
TRANSFORM = ("spectrogram_extractor.stft.conv_real.weight", "spectrogram_extractor.stft.conv_imag.weight")
# What else than tensors is in the file for 16 kHz: the state of its sampler, in arrays of numpy.
NUMPY = (
    (_reconstruct, "numpy.core.multiarray._reconstruct"),  # as older versions called it
    np.ndarray,
    np.dtype,
    type(np.dtype(np.int64)),
)


@dataclass(frozen=True)
class Variant:
    """What the two nets differ in."""

    sample_rate: int
    window: int  # samples; the FFT is as long
    hop: int


VARIANTS = {"panns_cnn14_16k": Variant(16_000, 512, 160), "panns_cnn14_32k": Variant(32_000, 1024, 320)}


class Cnn14Embedder:
    """One 2048-d embedding per wave, after the first fully connected layer and its ReLU, and 527 logits before the sigmoid."""

    def __init__(self, name: str, path: Path):
        self.name = name
        self._variant = VARIANTS[name]
        self.sample_rate = self._variant.sample_rate
        self._device = pick_device("auto")
        checkpoint = weights.read_checkpoint(path, NUMPY)
        state = checkpoint.get("model") if isinstance(checkpoint, dict) else None
        if not isinstance(state, dict):
            raise UserError(f"{path}: not a checkpoint of PANNs (no 'model' in it); fetch it again")
        state = _without_transform(state, self._variant, path)
        with torch.device("meta"):
            net = Cnn14(self._variant)
        weights.load_state(net, state, path)
        self._net = net.eval().fused().to(self._device, memory_format=torch.channels_last)

    def embed(self, waves: Sequence[np.ndarray]) -> Embeddings:
        shortest = round(SHORTEST * self.sample_rate)
        frames: list[np.ndarray] = [np.empty(0)] * len(waves)
        logits = np.zeros((len(waves), CLASSES), np.float32)
        lengths: dict[int, list[int]] = {}  # the mean and the maximum over time forbid to pad
        for index, wave in enumerate(waves):
            lengths.setdefault(max(shortest, len(wave)), []).append(index)
        with torch.inference_mode(), full_precision():
            for length, same in lengths.items():
                count = max(1, int(SECONDS_AT_ONCE * self.sample_rate / length))
                for start in range(0, len(same), count):
                    some = same[start : start + count]
                    batch = np.stack([np.pad(np.asarray(waves[i], np.float32), (0, length - len(waves[i]))) for i in some])
                    embeddings, scores = self._net(torch.from_numpy(batch).to(self._device))
                    logits[some] = scores.cpu().numpy()
                    for index, embedding in zip(some, embeddings.cpu().numpy(), strict=True):
                        frames[index] = embedding[None].copy()
        return Embeddings(frames, logits)


class Cnn14(nn.Module):
    """Waves [N, T] → embeddings [N, 2048] and logits [N, 527]; its state has the names of PANNs'."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.variant = variant
        self.logmel_extractor = nn.ParameterDict({"melW": torch.empty(variant.window // 2 + 1, BANDS)})
        self.bn0 = nn.BatchNorm2d(BANDS)
        for number, (width, wider) in enumerate(itertools.pairwise(WIDTHS), 1):
            setattr(self, f"conv_block{number}", Block(width, wider))
        self.fc1 = nn.Linear(WIDTHS[-1], DIMENSIONS)
        self.fc_audioset = nn.Linear(DIMENSIONS, CLASSES)

    def fused(self) -> Cnn14:
        """The same net with every BatchNorm made part of the convolution before it."""
        for number in range(1, len(WIDTHS)):
            block = getattr(self, f"conv_block{number}")
            for part in ("1", "2"):
                convolution, norm = getattr(block, f"conv{part}"), getattr(block, f"bn{part}")
                setattr(block, f"conv{part}", fuse_conv_bn_eval(convolution, norm))
                setattr(block, f"bn{part}", nn.Identity())
        return self

    def forward(self, waves: Tensor) -> tuple[Tensor, Tensor]:
        x = self.bn0(self.log_mel(waves).transpose(1, 2)[..., None])  # [N, 64, frames, 1]: a norm for every band
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
        window = torch.hann_window(self.variant.window, device=waves.device)
        spectra = torch.stft(waves, self.variant.window, self.variant.hop, window=window, pad_mode="reflect", return_complex=True)
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


def _without_transform(state: dict[str, Any], variant: Variant, path: Path) -> dict[str, Any]:
    """The state without the windowed Fourier transform, stored as convolutions, after checking that it is the one we compute."""
    samples = np.arange(variant.window)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * samples / variant.window)
    waves = window * np.exp(-2j * np.pi * np.outer(np.arange(variant.window // 2 + 1), samples) / variant.window)
    for key, wanted in zip(TRANSFORM, (waves.real, waves.imag), strict=True):
        weight = state.get(key)
        if not isinstance(weight, Tensor) or weight.shape != (len(wanted), 1, variant.window):
            raise UserError(f"{path}: {key} is not a transform of {variant.window} samples: weights for another sample rate?")
        if not np.allclose(weight[:, 0].numpy(), wanted, atol=1e-5):
            raise UserError(f"{path}: {key} is not the Fourier transform under a Hann window that this net takes")
    return {key: value for key, value in state.items() if key not in TRANSFORM}
