"""Networks of PANNs (Kong et al. 2020, arXiv:1912.10211), pretrained on AudioSet (527 classes): Cnn14 for 16 and 32 kHz,
Wavegram-Logmel-Cnn14."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool1d, relu
from torch.nn.utils import fuse_conv_bn_eval

from soundmill.evaluation.embedders.base import Embedder, Embeddings, in_batches
from soundmill.training import torch_weights
from soundmill.training.device import pick_device

SHORTEST = 2.0  # seconds; shorter waves are padded with silence, as in audioldm_eval
SECONDS_AT_ONCE = 80.0  # of waves in a batch: 400 MB of activations
# The tensors of a checkpoint that hold the Fourier transform, which torch.stft computes.
TRANSFORM = ("spectrogram_extractor.stft.conv_real.weight", "spectrogram_extractor.stft.conv_imag.weight")
# NumPy objects in the 16 kHz checkpoint: the state of its sampler.
NUMPY = (
    (np.empty(0).__reduce__()[0], "numpy.core.multiarray._reconstruct"),  # rebuilds an array; its name in older versions
    np.ndarray,
    np.dtype,
    type(np.dtype(np.int64)),
)
BANDS, DIMENSIONS, CLASSES = 64, 2048, 527
WIDTHS = (1, 64, 128, 256, 512, 1024, 2048)
WAVEGRAM_BANDS = 32
AMIN = 1e-10  # smallest power that the logarithm is taken of


class Variant(NamedTuple):
    sample_rate: int
    window: int  # samples; also the FFT's size
    hop: int  # samples
    wavegram: bool = False  # whether it also hears the wave itself


VARIANTS = {
    "panns_cnn14_16k": Variant(16_000, 512, 160),
    "panns_cnn14_32k": Variant(32_000, 1024, 320),
    "panns_wavegram_logmel": Variant(32_000, 1024, 320, wavegram=True),
}


class Cnn14Embedder(Embedder):
    """One 2048-d embedding per wave, after the first fully connected layer and its ReLU, and 527 logits before the sigmoid."""

    def __init__(self, name: str, path: Path):
        self._variant = VARIANTS[name]
        self.sample_rate = self._variant.sample_rate
        state = torch_weights.read_state(path, "PANNs", "model", NUMPY)
        with torch.device("meta"):
            net = WavegramLogmelCnn14() if self._variant.wavegram else Cnn14(self._variant.window, self._variant.hop)
        torch_weights.load_state(net, torch_weights.without_transform(state, TRANSFORM, self._variant.window, path), path)
        self._net = net.eval().fused().to(pick_device("auto"), memory_format=torch.channels_last)

    def embed(self, waves: Sequence[np.ndarray]) -> Embeddings:
        shortest = round(SHORTEST * self.sample_rate)
        padded = [np.pad(np.asarray(wave, np.float32), (0, max(0, shortest - len(wave)))) for wave in waves]
        at_once = SECONDS_AT_ONCE * self.sample_rate
        embeddings, logits = in_batches(self._net, padded, lambda length: max(1, int(at_once / length)), (DIMENSIONS, CLASSES))
        return Embeddings([embedding[None] for embedding in embeddings], logits)


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

    def fused(self) -> Self:
        """The same network with every BatchNorm fused into the convolution before it."""
        for block in self.children():
            if isinstance(block, Block):
                block.fuse()
        return self

    def front(self, waves: Tensor) -> Tensor:
        """The first block's output, [N, channels, frames / 2, 32]."""
        log_mels = log_mel(waves, self.logmel_extractor["melW"], self.hop)
        x = self.bn0(log_mels.transpose(1, 2)[..., None])  # [N, 64, frames, 1]: normalised per band
        x = x.transpose(1, 3).contiguous(memory_format=torch.channels_last)  # [N, 1, frames, 64]
        return avg_pool2d(self.conv_block1(x), 2)

    def forward(self, waves: Tensor) -> tuple[Tensor, Tensor]:
        x = self.front(waves)
        for number in range(2, len(WIDTHS)):
            x = getattr(self, f"conv_block{number}")(x)
            if number < len(WIDTHS) - 1:
                x = avg_pool2d(x, 2)
        x = x.mean(dim=3)
        embedding = relu(self.fc1(x.amax(dim=2) + x.mean(dim=2)))
        return embedding, self.fc_audioset(embedding)


def log_mel(waves: Tensor, filters: Tensor, hop: int) -> Tensor:
    """10·log10 of mel powers, [N, frames, bands]; filters [bins, bands], centred frames, reflected ends, periodic Hann window."""
    size = 2 * (len(filters) - 1)
    window = torch.hann_window(size, device=waves.device)
    spectra = torch.stft(waves, size, hop, window=window, pad_mode="reflect", return_complex=True)
    powers = (spectra.real**2 + spectra.imag**2).transpose(1, 2)
    return 10 * torch.log10((powers @ filters).clamp_min(AMIN))


class WavegramLogmelCnn14(Cnn14):
    """Cnn14 for 32 kHz whose second block also takes a "wavegram", learnt from the wave instead of a Fourier transform."""

    def __init__(self) -> None:
        super().__init__(1024, 320)
        self.pre_conv0 = nn.Conv1d(1, 64, 11, stride=5, padding=5, bias=False)
        self.pre_bn0 = nn.BatchNorm1d(64)
        for number, (width, wider) in enumerate(((64, 64), (64, 128), (128, 128)), 1):
            setattr(self, f"pre_block{number}", Block(width, wider, of_wave=True))
        self.pre_block4 = Block(128 // WAVEGRAM_BANDS, 64)
        self.conv_block2 = Block(64 + 64, 128)

    def fused(self) -> Self:
        self.pre_conv0, self.pre_bn0 = fuse_conv_bn_eval(self.pre_conv0, self.pre_bn0), nn.Identity()
        return super().fused()

    def front(self, waves: Tensor) -> Tensor:
        x = super().front(waves)
        y = relu(self.pre_bn0(self.pre_conv0(waves[:, None])), inplace=True)
        for number in range(1, 4):
            y = max_pool1d(getattr(self, f"pre_block{number}")(y), 4)
        y = y.unflatten(1, (-1, WAVEGRAM_BANDS)).transpose(2, 3)  # [N, 4, frames, 32]
        y = avg_pool2d(self.pre_block4(y.contiguous(memory_format=torch.channels_last)), (2, 1))
        frames = min(x.shape[2], y.shape[2])
        return torch.cat([x[:, :, :frames], y[:, :, :frames]], dim=1)


class Block(nn.Module):
    """Two convolutions over time and frequency, or of a wave over time, the second dilated."""

    def __init__(self, width: int, wider: int, of_wave: bool = False) -> None:
        super().__init__()
        convolution, norm, dilation = (nn.Conv1d, nn.BatchNorm1d, 2) if of_wave else (nn.Conv2d, nn.BatchNorm2d, 1)
        self.conv1 = convolution(width, wider, 3, padding=1, bias=False)
        self.conv2 = convolution(wider, wider, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn1, self.bn2 = norm(wider), norm(wider)

    def fuse(self) -> None:
        self.conv1, self.bn1 = fuse_conv_bn_eval(self.conv1, self.bn1), nn.Identity()
        self.conv2, self.bn2 = fuse_conv_bn_eval(self.conv2, self.bn2), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.bn1(self.conv1(x)), inplace=True)
        return relu(self.bn2(self.conv2(x)), inplace=True)
