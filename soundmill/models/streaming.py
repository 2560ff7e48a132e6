"""RAVE in layers that stream, so that processing block by block gives the same output as offline: convolutions cache past samples.

A layer with lookahead (`ahead`) cannot see the future in a stream, so it delays its output instead; where branches meet, the
earlier one is delayed to match. The latent grid is shifted so that the encoder adds no delay: the output equals the offline output
for the sound with `offset` samples of silence before it, delayed by `lag` samples.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soundmill.models.components.rave import network
from soundmill.models.components.rave.codec import RaveCodec

FEW = 12  # frames: up to this many, a matrix product is two to three times as fast as torch's convolution


class CachedPadding(nn.Module):
    """Prepends the last `kept` samples of the preceding blocks to a block."""

    def __init__(self, channels: int, kept: int):
        super().__init__()
        self.kept = kept
        self.register_buffer("past", torch.zeros(1, channels, kept))

    def forward(self, block: Tensor) -> Tensor:
        past = self.past if self.past.shape[0] == block.shape[0] else self.past[:1].expand(block.shape[0], -1, -1)
        joined_with_past = torch.cat([past, block], 2)
        self.past = joined_with_past[:, :, joined_with_past.shape[2] - self.kept :]
        return joined_with_past


class Delay(nn.Module):
    """Delays a signal by `by` samples."""

    def __init__(self, channels: int, by: int):
        super().__init__()
        self.memory = CachedPadding(channels, by)

    def forward(self, block: Tensor) -> Tensor:
        return self.memory(block)[:, :, : block.shape[2]]


class LiveConv(nn.Module):
    def __init__(self, weight: Tensor, kept: int, stride: int = 1, dilation: int = 1, groups: int = 1):
        super().__init__()
        self.stride, self.dilation, self.groups, self.left_out, self.few = stride, dilation, groups, max(0, -kept), FEW
        self.memory = CachedPadding(weight.shape[1] * groups, max(0, kept))
        self.register_buffer("weight", weight.detach().clone(memory_format=torch.contiguous_format))

    def forward(self, block: Tensor) -> Tensor:
        seen = self.memory(block)[:, :, self.left_out :]
        windows = seen.unfold(2, (self.weight.shape[2] - 1) * self.dilation + 1, self.stride)[..., :: self.dilation]
        if windows.shape[2] > self.few:
            return F.conv1d(seen, self.weight, None, self.stride, 0, self.dilation, self.groups)
        outputs, weights = [], self.weight.chunk(self.groups, 0)
        for number, part in enumerate(windows.chunk(self.groups, 1)):
            outputs.append(F.linear(part.transpose(1, 2).flatten(2), weights[number].flatten(1)).transpose(1, 2))
        return torch.cat(outputs, 1)


class LiveUp(nn.Module):
    """A transposed convolution as a convolution: each output frame depends on the current input frame and the previous one."""

    def __init__(self, weight: Tensor, ratio: int):
        super().__init__()
        self.ratio, self.above = ratio, weight.shape[1]
        both = torch.stack([weight[:, :, ratio:], weight[:, :, :ratio]], 3)  # [below, above, ratio, 2]
        self.convolution = LiveConv(both.permute(1, 2, 0, 3).flatten(0, 1), 1)

    def forward(self, block: Tensor) -> Tensor:
        frames = self.convolution(block)
        return frames.reshape(block.shape[0], self.above, self.ratio, block.shape[2]).transpose(2, 3).flatten(2)


class LiveResidual(nn.Module):
    def __init__(self, layers: nn.Module, waiting: nn.Module):
        super().__init__()
        self.layers, self.waiting = layers, waiting

    def forward(self, block: Tensor) -> Tensor:
        return self.waiting(block) + self.layers(block)


def live(layer: nn.Module, late: int) -> tuple[nn.Module, int]:
    """The streaming version of a layer, and the delay of its output if its input is delayed by `late`; each in its own samples."""
    if isinstance(layer, nn.Sequential):
        layers = []
        for inner in layer:
            streaming, late = live(inner, late)
            layers.append(streaming)
        return nn.Sequential(*layers), late
    if isinstance(layer, network.Residual):
        layers, after = live(layer.layers, late)
        channels = next(inner for inner in layer.layers if isinstance(inner, network.Conv)).in_channels
        return LiveResidual(layers, Delay(channels, after - late)), after
    if isinstance(layer, network.Conv):
        (stride,), (dilation,) = layer.stride, layer.dilation
        return LiveConv(layer.kernel(), layer.missing, stride, dilation, layer.groups), (late + layer.ahead) // stride
    if isinstance(layer, network.Up):
        return LiveUp(layer.kernel(), layer.ratio), late * layer.ratio + layer.ahead
    return layer, late  # pointwise: adds no delay


def ahead_of(layers: nn.Module) -> int:
    """Total lookahead of the convolutions beyond the end of a frame, in samples of their input."""
    if isinstance(layers, nn.Sequential):
        ahead = 0
        for layer in reversed(layers):
            ahead = ahead * (layer.stride[0] if isinstance(layer, network.Conv) else 1) + ahead_of(layer)
        return ahead
    return ahead_of(layers.layers) if isinstance(layers, network.Residual) else getattr(layers, "ahead", 0)


class LiveNoise(nn.Module):
    """The noise branch: gains come from its layers, the noise depends only on the position in the stream."""

    def __init__(self, branch: network.Noise, late: int):
        super().__init__()
        self.frame, self.bands, self.filters, self.quiet = branch.frame, branch.bands, branch.filters, network.QUIET
        width = next(layer for layer in branch.layers if isinstance(layer, network.Conv)).in_channels
        wait = -(late + ahead_of(branch.layers)) % branch.frame
        self.waiting = Delay(width, wait)
        self.layers, frames = live(branch.layers, late + wait)
        self.late = frames * branch.frame
        self.register_buffer("parts", branch.parts.clone())
        self.pca = branch.pca
        self.pca_waits = Delay(branch.bands * branch.filters, frames) if branch.pca is not None else None

    def forward(self, hidden: Tensor, latents: Tensor, first: int) -> Tensor:
        """Noise for a block that starts at band sample `first`."""
        raw = self.layers(self.waiting(hidden))
        if self.pca is not None and self.pca_waits is not None:
            gains = network.gain(raw + self.pca_waits(self.pca.decode(latents)))
        else:
            gains = network.gain(raw + self.quiet)
        frames = gains.shape[2]
        noise = 2 * even(first * self.bands, frames * self.bands * self.frame) - 1
        split = (noise.to(gains).reshape(1, frames, self.bands, self.frame) @ self.parts).reshape(
            1, frames, self.bands, self.filters, self.frame
        )
        loud = gains.transpose(1, 2).reshape(gains.shape[0], frames, self.bands, self.filters, 1)
        return (loud * split).sum(3).transpose(1, 2).flatten(2)


def even(first: int, count: int) -> Tensor:
    """`count` numbers from position `first` of an endless uniform random sequence in (0, 1): splitmix64 of each position.

    In float64: float32 would round some numbers to 0 or 1, where the normal quantile is infinite.
    """
    mixed = torch.arange(first, first + count) * -7046029254386353131
    mixed = (mixed ^ ((mixed >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    mixed = (mixed ^ ((mixed >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    mixed = mixed ^ ((mixed >> 31) & 0x1FFFFFFFF)
    return (((mixed >> 12) & 0xFFFFFFFFFFFFF).to(torch.float64) + 0.5) / 4503599627370496.0


class LiveComponents(nn.Module):
    """The principal components of a block of bands; bands are delayed by the encoder's lookahead, as its latents lag by it."""

    def __init__(self, branch: network.Noise, beyond: int):
        super().__init__()
        self.pca, self.filters, self.waiting = branch.pca, branch.filters, Delay(branch.bands, beyond)
        self.register_buffer("parts", branch.parts.clone())

    def forward(self, bands: Tensor) -> Tensor:
        return self.pca.encode(network.measured(self.waiting(bands), self.parts, self.filters))


