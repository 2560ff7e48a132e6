"""Training several nets in turn, such as a generator and its discriminators."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from soundmill.training.loader import Batch
from soundmill.training.module import TrainingModule
from soundmill.training.params import OptimiserParams, TrainingParams


@dataclass(frozen=True)
class Turn:
    """One net's step on a batch, taken on the batches for which `due` is true."""

    net: str
    due: Callable[[int], bool] = lambda step: True


@dataclass(frozen=True)
class Phase:
    """A phase of a training: which nets step on each batch, in which order, with which losses, and what is frozen.

    `losses(step, batch, nets)` yields in order the loss of each of `nets`, those due on batch `step`; each is computed after the
    nets before it have stepped. `frozen` names nets or submodules (`net.encoder`). The last phase has no `steps`: it runs to the
    end.
    """

    turns: tuple[Turn, ...]
    losses: Callable[[int, Batch, Sequence[str]], Iterator[Tensor]]
    steps: int | None = None
    frozen: tuple[str, ...] = ()


class PhasedModule(TrainingModule):
    """Several nets with one optimiser each, which step as the phases say; every batch is one training step.

    `net` is averaged, validated and saved; `others` are the nets that it is trained against, by name, each with its optimiser's
    parameters.
    """

    def __init__(self, net: nn.Module, others: Mapping[str, tuple[nn.Module, OptimiserParams]], params: TrainingParams, steps: int):
        super().__init__(net, params, steps)
        self.optimised |= {name: optimiser for name, (_, optimiser) in others.items()}
        for name, (other, _) in others.items():
            self.add_module(name, other)

    @abstractmethod
    def phases(self) -> Sequence[Phase]:
        """All phases, in order."""

    def phase(self, step: int) -> Phase:
        """The phase of batch `step`."""
        first = 0
        for phase in self.phases():
            if phase.steps is None or step < first + phase.steps:
                return phase
            first += phase.steps
        raise ValueError(f"batch {step} is in no phase: the last phase must have no `steps`")

    def turns(self, batch: Batch) -> Iterator[tuple[str, Callable[[], Tensor]]]:
        """The turns of the phase. Nets that have had their turn on this batch, or have none, get no gradients meanwhile."""
        phase = self.phase(batch.step)
        due = [turn.net for turn in phase.turns if turn.due(batch.step)]
        if not due:
            raise ValueError(f"no net is due on batch {batch.step}: at least one must step on every batch")
        losses = phase.losses(batch.step, batch, due)
        for place, name in enumerate(due):
            # Later turns may reuse this turn's forward pass, so only nets that are done or not due lose their gradients.
            with self._without_gradients({*self.optimised} - {*due[place:]} | {*phase.frozen}):
                yield name, partial(next, losses)

    @contextmanager
    def _without_gradients(self, names: Iterable[str]) -> Iterator[None]:
        """Compute no weight gradients of these nets in the block, which halves their backward pass."""
        weights = [weight for name in names for weight in self.get_submodule(name).parameters() if weight.requires_grad]
        for weight in weights:
            weight.requires_grad_(False)
        try:
            yield
        finally:
            for weight in weights:
                weight.requires_grad_(True)


def rebuilt(make: Callable[..., nn.Module], arguments: Sequence[Any], state: Mapping[str, Tensor]) -> nn.Module:
    """`make(*arguments)` with this state; used to pickle nets with torch's weight norms, which cannot be pickled."""
    net = make(*arguments)
    net.load_state_dict(state)
    return net


def discriminator_loss(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Least-squares loss (Mao et al. 2017), summed over discriminators: real scores go to 1, fake ones to 0."""
    return torch.stack([(1 - r).square().mean() + f.square().mean() for r, f in zip(real, fake, strict=True)]).sum()


def generator_loss(fake: Sequence[Tensor]) -> Tensor:
    """Least-squares loss, summed over discriminators: fake scores go to 1."""
    return torch.stack([(1 - scores).square().mean() for scores in fake]).sum()


def hinge_discriminator_loss(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Hinge loss (Lim & Ye 2017), summed over discriminators: pushes real scores above 1 and generated ones below −1."""
    return torch.stack([(1 - r).relu().mean() + (1 + f).relu().mean() for r, f in zip(real, fake, strict=True)]).sum()


def hinge_generator_loss(fake: Sequence[Tensor]) -> Tensor:
    return torch.stack([-scores.mean() for scores in fake]).sum()


def feature_loss(real: Sequence[Sequence[Tensor]], fake: Sequence[Sequence[Tensor]]) -> Tensor:
    """Mean absolute difference of feature maps (Larsen et al. 2016; Kumar et al. 2019), summed over maps and discriminators."""
    pairs = [pair for maps in zip(real, fake, strict=True) for pair in zip(*maps, strict=True)]
    return torch.stack([(r - f).abs().mean() for r, f in pairs]).sum()
