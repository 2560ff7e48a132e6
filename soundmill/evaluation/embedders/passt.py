"""PaSST-S (Koutini et al. 2022, arXiv:2110.05069), trained on AudioSet (527 classes), with the weights that hear21passt uses.

It is a vision transformer on overlapping patches of log-mel spectrograms.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from soundmill.evaluation.embedders.base import Embedder, Embeddings, in_batches, mel_filters, split
from soundmill.params import choose
from soundmill.training import torch_weights
from soundmill.training.device import pick_device

SAMPLE_RATE = 32_000
WINDOW = 10 * SAMPLE_RATE  # samples of the network's longest input
SCENE_HOP = 80_000  # samples between windows of a longer sound, as in hear21passt
SHORT = 48_000  # samples; stable-audio-metrics does not pad shorter sounds
WINDOWS_AT_ONCE = 4
UNUSED = ("head_dist.weight", "head_dist.bias")  # of a checkpoint: a head that only its training used

FFT, FRAME, HOP = 1024, 800, 320  # samples
HIGHEST = 15_000.0  # Hz, of the mel bands; the lowest is 0
PREEMPHASIS = 0.97
OFFSET = 1e-5  # added before the logarithm
BANDS, FRAMES = 128, 998  # of the longest spectrogram
PATCH, STRIDE = 16, 10  # bands and frames
DIMENSIONS, HEADS, BLOCKS, CLASSES = 768, 12, 12, 527
SHORTEST = (PATCH - 1) * HOP + 1  # samples of the shortest wave that has a patch


def scene(wave: np.ndarray) -> list[np.ndarray]:
    """hear21passt's scene embedding: up to ten seconds as they are, else windows every 2.5 s of the wave reflected at its ends."""
    if len(wave) <= WINDOW:
        return [wave]
    padded = np.pad(wave, WINDOW // 2, mode="reflect")
    return list(np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::SCENE_HOP])


def overlapping(wave: np.ndarray) -> list[np.ndarray]:
    """stable-audio-metrics' windows every five seconds; the last one, or a sound of 1.5 to 10 seconds, is padded with zeros."""
    starts = range(0, max(WINDOW // 2, len(wave) - WINDOW // 2), WINDOW // 2)
    cut = [wave[start : start + WINDOW] for start in starts]
    return [padded(part) if len(part) > SHORT else part for part in cut]


def beginning(wave: np.ndarray) -> list[np.ndarray]:
    """av-benchmark's window: the first ten seconds, padded with zeros."""
    return [padded(wave[:WINDOW])] if len(wave) else []


def padded(wave: np.ndarray) -> np.ndarray:
    return np.pad(wave, (0, WINDOW - len(wave)))


FRONT_ENDS: dict[str, Callable[[np.ndarray], list[np.ndarray]]] = {
    "hear21passt": scene,
    "stable-audio-metrics": overlapping,
    "av-benchmark": beginning,
}


class PasstEmbedder(Embedder):
    """One 768-d embedding and 527 logits before the sigmoid per wave, means over its windows of at most ten seconds.

    A wave shorter than 0.15 s has no patch, so no embedding.
    """

    sample_rate = SAMPLE_RATE

    def __init__(self, path: Path, *, front_end: str = "hear21passt"):
        self._windows = choose(FRONT_ENDS, front_end, "front end of passt")
        state = torch_weights.read_state(path, "PaSST")
        with torch.device("meta"):
            net = Passt()
        torch_weights.load_state(net, {key: value for key, value in state.items() if key not in UNUSED}, path)
        self._net = net.eval().to(pick_device("auto"))

    def embed(self, waves: Sequence[np.ndarray]) -> Embeddings:
        cut = [[part for part in self._windows(np.asarray(wave, np.float32)) if len(part) >= SHORTEST] for wave in waves]
        windows = [window for parts in cut for window in parts]
        embeddings, logits = in_batches(self._net, windows, WINDOWS_AT_ONCE, (DIMENSIONS, CLASSES))
        frames = [_mean(part)[None] if len(part) else part for part in split(embeddings, cut)]
        means = [_mean(part) if len(part) else np.zeros(CLASSES, np.float32) for part in split(logits, cut)]
        return Embeddings(frames, np.reshape(means, (len(waves), CLASSES)).astype(np.float32))


def _mean(rows: np.ndarray) -> np.ndarray:
    return rows.mean(axis=0, dtype=np.float64).astype(np.float32)


class Passt(nn.Module):
    """Waves [N, T] of at most ten seconds → embeddings [N, 768] and logits [N, 527]; its state has hear21passt's names."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(1, DIMENSIONS, PATCH, STRIDE)})
        rows, columns = ((size - PATCH) // STRIDE + 1 for size in (BANDS, FRAMES))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, DIMENSIONS))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, DIMENSIONS))
        self.new_pos_embed = nn.Parameter(torch.zeros(1, 2, DIMENSIONS))  # of the two tokens
        self.freq_new_pos_embed = nn.Parameter(torch.zeros(1, DIMENSIONS, rows, 1))
        self.time_new_pos_embed = nn.Parameter(torch.zeros(1, DIMENSIONS, 1, columns))
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.norm = nn.LayerNorm(DIMENSIONS, eps=1e-6)
        self.head = nn.Sequential(nn.LayerNorm(DIMENSIONS), nn.Linear(DIMENSIONS, CLASSES))

    def forward(self, waves: Tensor) -> tuple[Tensor, Tensor]:
        x = self.patch_embed["proj"](log_mel(waves)[:, None])  # [N, 768, 12, patches in time]
        x = x + self.time_new_pos_embed[..., : x.shape[-1]] + self.freq_new_pos_embed
        tokens = torch.cat([self.cls_token, self.dist_token], dim=1) + self.new_pos_embed
        x = torch.cat([tokens.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
        embedding = self.norm(self.blocks(x)[:, :2]).mean(dim=1)
        return embedding, self.head(embedding)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(DIMENSIONS, eps=1e-6) for _ in range(2))
        self.attn = nn.ModuleDict({"qkv": nn.Linear(DIMENSIONS, 3 * DIMENSIONS), "proj": nn.Linear(DIMENSIONS, DIMENSIONS)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(DIMENSIONS, 4 * DIMENSIONS), "fc2": nn.Linear(4 * DIMENSIONS, DIMENSIONS)})

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.attn["qkv"](self.norm1(x)).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + self.attn["proj"](attended)
        return x + self.mlp["fc2"](gelu(self.mlp["fc1"](self.norm2(x))))


def log_mel(waves: Tensor) -> Tensor:
    """Normalised logarithms of mel powers [N, 128, frames] of pre-emphasised waves; centred frames, symmetric Hann window."""
    emphasised = waves[:, 1:] - PREEMPHASIS * waves[:, :-1]
    window = torch.hann_window(FRAME, periodic=False, device=waves.device)
    spectra = torch.stft(emphasised, FFT, HOP, FRAME, window, pad_mode="reflect", return_complex=True)
    powers = spectra.real**2 + spectra.imag**2
    filters = torch.from_numpy(mel_filters(np.arange(FFT // 2 + 1) * SAMPLE_RATE / FFT, 0, HIGHEST, BANDS)).float()
    return (torch.log(filters.T.contiguous().to(waves.device) @ powers + OFFSET) + 4.5) / 5