class Live(nn.Module):
    """The streaming codec for programs that play nn~ models: `encode`, `decode` and `forward` (both), called block by block.

    Latents are the first `latents` principal components, unscaled. The length of a block is a multiple of `ratio` samples.
    """

    def __init__(self, codec: RaveCodec, latents: int):
        super().__init__()
        net = codec.net.eval()
        self.ratio, self.latents, self.sample_rate = codec.samples_per_frame, latents, codec.sample_rate
        self.bands, self.position, self.left_out = net.pqmf.bands, 0, codec.network.latent_channels - latents
        forth, back = net.pqmf.ahead
        beyond = ahead_of(net.encoder)
        self.split = LiveConv(net.pqmf.forward_taps, forth + back)
        self.encoder, _ = live(net.encoder, -beyond)  # which does not delay its latents
        decoder = net.decoder
        self.trunk, late = live(decoder.trunk, 0)
        self.wave, of_wave = live(decoder.wave, late)
        self.loudness, of_loudness = live(decoder.loudness, late) if decoder.loudness is not None else (None, 0)
        self.noise = LiveNoise(decoder.noise, late) if decoder.noise is not None and codec.noisy else None
        self.components = LiveComponents(decoder.noise, beyond) if net.pca is not None else None
        last = max(of_wave, of_loudness, self.noise.late if self.noise is not None else 0)
        self.wave_waits = Delay(decoder.wave.out_channels, last - of_wave)
        self.loudness_waits = Delay(1, last - of_loudness) if decoder.loudness is not None else None
        self.noise_waits = Delay(self.bands, last - self.noise.late) if self.noise is not None else None
        self.join = LiveConv(net.pqmf.backward_taps, forth + back)
        self.odd_split, self.odd_join = beyond % 2, last % 2  # parity of a band's first sample on the offline codec's grid
        self.offset, self.lag = self.bands * (forth + beyond), self.bands * (last + back)
        self.register_buffer("turn", net.rotation / net.spread[:, None])
        self.register_buffer("back", net.rotation.T * net.spread)
        self.register_buffer("center", net.center[:, None].clone())
        self._register_methods()

    def _register_methods(self) -> None:
        """The metadata that nn~ reads: for each method, its input channels and ratio, then its output channels and ratio."""
        sizes = {"forward": (1, 1, 1, 1), "encode": (1, 1, self.latents, self.ratio), "decode": (self.latents, self.ratio, 1, 1)}
        self._methods, self._attributes = list(sizes), torch.jit.Attribute([], list[str])
        for name, (channels, ratio, out_channels, out_ratio) in sizes.items():
            self.register_buffer(f"{name}_params", torch.tensor([channels, ratio, out_channels, out_ratio]))
            setattr(self, f"{name}_input_labels", [f"(signal) model input {number}" for number in range(channels)])
            setattr(self, f"{name}_output_labels", [f"(signal) model output {number}" for number in range(out_channels)])

    def forward(self, waves: Tensor) -> Tensor:
        """Reconstructed waves [N, 1, T], delayed by `get_latency` samples."""
        return self.decode(self.encode(waves))

    @torch.jit.export
    def encode(self, waves: Tensor) -> Tensor:
        """Latents [N, latents, T / ratio] of waves [N, 1, T]."""
        length = waves.shape[2]
        if length % self.ratio != 0:
            lower = max(1, length // self.ratio) * self.ratio
            raise ValueError(
                f"a block of {length} samples: this model takes multiples of {self.ratio}, such as {lower} and {lower + self.ratio}"
            )
        bands = self.split(network.fold(waves, self.bands))
        bands = bands * network.flips(self.bands, bands.shape[2], self.odd_split).to(bands)
        mean = self.encoder(bands)[:, : self.latents + self.left_out]
        if self.components is not None:
            mean = mean + self.components(bands)
        return (self.turn @ (mean - self.center))[:, : self.latents]

    @torch.jit.export
    def decode(self, latents: Tensor) -> Tensor:
        """Waves [N, 1, ratio · T] from latents [N, latents, T]; the remaining components are drawn from the standard normal."""
        count, frames = latents.shape[0], latents.shape[2]
        if self.left_out > 0:
            drawn = even(-(1 << 40) + self.position * self.left_out, frames * self.left_out)
            normal = 1.4142135623730951 * torch.erfinv(2 * drawn - 1)
            remaining = normal.to(latents).reshape(1, frames, self.left_out).transpose(1, 2).expand(count, -1, -1)
            latents = torch.cat([latents, remaining], 1)
        latents = self.back @ latents + self.center
        hidden = self.trunk(latents)
        wave = self.wave_waits(self.wave(hidden))
        loudness: Tensor | None = None
        if self.loudness is not None:
            loudness = self.loudness_waits(self.loudness(hidden))
        noise: Tensor | None = None
        if self.noise is not None:
            noise = self.noise_waits(self.noise(hidden, latents, self.position * (self.ratio // self.bands)))
        self.position += frames
        bands = network.joined(wave, loudness, noise)
        bands = bands * network.flips(self.bands, bands.shape[2], self.odd_join).to(bands)
        return network.unfold(self.join(bands)).clamp(-1.0, 1.0)

    @torch.jit.export
    def get_methods(self) -> list[str]:
        return self._methods

    @torch.jit.export
    def get_attributes(self) -> list[str]:
        return self._attributes

    @torch.jit.export
    def get_sample_rate(self) -> int:
        return self.sample_rate

    @torch.jit.export
    def get_latency(self) -> int:
        """Delay of `forward`, in samples."""
        return self.offset + self.lag


def scripted(codec: RaveCodec, latents: int) -> torch.jit.ScriptModule:
    """`Live` as TorchScript, which runs without this package; its caches are as after a long silence."""
    model = Live(codec, latents).eval()
    # An upper bound of its memory, in latent frames.
    reach = sum(memory.kept for memory in model.modules() if isinstance(memory, CachedPadding))
    with torch.no_grad():
        for _ in range(math.ceil(reach / 64)):
            model(torch.zeros(1, 1, 64 * model.ratio))
    model.position = 0
    return torch.jit.script(model)
