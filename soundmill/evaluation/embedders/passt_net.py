"""PaSST-S (Koutini et al. 2022, arXiv:2110.05069): a vision transformer on overlapping patches of log-mel spectrograms."""

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

SAMPLE_RATE = 32_000
FFT, WINDOW, HOP = 1024, 800, 320  # samples
HIGHEST = 15_000.0  # Hz, of the mel bands; the lowest is 0
PREEMPHASIS = 0.97
OFFSET = 1e-5  # added before the logarithm
BANDS, FRAMES = 128, 998  # of the longest spectrogram
PATCH, STRIDE = 16, 10  # bands and frames
DIMENSIONS, HEADS, BLOCKS, CLASSES = 768, 12, 12, 527
SHORTEST = (PATCH - 1) * HOP + 1  # samples of the shortest wave that has a patch


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
    window = torch.hann_window(WINDOW, periodic=False, device=waves.device)
    spectra = torch.stft(emphasised, FFT, HOP, WINDOW, window, pad_mode="reflect", return_complex=True)
    powers = spectra.real**2 + spectra.imag**2
    return (torch.log(mel_filters().to(waves.device) @ powers + OFFSET) + 4.5) / 5


def mel_filters() -> Tensor:
    """Kaldi's filters [128, 513], triangular on the mel scale, not in Hz; the highest bin has weight zero."""

    def mel(hertz: Tensor) -> Tensor:
        return 1127 * torch.log1p(hertz / 700)

    bins = mel(torch.arange(FFT // 2, dtype=torch.float64) * SAMPLE_RATE / FFT)
    edges = torch.linspace(0, float(mel(torch.tensor(HIGHEST, dtype=torch.float64))), BANDS + 2, dtype=torch.float64)[:, None]
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    filters = torch.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clamp_min(0)
    return nn.functional.pad(filters, (0, 1)).float()
