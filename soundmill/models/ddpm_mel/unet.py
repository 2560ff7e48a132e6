"""The two U-Nets of the mel DDPM, of which every size is a parameter.

`UNet` has double convolutions with pooling and attention, and the noise level added at every scale. With widths (64, 128, 256,
256), attention on levels 0–3 and a 256-d embedding on one-channel 64×64 pictures it has 23,331,457 parameters, and 256 more for
every class.

`ResidualUNet` is for small machines: fewer, wider levels; noise level and label scale and shift its norms (AdaGN). Unlike in a
photograph, the rows of a spectrogram have different meanings. So each row has a learned bias at the input, and attention has a
learned position embedding.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soundmill.diffusion.gain import apply_gain, with_magnitude

TIME_FEATURES = 128  # of the residual U-Net


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
        self, channels: int, widths: list[int], attention_levels: list[int], heads: int, embedding_size: int, num_labels: int
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


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with the embedding [B, E] as scale and shift between them (Dhariwal & Nichol 2021, section 3.1)."""

    def __init__(self, channels_in: int, channels_out: int, embedding_size: int, dropout: float):
        super().__init__()
        self.norm_in, self.conv_in = _norm(channels_in), nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm_out, self.conv_out = _norm(channels_out), _zeroed(nn.Conv2d(channels_out, channels_out, 3, padding=1))
        self.embedding = _zeroed(nn.Linear(embedding_size, 2 * channels_out))
        self.dropout = nn.Dropout(dropout)
        self.shortcut = nn.Identity() if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.embedding(embedding)[:, :, None, None].chunk(2, dim=1)
        inner = self.norm_out(self.conv_in(F.silu(self.norm_in(x))))
        inner = F.silu(torch.addcmul(shift, inner, 1 + scale))
        return self.shortcut(x) + self.conv_out(self.dropout(inner))


class PlacedAttention(nn.Module):
    """Self-attention over all positions, with a learned position embedding; initially the identity."""

    def __init__(self, shape: tuple[int, int, int], heads: int):
        super().__init__()
        channels = shape[0]
        self.heads = heads
        self.norm = _norm(channels)
        self.place = nn.Parameter(0.02 * torch.randn(1, *shape))
        self.query_key_value = nn.Conv2d(channels, 3 * channels, 1)
        self.outlet = _zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        parts = self.query_key_value(self.norm(x) + self.place).flatten(2).unflatten(1, (3, self.heads, -1))
        query, key, value = parts.transpose(-1, -2).unbind(1)
        attended = F.scaled_dot_product_attention(query, key, value)
        return x + self.outlet(attended.transpose(-1, -2).reshape(x.shape))


class Stack(nn.Module):
    """A residual block, then attention if the level has it."""

    def __init__(
        self, channels_in: int, shape: tuple[int, int, int], attends: bool, heads: int, embedding_size: int, dropout: float
    ):
        super().__init__()
        self.block = ResidualBlock(channels_in, shape[0], embedding_size, dropout)
        self.attention = PlacedAttention(shape, heads) if attends else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.attention(self.block(x, embedding))


class ResidualUNet(nn.Module):
    """Predicts from (xt, t, condition): [B, *shape], [B] timesteps, [B, num_labels] label weights (all zero: no label).

    `shape` is (channels, rows, columns); rows and columns are halved between levels, of which there are len(widths). Untrained, it
    predicts 0. If `gated`, it has a gain for each channel of its input (diffusion/gain.py).
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        widths: list[int],
        attention_levels: list[int],
        heads: int,
        embedding_size: int,
        num_labels: int,
        *,
        blocks: int,
        dropout: float,
        gated: bool,
    ):
        super().__init__()
        channels, rows, columns = shape
        self.labels = nn.Embedding(num_labels, embedding_size) if num_labels else None
        self.time = nn.Sequential(nn.Linear(TIME_FEATURES, embedding_size), nn.SiLU(), nn.Linear(embedding_size, embedding_size))
        self.gated, self.inlet = gated, nn.Conv2d(channels * (1 + gated), widths[0], 3, padding=1)
        self.rows = nn.Parameter(torch.zeros(1, widths[0], rows, 1))

        def stack(channels_in: int, level: int, attends: bool) -> Stack:
            size = (widths[level], rows >> level, columns >> level)
            return Stack(channels_in, size, attends, heads, embedding_size, dropout)

        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        current, skips = widths[0], [widths[0]]
        for level, width in enumerate(widths):
            stacks = nn.ModuleList()
            for _ in range(blocks):
                stacks.append(stack(current, level, level in attention_levels))
                current = width
                skips.append(current)
            self.down.append(stacks)
            if level + 1 < len(widths):
                self.shrink.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)
        self.middle = nn.ModuleList(stack(current, len(widths) - 1, attends) for attends in (True, False))
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for level in reversed(range(len(widths))):
            stacks = nn.ModuleList()
            for _ in range(blocks + 1):
                stacks.append(stack(current + skips.pop(), level, level in attention_levels))
                current = widths[level]
            self.up.append(stacks)
            if level:
                self.grow.append(nn.Conv2d(current, current, 3, padding=1))
        self.norm = _norm(current)
        self.outlet = _zeroed(nn.Conv2d(current, channels * (1 + gated), 3, padding=1))

    def forward(self, xt: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        embedding = self.time(timestep_embedding(t, TIME_FEATURES))
        if self.labels is not None:
            embedding = embedding + condition.to(embedding) @ self.labels.weight.to(embedding)
        embedding = F.silu(embedding)
        x = self.inlet(with_magnitude(xt) if self.gated else xt) + self.rows
        skips = [x]
        for level, stacks in enumerate(self.down):
            for layer in stacks:
                x = layer(x, embedding)
                skips.append(x)
            if level < len(self.shrink):
                x = self.shrink[level](x)
                skips.append(x)
        for layer in self.middle:
            x = layer(x, embedding)
        for level, stacks in enumerate(self.up):
            for layer in stacks:
                x = layer(torch.cat([x, skips.pop()], dim=1), embedding)
            if level < len(self.grow):
                x = self.grow[level](F.interpolate(x, scale_factor=2, mode="nearest"))
        predicted = self.outlet(F.silu(self.norm(x)))
        return apply_gain(predicted, xt) if self.gated else predicted


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(group for group in range(1, min(32, channels // 4) + 1) if channels % group == 0), channels)


def _zeroed(layer: nn.Module) -> nn.Module:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
