"""Two nets that learn against each other: one makes what the other, the discriminator, cannot tell from what is real."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from soundmill.training.loader import Batch
from soundmill.training.module import TrainingModule
from soundmill.training.params import TrainingParams


class AdversarialModule(TrainingModule):
    """A net and its discriminator, each with an optimiser of the same parameters; both take one step on every batch.

    The trainer counts the net's steps. What is averaged, measured and kept is the net.
    """

    automatic_optimization = False

    def __init__(self, net: nn.Module, discriminator: nn.Module, params: TrainingParams, steps: int):
        super().__init__(net, params, steps)
        self.discriminator = discriminator

    @abstractmethod
    def losses(self, step: int, batch: Batch) -> Iterator[Tensor]:
        """Of batch `step`: first the discriminator's loss and then, when that has taken its step, the net's."""

    def loss(self, step: int, batch: Batch) -> Tensor:
        """Both steps; returns the net's loss."""
        net, discriminator = self.optimizers()
        turns = self.losses(step, batch)

        discriminator.zero_grad()
        self.manual_backward(next(turns))
        self.clip(self.discriminator)
        discriminator.optimizer.step()  # not through Lightning, which would count it

        self.discriminator.requires_grad_(False)  # half its way back is spared
        net.zero_grad()
        loss = next(turns)
        self.manual_backward(loss)
        net.step()
        self.discriminator.requires_grad_(True)

        for rate in self.lr_schedulers():
            rate.step()
        self.ema.step(self.net)
        return loss.detach()

    def configure_optimizers(self) -> list[dict]:
        return [self.optimiser_of(self.net), self.optimiser_of(self.discriminator)]


def discriminator_loss(real: Sequence[Tensor], made: Sequence[Tensor]) -> Tensor:
    """Least squares (Mao et al. 2017), summed over discriminators: scores of what is real go to 1, of what is made to 0."""
    return torch.stack([(1 - mine).square().mean() + its.square().mean() for mine, its in zip(real, made, strict=True)]).sum()


def generator_loss(made: Sequence[Tensor]) -> Tensor:
    """Least squares, summed over discriminators: scores of what is made go to 1."""
    return torch.stack([(1 - its).square().mean() for its in made]).sum()


def feature_loss(real: Sequence[Sequence[Tensor]], made: Sequence[Sequence[Tensor]]) -> Tensor:
    """Mean absolute difference of feature maps (Larsen et al. 2016; Kumar et al. 2019), summed over maps and discriminators."""
    pairs = [pair for mine, its in zip(real, made, strict=True) for pair in zip(mine, its, strict=True)]
    return torch.stack([(mine - its).abs().mean() for mine, its in pairs]).sum()
