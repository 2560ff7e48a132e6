"""Principal components, the number of them that keeps a given share of the variance, and a linear codec made of them."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from soundmill.errors import UserError

ROUNDING = 1e-9
LEAST_VARIANCE = 1e-9  # in all; below this it is a rounding error
LEAST_SHARE = 1e-6  # of the variance: a component with less is treated as having this, so that nothing is divided by 0


@dataclass(frozen=True)
class Components:
    """Principal components: `rotation` @ (vector − `mean`), ordered by variance."""

    mean: Tensor  # [channels]
    rotation: Tensor  # [channels, channels], orthogonal
    kept: Tensor  # [channels], float64: share of the variance that the first 1, 2, … components keep
    variance: float  # total

    @property
    def variances(self) -> Tensor:
        """Of each component, [channels], float64."""
        return self.variance * self.kept.diff(prepend=self.kept.new_zeros(1))

    def rank(self, fidelity: float) -> int:
        """The smallest number of components that keep the share `fidelity` of the variance."""
        sufficient = (self.kept >= fidelity - ROUNDING).nonzero()
        return int(sufficient[0]) + 1 if len(sufficient) else len(self.kept)


def components(means: Iterable[Tensor]) -> Components:
    """Principal components of vectors, given as pieces [channels, T]."""
    count, total, products = 0, torch.zeros(()), torch.zeros(())
    for piece in means:
        values = piece.double()
        count, total, products = count + values.shape[1], total + values.sum(1), products + values @ values.T
    mean = total / count
    variances, vectors = torch.linalg.eigh(products / count - mean[:, None] * mean[None])
    variances, rotation = variances.flip(0).clamp_min(0), vectors.flip(1).T
    largest = rotation.gather(1, rotation.abs().argmax(1, keepdim=True))
    rotation = rotation * largest.sign()  # a component's sign is arbitrary: its largest weight is positive
    kept = variances.cumsum(0) / variances.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return Components(mean.float(), rotation.float().contiguous(), kept, float(variances.sum()))


def partly_whitened(deviation: Tensor, whitening: float) -> Tensor:
    """What to divide channels of these standard deviations by: with `whitening` 1 each has unit variance, with 0 all of them
    together. In between, weak channels, fine detail, are amplified only partly: fully whitened, a net spends its capacity on noise.
    """
    unwhitened = deviation ** (1 - whitening)
    return deviation**whitening * unwhitened.square().mean().sqrt()


class Pca(nn.Module):
    """A linear codec of signals [N, rows, T]: the first principal components of blocks of `frames` frames.

    T is a multiple of `frames`. Nothing is trained; `fit` sets the buffers. TorchScript can compile it.
    """

    def __init__(self, rows: int, frames: int, count: int):
        super().__init__()
        self.rows, self.frames = rows, frames
        self.register_buffer("center", torch.zeros(rows * frames))
        self.register_buffer("basis", torch.eye(count, rows * frames))
        self.register_buffer("deviations", torch.ones(count))

    def blocks(self, signals: Tensor) -> Tensor:
        """Blocks [N, rows · frames, T / frames]."""
        count = signals.shape[0]
        return signals.reshape(count, self.rows, -1, self.frames).transpose(2, 3).reshape(count, self.rows * self.frames, -1)

    def encode(self, signals: Tensor) -> Tensor:
        """Components [N, count, T / frames]."""
        return self.basis @ (self.blocks(signals) - self.center[:, None]) / self.deviations[:, None]

    def decode(self, encoded: Tensor) -> Tensor:
        """Signals [N, rows, T] of components: of all linear codecs of this size the one with the least mean squared error."""
        blocks = self.basis.T @ (encoded * self.deviations[:, None]) + self.center[:, None]
        count = encoded.shape[0]
        return blocks.reshape(count, self.rows, self.frames, -1).transpose(2, 3).reshape(count, self.rows, -1)

    @torch.no_grad()
    def fit(self, signals: Iterable[Tensor], key: str, whitening: float = 1.0) -> None:
        """Set the components to those of `signals` [N, rows, T]; UserError that names the parameter `key` if all are constant.

        `whitening` is that of `partly_whitened`: 1 gives each component unit variance.
        """
        found = components(self.blocks(some).transpose(0, 1).flatten(1) for some in signals)
        if found.variance < LEAST_VARIANCE:
            raise UserError(
                f"{key}: all training clips are silent or constant, so they have no principal components; check the recordings, or "
                f"set {key} to false"
            )
        count = len(self.basis)
        self.center.copy_(found.mean), self.basis.copy_(found.rotation[:count])
        deviations = found.variances[:count].clamp_min(LEAST_SHARE * found.variance).sqrt()
        self.deviations.copy_(partly_whitened(deviations, whitening))
