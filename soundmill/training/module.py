"""The base classes of everything that is trained: nets with one optimiser each, a weight average, and the loss of a batch.

Step k depends only on (seed, k) and the state before it, so a resumed training equals an uninterrupted one. Several nets, such as
a generator and its discriminators, are trained in turn (`PhasedModule`).
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from soundmill.training import adapters
from soundmill.training.checkpoint import compare
from soundmill.training.device import pick_device, usable_precision
from soundmill.training.loader import Batch, Drawn, share
from soundmill.training.params import EmaParams, HardwareParams, LoraParams, OptimiserParams, TrainingParams
from soundmill.training.seeds import seed_of

FINAL_SHARE = 0.045  # of the rate at the end of exponential decay: HiFi-GAN's 0.999 per epoch after its 3,100 epochs


class TrainingModule(nn.Module):
    """A net, its optimiser and its average; subclasses define `loss`.

    `loss` must seed all randomness by (seed, batch number), as `self.rng(step)` does, draw it for the batch of all processes, and
    use only its own part, `self.share(…)`. An optimiser step uses the mean gradient of `accumulate` batches, so step and batch
    numbers agree only if that is 1.
    """

    def __init__(self, net: nn.Module, params: TrainingParams, steps: int, accumulate: int = 1):
        super().__init__()
        self.net, self.params, self.steps, self.accumulate = net, params, steps, accumulate
        self.ema = Ema(net, params.ema)  # replaced when training starts
        self.optimised = {"net": params.optimiser}  # by the name of the net
        self.step = 0  # number of steps taken
        self.device = torch.device("cpu")
        self.rank, self.world_size = 0, 1

    @abstractmethod
    def loss(self, step: int, batch: Batch) -> Tensor:
        """Scalar loss of this process's share of batch `step` (from 0)."""

    def turns(self, batch: Batch) -> Iterator[tuple[str, Callable[[], Tensor]]]:
        """Names of the nets that take a step on a batch, in order, each with a function that computes its loss."""
        yield "net", partial(self.loss, batch.step, batch)

    def start_from(self, weights: Mapping[str, Tensor], where: str) -> None:
        """Start from the weights of an earlier training in directory `where`; UserError lists tensors that differ."""
        theirs, own = ({name: list(value.shape) for name, value in some.items()} for some in (weights, self.net.state_dict()))
        compare(where, theirs, own)
        self.net.load_state_dict(weights)

    def adapt(self, lora: LoraParams, hardware: HardwareParams) -> None:
        """Train new adapters instead of the net's weights, which are bfloat16 from now on if the training computes in that."""
        if usable_precision(pick_device(hardware.accelerator), hardware.precision) == "bf16":
            self.net.bfloat16()
        torch.manual_seed(seed_of(self.params.seed, 0, "adapters"))
        adapters.attach(self.net, lora)
        self.ema = Ema(self.net, self.params.ema)

    def valid_loss(self, step: int, batch: Batch) -> Tensor:
        """Scalar loss of a held-out batch; it must be comparable between steps of the training."""
        return self.loss(step, batch)

    def rng(self, *key: Any) -> torch.Generator:
        """A generator on the training device, seeded by (seed, key): the same in every process."""
        return torch.Generator(self.device).manual_seed(seed_of(self.params.seed, 0, *key))

    def share(self, drawn: Drawn) -> Drawn:
        """This process's part of values drawn for the batch of all processes."""
        return share(drawn, self.rank, self.world_size)

    def uniform(self, count: int, rng: torch.Generator) -> Tensor:
        """Uniform values [count] in [0, 1), this process's part."""
        return self.share(torch.rand(count * self.world_size, generator=rng, device=self.device))

    def noise_like(self, values: Tensor, rng: torch.Generator) -> Tensor:
        """Standard normal noise with the shape of `values`, this process's part."""
        size = len(values) * self.world_size, *values.shape[1:]
        layout = sorted(range(values.ndim), key=values.stride, reverse=True)  # normal_ fills in memory order
        noise = torch.empty_permuted(size, layout, dtype=values.dtype, device=values.device)
        return self.share(noise.normal_(generator=rng))

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """New optimisers, by net."""
        return {name: _optimiser(self.get_submodule(name), params) for name, params in self.optimised.items()}

    def share_of_rate(self, net: str, step: int) -> float:
        """Factor on a net's learning rate at `step` (from 0)."""
        return rate_factor(step, self.steps, self.optimised[net])

    def more_state(self) -> dict[str, Any]:
        """Further state for the checkpoint, beside weights, average and optimisers: plain values and tensors."""
        return {}

    def check_state(self, state: dict[str, Any]) -> None:
        """UserError if this training cannot resume from a checkpoint with this `more_state`."""


