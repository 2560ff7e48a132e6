"""The mapping between log-mel spectrograms and the diffused pictures; the level is stored separately."""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soundmill.audio.mel import MelSpec, num_frames
from soundmill.models.ddpm_mel.params import PictureParams

HEADROOM = 1.2  # maximum of a generated picture; anything brighter is an error


class PictureCodec(nn.Module):
    """log_mel [B, n_mels, frames] ↔ picture [B, 1, H, W] in about [−1, 1] ↔ the network's input [B, C, H/patch, W/patch].

    `level` [B] is the natural logarithm of the power that maps to 1. The constants of standardisation are buffers, set by `fit`
    and stored in the checkpoint.
    """

    def __init__(self, params: PictureParams, spec: MelSpec):
        super().__init__()
        self.params, self.spec = params, spec
        self.num_samples = round(params.seconds * spec.sample_rate)
        self.frames = num_frames(spec, self.num_samples)
        self.silence = math.log(spec.floor)
        missing = params.width - self.frames
        self._padding = missing if params.fit == "pad" and 0 < missing <= params.patch[1] else 0  # columns
        self.channels = params.patch[0] * params.patch[1]
        self.shape = (self.channels, params.height // params.patch[0], params.width // params.patch[1])
        constants = {"none": (1, 1, 1), "global": (1, 1, 1), "band": (1, params.height, 1), "channel": (self.channels, 1, 1)}
        self.register_buffer("mean", torch.zeros(constants[params.standardise]))
        self.register_buffer("deviation", torch.ones(constants[params.standardise]))
        self.register_buffer("_basis", _cosine_basis(*params.patch), persistent=False)
        self._exponent = params.exponent * spec.power / 2  # of `power`, applied to powers
        self._floor = -params.range_db * math.log(10) / 10  # of `log`: ln of the power that maps to -1, relative to the level

    def level(self, log_mel: Tensor) -> Tensor:
        """ln of the reference power [B]: the same for all clips, or each clip's maximum."""
        if self.params.level == "absolute":
            return torch.full((len(log_mel),), self.params.top_db * math.log(10) / 10, device=log_mel.device)
        return self._log_power(log_mel).amax((1, 2))

    def to_picture(self, log_mel: Tensor) -> tuple[Tensor, Tensor]:
        level = self.level(log_mel)
        relative = self._log_power(log_mel) - level[:, None, None]
        if self.params.compression == "log":
            floor = torch.full((), self._floor, device=log_mel.device)
            picture = 2 * (torch.logaddexp(relative, floor) - floor) / self._log_range() - 1
        else:
            picture = 2 * torch.exp(self._exponent * relative) - 1
        if self.params.min_max:
            lowest = picture.amin((1, 2), keepdim=True)
            picture = 2 * (picture - lowest) / (1 - lowest).clamp_min(1e-6) - 1  # a constant clip becomes −1
        if self.params.polarity == "dark":
            picture = -picture
        padded = F.pad(picture, (0, self._padding), mode="replicate")[:, None]
        return _resize(padded, (self.params.height, self.params.width), "bilinear"), level

    def from_picture(self, picture: Tensor, level: Tensor) -> Tensor:
        """log_mel [B, n_mels, frames]; a picture of another size than the spectrogram is resized bicubically."""
        picture = _resize(picture, (self.spec.n_mels, self.frames + self._padding), "bicubic")[:, 0, :, : self.frames]
        if self.params.polarity == "dark":
            picture = -picture
        picture = picture.clamp(-1, HEADROOM)
        quiet = torch.finfo(torch.float32).tiny
        if self.params.compression == "log":
            power = torch.expm1((picture + 1) / 2 * self._log_range()) * math.exp(self._floor)
            relative = power.clamp_min(quiet).log()
        else:
            relative = ((picture + 1) / 2).clamp_min(quiet).log() / self._exponent
        return ((relative + level[:, None, None]) * (self.spec.power / 2)).clamp_min(self.silence)

    def to_latent(self, picture: Tensor) -> Tensor:
        """The network's input: patches as channels, standardised."""
        if self.params.standardise == "band":
            return self._split((picture - self.mean) / self.deviation)
        return (self._split(picture) - self.mean) / self.deviation

    def from_latent(self, latent: Tensor) -> Tensor:
        if self.params.standardise == "band":
            return self._join(latent) * self.deviation + self.mean
        return self._join(latent * self.deviation + self.mean)

    def encode(self, log_mel: Tensor) -> tuple[Tensor, Tensor]:
        """log_mel [B, n_mels, frames] → latent [B, C, h, w], level [B]."""
        picture, level = self.to_picture(log_mel)
        return self.to_latent(picture), level

    def decode(self, latent: Tensor, level: Tensor) -> Tensor:
        return self.from_picture(self.from_latent(latent), level)

    def fit(self, log_mels: Iterable[Tensor]) -> None:
        """Set the constants to mean and standard deviation over batches of training spectrograms."""
        if self.params.standardise == "none":
            return
        axes = {"global": (0, 1, 2, 3), "band": (0, 1, 3), "channel": (0, 2, 3)}[self.params.standardise]
        count, total, squares = 0, 0.0, 0.0
        for log_mel in log_mels:
            picture = self.to_picture(log_mel)[0]
            values = (picture if self.params.standardise == "band" else self._split(picture)).double()
            count += values.numel() // self.mean.numel()
            total, squares = total + values.sum(axes), squares + values.square().sum(axes)
        mean = total / count
        deviation = (squares / count - mean.square()).clamp_min(1e-8).sqrt()
        if self.params.standardise == "channel":
            # Amplify weak channels (fine detail) only partly: fully whitened, the network spends its capacity on noise.
            unwhitened = deviation ** (1 - self.params.whitening)
            deviation = deviation**self.params.whitening * unwhitened.square().mean().sqrt()
        self.mean.copy_(mean.reshape(self.mean.shape))
        self.deviation.copy_(deviation.reshape(self.deviation.shape))

    def importance(self) -> Tensor:
        """Squared error in the picture per unit error in each latent channel, normalised to mean 1; broadcasts over latents."""
        if self.params.standardise == "band":
            return torch.ones((), device=self.deviation.device)
        return self.deviation.square() / self.deviation.square().mean()

    def _split(self, picture: Tensor) -> Tensor:
        rows, columns = self.params.patch
        patches = picture.unflatten(2, (-1, rows)).unflatten(4, (-1, columns)).permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
        return patches if self.params.patch_basis == "pixels" else torch.einsum("kc,bchw->bkhw", self._basis, patches)

    def _join(self, latent: Tensor) -> Tensor:
        rows, columns = self.params.patch
        patches = latent if self.params.patch_basis == "pixels" else torch.einsum("kc,bkhw->bchw", self._basis, latent)
        return patches.unflatten(1, (1, rows, columns)).permute(0, 1, 4, 2, 5, 3).flatten(4, 5).flatten(2, 3)

    def _log_power(self, log_mel: Tensor) -> Tensor:
        return log_mel * (2 / self.spec.power)

    def _log_range(self) -> float:
        return math.log1p(math.exp(self._floor)) - self._floor


def rescaled(picture: Tensor, polarity: str) -> Tensor:
    """Sampled pictures [B, 1, H, W] in [−1, 1] whose quieter half is silent: how far each part is louder than the picture's mean,
    over the largest such distance. A picture of one level is silent."""
    loud = -1 if polarity == "dark" else 1
    above = (loud * (picture - picture.mean((1, 2, 3), keepdim=True))).clamp_min(0)
    return loud * (2 * above / above.amax((1, 2, 3), keepdim=True).clamp_min(1e-6) - 1)


def _resize(picture: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    if picture.shape[-2:] == size:
        return picture
    return F.interpolate(picture, size=size, mode=mode, antialias=True, align_corners=False)


def _cosine_basis(rows: int, columns: int) -> Tensor:
    """Orthonormal two-dimensional DCT-II of a patch, [coefficient, pixel], both row by row."""

    def one(size: int) -> Tensor:
        position, order = torch.arange(size, dtype=torch.float64) + 0.5, torch.arange(size, dtype=torch.float64)
        basis = torch.cos(math.pi / size * order[:, None] * position) * math.sqrt(2 / size)
        basis[0] /= math.sqrt(2)
        return basis

    return torch.kron(one(rows), one(columns)).float()
