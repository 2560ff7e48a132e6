"""Nets in turn: known losses, who steps when, what stands still, and a killed training that ends like an unbroken one."""

import itertools

import numpy as np
import torch
from torch import nn

from soundmill.training import phases
from soundmill.training.curve import Curve, Progress
from soundmill.training.loader import Loader, Order
from soundmill.training.loop import fit as train
from soundmill.training.params import DiffusersEmaParams, OptimiserParams
from soundmill.training.phases import Phase, PhasedModule, Turn
from tests.training import test_loop
from tests.training.test_loop import CPU

OPTIMISER = OptimiserParams(
    learning_rate=0.02, betas=[0.5, 0.9], eps=1e-8, weight_decay=0.01, warmup_steps=0, decay="exponential", clip_norm=1.0
)
OWN_WEIGHTS = DiffusersEmaParams(kind="diffusers", decay=0.0, min_decay=0.0, update_after_step=0)
PARAMS = test_loop.PARAMS.model_copy(update={"seed": 3, "optimiser": OPTIMISER, "ema": OWN_WEIGHTS})


def test_losses_have_their_known_values():
    real, output = [torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0]])], [torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0]])]
    assert phases.discriminator_loss(real, output) == (0.5 + 0.5) + (4 + 4)
    assert phases.generator_loss(output) == 0.5 + 1
    maps = [[torch.zeros(2, 3), torch.ones(2, 4)], [torch.zeros(1)]]
    others = [[torch.full((2, 3), 0.5), torch.ones(2, 4)], [torch.tensor([-2.0])]]
    assert phases.feature_loss(maps, others) == 0.5 + 0 + 2
    assert phases.feature_loss(maps, maps) == 0


class Points:
    """A source of points on a circle."""

    def batch(self, items, drawn):
        angle = torch.from_numpy(drawn) * 6.28318
        return (torch.stack([angle.cos(), angle.sin()], 1),)


class Duel(PhasedModule):
    """From noise to points, told by a net with dropout, so that every source of randomness takes part."""

    def phases(self):
        return [Phase((Turn("discriminator"), Turn("net")), self.losses)]

    def losses(self, step, batch, nets):
        real = batch.values[0]
        output = self.net(torch.randn(len(real), 2, generator=self.rng("noise", step)))
        discriminator = self.discriminator
        yield phases.discriminator_loss([discriminator(real)], [discriminator(output.detach())])
        yield phases.generator_loss([discriminator(output)])