def _optimiser(net: nn.Module, params: OptimiserParams) -> torch.optim.Optimizer:
    weights = adapters.trained(net).values()
    matrices = [weight for weight in weights if weight.ndim >= 2]
    vectors = [weight for weight in weights if weight.ndim < 2]
    groups = [{"params": matrices, "weight_decay": params.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=params.learning_rate,
        betas=tuple(params.betas),
        eps=params.eps,
        fused=True,
    )


def rate_factor(step: int, steps: int, params: OptimiserParams) -> float:
    """Factor on the learning rate at `step` (from 0) of a training of `steps` steps: warm-up times decay."""
    warm = min(1.0, (step + 1) / (params.warmup_steps + 1))
    done = min(step / steps, 1.0)
    decays = {
        "none": 1.0,
        "linear": 1 - done,
        "cosine": 0.5 * (1 + math.cos(math.pi * done)),
        "exponential": FINAL_SHARE**done,
        "tenth": 1 - 0.9 * done,
        "three_quarters": 1 - 0.25 * done,
    }
    return warm * decays[params.decay]


class Ema:
    """The exponential moving average of the weights of `net` that are trained, from which sounds are sampled.

    Call `before_step` and `step` around every optimiser step. Without `params` there is no average, and the net's weights are used
    as they are.
    """

    def __init__(self, net: nn.Module, params: EmaParams | None):
        self.params, self.steps = params, 0
        self.shadow = [weight.detach().clone() for weight in adapters.trained(net).values()] if params else []  # in the net's order

    def before_step(self, net: nn.Module, batches: int) -> None:
        """Call before each optimiser step, with the number of its batches."""
        if self._counts_batches:
            self._update(net, batches)

    def step(self, net: nn.Module) -> None:
        """Call after each optimiser step."""
        if self.params and not self._counts_batches:
            self._update(net, 1)

    @property
    def _counts_batches(self) -> bool:
        return self.params is not None and self.params.kind == "ema_pytorch" and self.params.counts == "batches"

    @torch.no_grad()
    def _update(self, net: nn.Module, count: int) -> None:
        """Apply `count` updates with the same weights at once: their decays multiply."""
        decays = [decay_at(self.params, self.steps + number) for number in range(count)]
        self.steps += count
        decays = [decay for decay in decays if decay is not None]
        if decays:
            get_ema_multi_avg_fn(math.prod(decays))(self.shadow, list(adapters.trained(net).values()), None)

    def to(self, device: Any) -> None:
        self.shadow = [average.to(device) for average in self.shadow]

    @contextmanager
    def applied(self, net: nn.Module) -> Iterator[None]:
        """Give `net` the averaged weights in the block."""
        original = [weight.detach().clone() for weight in adapters.trained(net).values()] if self.params else []
        self.copy_to(net)
        try:
            yield
        finally:
            _copy(original, net)

    def copy_to(self, net: nn.Module) -> None:
        _copy(self.shadow, net)

    def state_dict(self) -> dict[str, Any]:
        return {"shadow": self.shadow, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.shadow, self.steps = state["shadow"], state["steps"]


@torch.no_grad()
def _copy(weights: list[Tensor], net: nn.Module) -> None:
    for weight, value in zip(adapters.trained(net).values(), weights, strict=bool(weights)):
        weight.copy_(value)


def decay_at(params: EmaParams, steps: int) -> float | None:
    """Decay of the next update after `steps` updates; 0 copies the weights, None skips the update.

    `diffusers` follows EMAModel of diffusers 0.35 without warm-up, `ema_pytorch` follows EMA of ema-pytorch 0.8.
    """
    since = steps - params.update_after_step
    if params.kind == "diffusers":
        return 0.0 if since <= 0 else max(min(params.decay, (1 + since) / (10 + since)), params.min_decay)
    if steps % params.update_every:
        return None
    return 0.0 if since <= 0 else min(max(1 - (1 + since / params.inv_gamma) ** -params.power, params.min_decay), params.decay)


class PhasedModule(TrainingModule):
    """Several nets with one optimiser each, which take turns on a batch; every batch is one training step.

    `net` is averaged, validated and saved; `others` are the nets that it is trained against, by name, each with its optimiser's
    parameters.
    """

    def __init__(self, net: nn.Module, others: Mapping[str, tuple[nn.Module, OptimiserParams]], params: TrainingParams, steps: int):
        super().__init__(net, params, steps)
        self.optimised |= {name: optimiser for name, (_, optimiser) in others.items()}
        for name, (other, _) in others.items():
            self.add_module(name, other)

    @abstractmethod
    def losses(self, step: int, batch: Batch, nets: Sequence[str]) -> Iterator[Tensor]:
        """The loss of each of `nets`, in order, on batch `step`; each is computed after the nets before it have stepped."""

    def due(self, step: int) -> Sequence[str]:
        """The nets that step on batch `step`, in order, at least one: by default the `others`, then `net`."""
        return [*(name for name in self.optimised if name != "net"), "net"]

    def frozen(self, step: int) -> Sequence[str]:
        """Nets or submodules (`net.encoder`) that stand still on batch `step`."""
        return ()

    def turns(self, batch: Batch) -> Iterator[tuple[str, Callable[[], Tensor]]]:
        """The turns of the nets due. Nets that have had their turn on this batch, or have none, get no gradients meanwhile."""
        due = self.due(batch.step)
        losses = self.losses(batch.step, batch, due)
        for place, name in enumerate(due):
            # Later turns may reuse this turn's forward pass, so only nets that are done or not due lose their gradients.
            with self._without_gradients({*self.optimised} - {*due[place:]} | {*self.frozen(batch.step)}):
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
