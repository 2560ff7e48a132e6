"""The U-Net of the mel DDPM: double convolutions with pooling and attention, and the noise level added at every scale.

Every size is a parameter. With widths (64, 128, 256, 256), attention on levels 0–3 and a 256-d embedding on one-channel 64×64
pictures it has 23,331,457 parameters, and 256 more for every class.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DoubleConv(nn.Module):
    """Two 3×3 convolutions over normalised channels; [B, i, H, W] → [B, o, H, W], with the input added if `residual`."""

    def __init__(self, channels_in: int, channels_out: int, channels_between: int | None = None, residual: bool = False):
        super().__init__()
        between = channels_between or channels_out
        self.residual = residual
        self.layers = nn.Sequential(
            nn.Conv2d(channels_in, between, 3, padding=1, bias=False),
            nn.GroupNorm(1, between),
            nn.GELU(),
            nn.Conv2d(between, channels_out, 3, padding=1, bias=False),
            nn.GroupNorm(1, channels_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x + self.layers(x)) if self.residual else self.layers(x)


class Scale(nn.Module):
    """One level: a residual and a widening double convolution, plus the embedding [B, E] as a bias per channel."""

    def __init__(self, channels_in: int, channels_out: int, channels_between: int | None, embedding_size: int):
        super().__init__()
        self.layers = nn.Sequential(
            DoubleConv(channels_in, channels_in, residual=True), DoubleConv(channels_in, channels_out, channels_between)
        )
        self.embedding = nn.Sequential(nn.SiLU(), nn.Linear(embedding_size, channels_out))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.layers(x) + self.embedding(embedding)[:, :, None, None]


class SelfAttention(nn.Module):
    """Self-attention over all positions (a pre-norm transformer block, Vaswani et al. 2017); keeps the shape."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        places = x.flatten(2).transpose(1, 2)
        normed = self.norm(places)
        places = places + self.attention(normed, normed, normed, need_weights=False)[0]
        places = places + self.feed_forward(places)
        return places.transpose(1, 2).reshape(x.shape)


class UNet(nn.Module):
    """Predicts from (xt, t, condition): [B, C, H, W], [B] timesteps, [B, num_labels] label weights (all zero: no label).

    `widths` are the channels of levels 0, 1, …, each half the size of the one before; `attention_levels` have self-attention
    on the way up, and from level 1 on the way down. The condition is the weighted sum of label embeddings, added to the
    embedding of the timestep.
    """

    def __init__(
        self,
        channels: int,
        widths: list[int],
        attention_levels: list[int],
        heads: int,
        embedding_size: int,
        num_labels: int,
    ):
        super().__init__()
        self.embedding_size = embedding_size
        self.labels = nn.Embedding(num_labels, embedding_size) if num_labels else None
        self.inlet = DoubleConv(channels, widths[0])
        self.down = nn.ModuleList()
        self.down_attention = nn.ModuleList()
        for level in range(1, len(widths)):
            self.down.append(Scale(widths[level - 1], widths[level], None, embedding_size))
            self.down_attention.append(self._attention(widths[level], level in attention_levels, heads))
        last = widths[-1]
        self.bottleneck = nn.Sequential(DoubleConv(last, 2 * last), DoubleConv(2 * last, 2 * last), DoubleConv(2 * last, last))
        self.up = nn.ModuleList()
        self.up_attention = nn.ModuleList()
        for level in reversed(range(len(widths) - 1)):
            joined, out = last + widths[level], widths[max(level - 1, 0)]
            self.up.append(Scale(joined, out, joined // 2, embedding_size))
            self.up_attention.append(self._attention(out, level in attention_levels, heads))
            last = out
        self.outlet = nn.Conv2d(last, channels, 1)

    @staticmethod
    def _attention(channels: int, present: bool, heads: int) -> nn.Module:
        return SelfAttention(channels, heads) if present else nn.Identity()

    def forward(self, xt: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        embedding = timestep_embedding(t, self.embedding_size)
        if self.labels is not None:
            embedding = embedding + condition.to(embedding) @ self.labels.weight.to(embedding)
        x = self.inlet(xt)
        skips = []
        for scale, attention in zip(self.down, self.down_attention, strict=True):
            skips.append(x)
            x = attention(scale(F.max_pool2d(x, 2), embedding))
        x = self.bottleneck(x)
        for scale, attention in zip(self.up, self.up_attention, strict=True):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            x = attention(scale(torch.cat([skips.pop(), x], dim=1), embedding))
        return self.outlet(x)


def timestep_embedding(t: Tensor, size: int) -> Tensor:
    """Sines then cosines [B, size] of t [B] at wavelengths from 2π to 20,000π (Vaswani et al. 2017, section 3.5)."""
    rates = torch.exp(-math.log(10_000) * torch.arange(0, size, 2, device=t.device) / size)
    angles = t[:, None].float() * rates[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1)
