"""What is trained: nets with an optimiser each, an average of one of them, and the loss of a batch.

What step k sees follows from (seed, k) alone, so a resumed training equals an unbroken one.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from soundmill.training.ema import Ema
from soundmill.training.loader import Batch, share
from soundmill.training.params import OptimiserParams, TrainingParams
from soundmill.training.seeds import seed_of
from soundmill.training.starting import take_weights

FINAL_SHARE = 0.045  # of the rate, where it decays exponentially: what HiFi-GAN's 0.999 per epoch came to in its 3,100 epochs


class TrainingModule(nn.Module):
    """A net, its optimiser and its average; a family says in `loss` what one batch of it is.

    `loss` must take all its randomness from (seed, number of the batch), as `self.rng(step)` does, and draw it for the batches of
    all processes together, of which it takes `self.mine`. A step of the optimiser takes the mean gradient of `accumulate` batches;
    only where that is 1, its number is the batch's.
    """

    def __init__(self, net: nn.Module, params: TrainingParams, steps: int, accumulate: int = 1):
        super().__init__()
        self.net, self.params, self.steps, self.accumulate = net, params, steps, accumulate
        self.ema = Ema(net, params.ema)  # begun anew where the training begins
        self.optimised = {"net": params.optimiser}  # names of nets
        self.step = 0  # steps taken
        self.device = torch.device("cpu")
        self.rank, self.world_size = 0, 1  # of this process, and number of those that train together

    @abstractmethod
    def loss(self, step: int, batch: Batch) -> Tensor:
        """Scalar loss of this process's share of batch `step` (from 0)."""

    def turns(self, batch: Batch) -> Iterator[tuple[str, Callable[[], Tensor]]]:
        """Names of the nets that take a step on a batch, one after another, and what computes the loss of each."""
        yield "net", partial(self.loss, batch.step, batch)

    def start_from(self, weights: Mapping[str, Tensor], where: str) -> None:
        """Start from weights that another training made, in the directory `where`; those of another net are a UserError."""
        take_weights(self.net, weights, where)

    def valid_loss(self, step: int, batch: Batch) -> Tensor:
        """Scalar loss of a held-out batch; it must be comparable between steps of the training."""
        return self.loss(step, batch)

    def rng(self, *key: Any) -> torch.Generator:
        """A generator on the training device, seeded by (seed, key): the same in every process."""
        return torch.Generator(self.device).manual_seed(seed_of(self.params.seed, 0, *key))

    def mine(self, drawn: Tensor) -> Tensor:
        """This process's part of what was drawn for the batches of all."""
        return share(drawn, self.rank, self.world_size)

    def uniform(self, count: int, rng: torch.Generator) -> Tensor:
        """[count] in [0, 1), this process's part."""
        return self.mine(torch.rand(count * self.world_size, generator=rng, device=self.device))

    def noise_like(self, values: Tensor, rng: torch.Generator) -> Tensor:
        """Standard normal noise of the form of `values`, this process's part."""
        size = len(values) * self.world_size, *values.shape[1:]
        layout = sorted(range(values.ndim), key=values.stride, reverse=True)  # noise is drawn in the order of memory
        whole = torch.empty_permuted(size, layout, dtype=values.dtype, device=values.device)
        return self.mine(whole.normal_(generator=rng))

    def optimisers(self) -> dict[str, torch.optim.AdamW]:
        """New ones, by net."""
        return {name: _optimiser(self.get_submodule(name), kept) for name, kept in self.optimised.items()}

    def share_of_rate(self, net: str, step: int) -> float:
        """Share of a net's learning rate at `step` (from 0)."""
        return rate_factor(step, self.steps, self.optimised[net])

    def more_state(self) -> dict[str, Any]:
        """What a checkpoint holds beside weights, average and optimisers: plain values and tensors."""
        return {}

    def check_state(self, state: dict[str, Any]) -> None:
        """UserError where a training with this `more_state` cannot go on as this one."""


def _optimiser(net: nn.Module, kept: OptimiserParams) -> torch.optim.AdamW:
    matrices = [weight for weight in net.parameters() if weight.ndim >= 2]
    vectors = [weight for weight in net.parameters() if weight.ndim < 2]
    groups = [{"params": matrices, "weight_decay": kept.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=kept.learning_rate,
        betas=tuple(kept.betas),
        eps=kept.eps,
        fused=True,
    )


def rate_factor(step: int, steps: int, params: OptimiserParams) -> float:
    """Share of the learning rate at `step` (from 0), which falls for `steps`."""
    warm = min(1.0, (step + 1) / (params.warmup_steps + 1))
    done = min(step / steps, 1.0)
    if params.decay == "linear":
        return warm * (1 - done)
    if params.decay == "cosine":
        return warm * 0.5 * (1 + math.cos(math.pi * done))
    if params.decay == "exponential":
        return warm * FINAL_SHARE**done
    if params.decay == "tenth":
        return warm * (1 - 0.9 * done)
    if params.decay == "three_quarters":
        return warm * (1 - 0.25 * done)
    return warm
