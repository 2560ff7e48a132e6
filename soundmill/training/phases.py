"""Training several nets in turns, such as a generator and its discriminators."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

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

    automatic_optimization = False

    def __init__(self, net: nn.Module, others: Mapping[str, tuple[nn.Module, OptimiserParams]], params: TrainingParams, steps: int):
        super().__init__(net, params, steps)
        self.optimised = {"net": params.optimiser, **{name: its for name, (_, its) in others.items()}}
        for name, (other, _) in others.items():
            setattr(self, name, other)

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

    def loss(self, step: int, batch: Batch) -> Tensor:
        """All turns of a batch; returns the net's loss, or that of the last who stepped where it did not."""
        phase = self.phase(step)
        due = [turn.net for turn in phase.turns if turn.due(step)]
        if not due:
            raise ValueError(f"nobody's turn on batch {step}: every batch is a step of somebody")
        optimisers = dict(zip(self.optimised, self.optimizers(), strict=True))
        if "net" in due:
            self.ema.before_step(self.net, 1)
        losses = phase.losses(step, batch, due)
        computed: dict[str, Tensor] = {}
        for place, name in enumerate(due):
            # What is to come may share its way forward with this turn: only who is done, or not due, is left out.
            with self._still({*self.optimised} - {*due[place:]} | {*phase.frozen}):
                optimisers[name].zero_grad()
                computed[name] = next(losses)
                self.manual_backward(computed[name])
            if name == due[-1]:  # Lightning counts steps of its own optimisers: one of each batch
                optimisers[name].step()
            else:
                self.trainer.strategy.optimizer_step(optimisers[name].optimizer, _nothing, model=self)
        for rate in self.lr_schedulers():
            rate.step()
        self.net_stepped = "net" in computed
        if self.net_stepped:
            self.ema.step(self.net)
        return computed.get("net", computed[due[-1]]).detach()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        for (name, its), mine in zip(self.optimised.items(), self.optimizers(), strict=True):
            if mine.optimizer is optimizer:
                self.clip(getattr(self, name), its.clip_norm)

    def configure_optimizers(self) -> list[dict]:
        return [self.optimiser_of(getattr(self, name), its) for name, its in self.optimised.items()]

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


def _nothing() -> None:
    """The closure of a step whose gradients are there."""


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