class Watched:
    """Remembers what there is after each batch, beside a kind of module."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.rates, self.counts, self.weights = [], [], []

    def optimisers(self):
        self.net_optimisers = super().optimisers()
        return self.net_optimisers

    def turns(self, batch):
        self.rates.append([optimiser.param_groups[0]["lr"] for optimiser in self.net_optimisers.values()])
        yield from super().turns(batch)
        states = [optimiser.state.values() for optimiser in self.net_optimisers.values()]
        self.counts.append([int(next(iter(state))["step"]) if state else 0 for state in states])
        self.weights.append({name: value.clone() for name, value in self.state_dict().items()})


class WatchedDuel(Watched, Duel):
    pass


def layers(last):
    return nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.2), nn.Dropout(0.1), nn.Linear(16, last))


def fit(scratch, steps=12, kind=Duel):
    torch.manual_seed(0)
    duel = kind(layers(2), {"discriminator": (layers(1), PARAMS.optimiser)}, PARAMS, steps)
    order = Order(3, dict.fromkeys("abcdefgh", 1.0), 4)
    loader = Loader(Points(), order, lambda step: torch.rand(4, generator=torch.Generator().manual_seed(step)), steps=steps)
    curve = Curve(4)
    train(duel, loader, hardware=CPU, scratch=scratch, progress=Progress("duel", 0.5), curve=curve)
    return duel, curve.points


def test_both_step_once_on_every_batch_and_the_steps_are_the_nets(tmp_path):
    watch, points = fit(tmp_path, kind=WatchedDuel)
    assert watch.counts == [[step, step] for step in range(1, 13)]
    assert [point["step"] for point in points] == [4, 8, 12]
    rates = np.array(watch.rates)
    np.testing.assert_array_equal(rates[:, 0], rates[:, 1])
    np.testing.assert_allclose(rates[1:, 0] / rates[:-1, 0], 0.045 ** (1 / 12))


def test_a_net_is_not_moved_by_its_discriminators_loss(tmp_path, monkeypatch):
    torch.manual_seed(0)
    before = [weight.clone() for weight in layers(2).parameters()]

    def only_the_discriminator(self, step, batch, nets):
        yield self.discriminator(self.net(batch.values[0]).detach()).square().mean()
        yield 0 * self.net(batch.values[0]).sum()

    monkeypatch.setattr(Duel, "losses", only_the_discriminator)
    duel, _ = fit(tmp_path, steps=2)
    moved = [(weight - was).abs().max() for weight, was in zip(duel.net.parameters(), before, strict=True)]
    assert max(moved) < 1e-3  # by weight decay alone; a step of Adam's is 0.02
    assert all(weight.requires_grad for weight in duel.discriminator.parameters())


class TwoPhases(Duel):
    """The net alone for four batches; then its first layer stands still, and the discriminator takes every other batch."""

    def phases(self):
        turns = (Turn("discriminator", lambda step: step % 2 == 0), Turn("net", lambda step: step % 2 == 1))
        return [Phase((Turn("net"),), self.alone, steps=4), Phase(turns, self.in_turn, frozen=("net.0",))]

    def alone(self, step, batch, nets):
        assert nets == ["net"]
        yield self.net(batch.values[0]).square().mean()

    def in_turn(self, step, batch, nets):
        assert nets == (["net"] if step % 2 else ["discriminator"])
        real, (own, other) = batch.values[0], self.losses(step, batch, nets)
        yield other if step % 2 else own + 0 * real.sum()


class WatchedPhases(Watched, TwoPhases):
    pass


def test_phases_say_who_steps_and_what_stands_still(tmp_path):
    watch, _ = fit(tmp_path, kind=WatchedPhases)
    moved = [
        {
            name.split(".")[0] + ("" if name.startswith("d") else name[3:5])
            for name in after
            if not torch.equal(after[name], before[name])
        }
        for before, after in itertools.pairwise(watch.weights)
    ]
    assert moved[:3] == [{"net.0", "net.3"}] * 3
    assert moved[3:] == [{"discriminator"}, {"net.3"}] * 4
    assert watch.step == len(watch.weights) == 12


def test_the_curve_is_of_the_nets_own_batches(tmp_path):
    class Known(TwoPhases):
        """The net loses 1 on each of its batches, the discriminator 100."""

        def alone(self, step, batch, nets):
            yield 1 + 0 * self.net(batch.values[0]).sum()

        def in_turn(self, step, batch, nets):
            yield 1 + 0 * self.net(batch.values[0]).sum() if step % 2 else 100 + 0 * self.discriminator(batch.values[0]).sum()

    _, points = fit(tmp_path, kind=Known)
    assert [point["loss/train"] for point in points] == [1, 1, 1]


def test_what_is_frozen_on_purpose_stays_so(tmp_path):
    class Projected(WatchedDuel):
        def __init__(self, net, others, params, steps):
            others["discriminator"][0][0].requires_grad_(False)
            super().__init__(net, others, params, steps)

    duel, _ = fit(tmp_path, steps=3, kind=Projected)
    assert [weight.requires_grad for weight in duel.discriminator.parameters()] == [False, False, True, True]
    assert torch.equal(duel.weights[0]["discriminator.0.weight"], duel.weights[-1]["discriminator.0.weight"])
    assert not torch.equal(duel.weights[0]["net.0.weight"], duel.weights[-1]["net.0.weight"])
