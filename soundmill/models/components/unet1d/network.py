"""The 1-D U-Net of all diffusion models of waves; conditions: a label, a text, latents, or a second signal.

The architecture is that of a-unet's UNetV0 (Schneider et al. 2023, Moûsai, section 4; weights can be copied between them). Each
level downsamples by its factor, applies its items, the level below and more items, upsamples, and adds the result, scaled by the
noise level, to its input; the outermost, if `gated`, has a gain of each channel of its input instead (diffusion/gain.py).
"""

import math
from abc import abstractmethod
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soundmill.diffusion.gain import apply_gain, with_magnitude
from soundmill.diffusion.paths import PATHS, Deviation, Net, error, normalised
from soundmill.models.components.unet1d.params import TransformParams, UNet1dParams
from soundmill.training.loader import Batch
from soundmill.training.module import TrainingModule
from soundmill.training.params import TrainingParams

FREQUENCIES = 128  # number of Fourier features of the noise level


class UNet1d(nn.Module):
    """v [B, out_channels, T] = net(xt [B, in_channels, T], level [B], …); T a multiple of the product of both strides.

    `condition` is label weights [B, num_labels], or text states [B, L, text_width], a mask of tokens [B, L] and a mask of items
    whose text is dropped [B]. `latents` [B, channels, frames] join at the level `latents_at`, which must have as many frames;
    `beside` [B, channels, T] is concatenated to xt and counts towards `in_channels`.
    """

    def __init__(
        self,
        params: UNet1dParams,
        transform: TransformParams,
        in_channels: int,
        out_channels: int,
        *,
        num_labels: int | None = None,
        text_width: int | None = None,
        null_tokens: int = 1,
        latent_channels: int = 0,
        latents_at: int = 0,
    ):
        super().__init__()
        self.embedding = LevelEmbedding(params.modulation)
        self.labels = None if num_labels is None else nn.Embedding(num_labels, params.modulation)
        self.null_text = None if text_width is None else nn.Parameter(torch.randn(null_tokens, text_width))
        latents = [latent_channels if level == latents_at else 0 for level in range(len(params.channels))]
        self.encode, self.decode = _transforms(transform, in_channels, out_channels)
        self.gated, parts = params.gated, 1 + params.gated
        widths, inner = [parts * transform.channels(in_channels), *params.channels], None
        for level in reversed(range(len(params.channels))):
            out = parts * transform.channels(out_channels) if level == 0 else widths[level]
            inner = Level(params, level, widths[level], out, latents[level], text_width, inner)
        self.levels = inner

    def forward(
        self, xt: Tensor, level: Tensor, *condition: Tensor, latents: Tensor | None = None, beside: Tensor | None = None
    ) -> Tensor:
        modulation, text = self.embedding(level.to(xt.dtype)), None
        if self.labels is not None:
            modulation = modulation + condition[0] @ self.labels.weight
        elif self.null_text is not None:
            text = self._text(*condition)
        waves = xt if beside is None else torch.cat([xt, beside], 1)
        encoded = self.encode(waves)
        if not self.gated:
            return self.decode(self.levels(encoded, modulation, text, latents))
        predicted = self.levels(with_magnitude(encoded), modulation, text, latents)
        return self.decode(apply_gain(predicted, encoded[:, : predicted.shape[1] // 2]))

    def _text(self, states: Tensor, mask: Tensor, dropped: Tensor) -> tuple[Tensor, Tensor]:
        """States and mask, padded to at least the null text's length, with the learned null text for dropped items."""
        length = max(states.shape[1], len(self.null_text))
        states = F.pad(states, (0, 0, 0, length - states.shape[1]))
        null = F.pad(self.null_text, (0, 0, 0, length - len(self.null_text)))
        are_null = torch.arange(length, device=mask.device) < len(self.null_text)
        states = torch.where(dropped[:, None, None], null.to(states), states)
        return states, torch.where(dropped[:, None], are_null, F.pad(mask, (0, length - mask.shape[1])))


class Level(nn.Module):
    """A level and those below it; `inner` is None at the lowest."""

    def __init__(
        self,
        params: UNet1dParams,
        level: int,
        in_channels: int,
        out_channels: int,
        latents: int,
        text: int | None,
        inner: "Level | None",
    ):
        super().__init__()
        width, self.factor = params.channels[level], params.factors[level]
        text = text if params.text_attention[level] else None

        def items() -> nn.ModuleList:
            heads = (params.heads, params.head_width) if params.attention[level] else None
            return nn.ModuleList(Item(params, width, latents, heads, text) for _ in range(params.items[level]))

        self.down = nn.Conv1d(in_channels, width, self.factor, stride=self.factor)
        self.before, self.inner, self.after = items(), inner, items()
        self.up = nn.Conv1d(width, out_channels, 3, padding=1)
        if level == 0 and params.gated:
            self.adapter = None  # the gain takes its place
        else:
            self.adapter = nn.Identity() if in_channels == out_channels else nn.Conv1d(in_channels, out_channels, 1)
        self.scale = nn.Sequential(nn.SiLU(), nn.Linear(params.modulation, out_channels))

    def forward(self, x: Tensor, modulation: Tensor, text: tuple[Tensor, Tensor] | None, latents: Tensor | None) -> Tensor:
        y = self.down(x)
        for item in self.before:
            y = item(y, modulation, text, latents)
        if self.inner is not None:
            y = self.inner(y, modulation, text, latents)
        for item in self.after:
            y = item(y, modulation, text, latents)
        y = self.up(F.interpolate(y, scale_factor=self.factor, mode="nearest") if self.factor > 1 else y)
        y = self.scale(modulation)[:, :, None] * y
        return y if self.adapter is None else self.adapter(x) + y


class Item(nn.Module):
    """A residual block, modulated by the noise level; then latents and attention, if the level has them."""

    def __init__(self, params: UNet1dParams, width: int, latents: int, heads: tuple[int, int] | None, text: int | None):
        super().__init__()
        self.block = convolutions(width, params.groups)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(params.modulation, 2 * width))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.latents = nn.Conv1d(width + latents, width, 1) if latents else None
        self.attention = Attention(width, width, *heads) if heads else None
        self.text = Attention(width, text, params.heads, params.head_width) if text else None

    def forward(self, x: Tensor, modulation: Tensor, text: tuple[Tensor, Tensor] | None, latents: Tensor | None) -> Tensor:
        x = x + self.block(x)
        scale, shift = self.modulation(modulation)[:, None].chunk(2, dim=-1)
        x = (self.norm(x.mT) * (1 + scale) + shift).mT
        if self.latents is not None:
            x = x + self.latents(torch.cat([x, latents], 1))
        if self.attention is not None:
            x = x + self.attention(x.mT).mT
        if self.text is not None:
            x = x + self.text(x.mT, *text).mT
        return x


def convolutions(width: int, groups: int) -> nn.Sequential:
    """Two convolutions, each after normalisation and activation."""
    parts = (part for _ in range(2) for part in (nn.GroupNorm(groups, width), nn.SiLU(), nn.Conv1d(width, width, 3, padding=1)))
    return nn.Sequential(*parts)


class Attention(nn.Module):
    """Attention of x [B, T, width] to itself or to a context [B, L, context_width] with mask [B, L]; pre-norm, no residual."""

    def __init__(self, width: int, context_width: int, heads: int, head_width: int):
        super().__init__()
        self.heads = heads
        self.norm, self.norm_context = nn.LayerNorm(width), nn.LayerNorm(context_width)
        self.to_q = nn.Linear(width, heads * head_width, bias=False)
        self.to_kv = nn.Linear(context_width, 2 * heads * head_width, bias=False)
        self.to_out = nn.Linear(heads * head_width, width, bias=False)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        q = self.to_q(self.norm(x))
        k, v = self.to_kv(self.norm_context(x if context is None else context.to(x.dtype))).chunk(2, dim=-1)
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask[:, None, None])
        return self.to_out(attended.transpose(1, 2).flatten(2))


class LevelEmbedding(nn.Module):
    """Embedding [B, width] of the noise level [B] by learned Fourier features; the second layer is applied twice."""

    def __init__(self, width: int):
        super().__init__()
        self.frequencies = nn.Parameter(torch.randn(FREQUENCIES))
        self.first = nn.Linear(2 * FREQUENCIES + 1, width)
        self.second = nn.Linear(width, width)

    def forward(self, level: Tensor) -> Tensor:
        angle = level[:, None] * self.frequencies * 2 * math.pi
        hidden = F.gelu(self.first(torch.cat([level[:, None], angle.sin(), angle.cos()], 1)))
        return F.gelu(self.second(F.gelu(self.second(hidden))))


class Patches(nn.Module):
    """Patches of `size` samples as channels: [B, C, T] → [B, C · size, T / size]."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, waves: Tensor) -> Tensor:
        return waves.unflatten(2, (-1, self.size)).permute(0, 1, 3, 2).flatten(1, 2)


class Joined(Patches):
    """The inverse of `Patches`."""

    def forward(self, patches: Tensor) -> Tensor:
        return patches.unflatten(1, (-1, self.size)).permute(0, 1, 3, 2).flatten(2)


class Stft(nn.Module):
    """Real Fourier coefficients of overlapping Hann windows as channels: [B, C, T] → [B, C · window, T / stride]."""

    def __init__(self, window: int, stride: int):
        super().__init__()
        self.window, self.stride, self.padding = window, stride, (window - stride) // 2
        angles = 2 * math.pi / window * torch.outer(torch.arange(window // 2 + 1), torch.arange(window)).double()
        basis = torch.cat([angles.cos(), angles[1:-1].sin()])
        basis = basis / basis.norm(dim=1, keepdim=True)  # orthonormal, so that white noise stays white
        self.register_buffer("filters", (basis * torch.hann_window(window).double()).float()[:, None], persistent=False)

    def forward(self, waves: Tensor) -> Tensor:
        coefficients = F.conv1d(waves.flatten(0, 1)[:, None], self.filters, stride=self.stride, padding=self.padding)
        return coefficients.unflatten(0, waves.shape[:2]).flatten(1, 2)


class InverseStft(Stft):
    """The inverse of `Stft`, by overlap-add: [B, C · window, frames] → [B, C, frames · stride]."""

    def forward(self, coefficients: Tensor) -> Tensor:
        frames = coefficients.unflatten(1, (-1, self.window))
        overlapped = partial(F.conv_transpose1d, stride=self.stride, padding=self.padding)
        weights = torch.hann_window(self.window, device=frames.device).square()[None, None].expand(1, 1, -1)
        covered = overlapped(frames.new_ones(1, 1, frames.shape[-1]), weights.to(frames))
        return overlapped(frames.flatten(0, 1), self.filters.to(frames)).unflatten(0, frames.shape[:2])[:, :, 0] / covered


def _transforms(params: TransformParams, in_channels: int, out_channels: int) -> tuple[nn.Module, nn.Module]:
    """The transform from waves to the input of the levels, and from their output to waves."""
    if params.kind == "none":
        return nn.Identity(), nn.Identity()
    if params.kind == "patch":
        return Patches(params.size), Joined(params.size)
    if params.kind == "stft":
        return Stft(params.samples, params.size), InverseStft(params.samples, params.size)
    filters = {"kernel_size": params.samples, "stride": params.size, "padding": (params.samples - params.size) // 2, "bias": False}
    analysis = nn.Conv1d(in_channels, params.channels(in_channels), padding_mode="reflect", **filters)
    return analysis, nn.ConvTranspose1d(params.channels(out_channels), out_channels, **filters)


class PathModule(TrainingModule):
    """Training of a network that denoises targets divided by `sigma_data`, along a path with noise levels uniform in [0, 1]."""

    def __init__(
        self, net: nn.Module, params: TrainingParams, steps: int, accumulate: int = 1, sigma_data: Deviation = 1.0, path: str = "v"
    ):
        super().__init__(net, params, steps, accumulate)
        self.sigma_data, self.path = sigma_data, PATHS[path]

    @abstractmethod
    def target(self, step: int, batch: Batch) -> tuple[Net, Tensor]:
        """The net as a function of noisy sound and level, given the conditions of a batch; and the batch's sounds."""

    def loss(self, step: int, batch: Batch) -> Tensor:
        net, x0 = self.target(step, batch)
        level, noise = self.uniform(len(x0), self.rng("level", step)), self.noise_like(x0, self.rng("noise", step))
        return error(self.path, net, normalised(x0, self.sigma_data), level, noise).square().mean()
