"""Training several nets in turns, such as a generator and its discriminators."""

from __future__ import annotations

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
    """One net's step on a batch; `due` says on which batches it takes one."""

    net: str
    due: Callable[[int], bool] = lambda step: True


@dataclass(frozen=True)
class Phase:
    """A part of a training: which nets step on each batch, in which order, by which losses, and what is frozen.

    `losses(step, batch, nets)` gives the loss of each of `nets`, those that are due on batch `step`, in order; each is computed
    when those before have stepped. `frozen` names nets or parts of them (`net.encoder`). The last phase has no `steps`, it goes on
    to the end.
    """

    turns: tuple[Turn, ...]
    losses: Callable[[int, Batch, Sequence[str]], Iterator[Tensor]]
    steps: int | None = None
    frozen: tuple[str, ...] = ()


class PhasedModule(TrainingModule):
    """Nets with an optimiser each, which step as the phases say; every batch is one step of the training.

    `net` is what is averaged, measured and kept; `others` are the nets that it learns against, by name, with their optimisers'
    parameters.
    """

    def __init__(self, net: nn.Module, others: Mapping[str, tuple[nn.Module, OptimiserParams]], params: TrainingParams, steps: int):
        super().__init__(net, params, steps)
        self.optimised |= {name: its for name, (_, its) in others.items()}
        for name, (other, _) in others.items():
            self.add_module(name, other)

    @abstractmethod
    def phases(self) -> Sequence[Phase]:
        """In order."""

    def phase(self, step: int) -> Phase:
        """The one that batch `step` is in."""
        first = 0
        for phase in self.phases():
            if phase.steps is None or step < first + phase.steps:
                return phase
            first += phase.steps
        raise ValueError(f"no phase has batch {step}: the last one must have no `steps`")

    def turns(self, batch: Batch) -> Iterator[tuple[str, Callable[[], Tensor]]]:
        """As the phase says. A net's loss is computed, and its step taken, while those before it and those not due stand still."""
        phase = self.phase(batch.step)
        due = [turn.net for turn in phase.turns if turn.due(batch.step)]
        if not due:
            raise ValueError(f"nobody's turn on batch {batch.step}: every batch is a step of somebody")
        losses = phase.losses(batch.step, batch, due)
        for place, name in enumerate(due):
            # What is to come may share its way forward with this turn: only who is done, or not due, is left out.
            with self._still({*self.optimised} - {*due[place:]} | {*phase.frozen}):
                yield name, partial(next, losses)

    @contextmanager
    def _still(self, names: Iterable[str]) -> Iterator[None]:
        """Inside, these get no gradient, which halves their backward pass."""
        weights = [weight for name in names for weight in self.get_submodule(name).parameters() if weight.requires_grad]
        for weight in weights:
            weight.requires_grad_(False)
        try:
            yield
        finally:
            for weight in weights:
                weight.requires_grad_(True)


def rebuilt(make: Callable[..., nn.Module], arguments: Sequence[Any], state: Mapping[str, Tensor]) -> nn.Module:
    """`make(*arguments)` with this state: what a net is pickled as whose layers are under torch's norms, which refuse it."""
    net = make(*arguments)
    net.load_state_dict(state)
    return net


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
