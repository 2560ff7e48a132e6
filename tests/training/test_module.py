"""What is trained: averages of weights, rates, precision; nets in turn, of which a killed training ends like an unbroken one."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from soundmill import params
from soundmill.errors import UserError
from soundmill.training import loop
from soundmill.training import module as modules
from soundmill.training.curve import Curve, Progress
from soundmill.training.device import autocast, usable_precision
from soundmill.training.loader import Loader, Order
from soundmill.training.loop import fit as train
from soundmill.training.module import Ema, discriminator_loss, feature_loss, generator_loss, rate_factor
from soundmill.training.params import DiffusersEmaParams, EmaParams, EmaPytorchParams, HardwareParams, OptimiserParams
from tests.imports import ROOT
from tests.training import test_loop
from tests.training.doubling import make_loader
from tests.training.test_loop import CPU


def _follow(params: EmaParams, values: list[float]) -> list[float]:
    net = torch.nn.Linear(1, 1, bias=False)
    net.weight.data.fill_(values[0])
    ema = Ema(net, params)
    seen = []
    for value in values[1:]:
        net.weight.data.fill_(value)
        ema.step(net)
        seen.append(ema.shadow[0].item())
    return seen


def test_goes_as_diffusers_does():
    from diffusers.training_utils import EMAModel

    settings = {"decay": 0.9, "min_decay": 0.2, "update_after_step": 4}
    net = torch.nn.Linear(3, 2)
    ours, theirs = Ema(net, DiffusersEmaParams(kind="diffusers", **settings)), EMAModel(net.parameters(), **settings)
    for _ in range(120):
        net.weight.data.add_(torch.randn(2, 3))
        ours.step(net)
        theirs.step(net.parameters())
        torch.testing.assert_close(ours.shadow, [*theirs.shadow_params])


def test_goes_as_ema_pytorch_does():
    """The numbers are those of ema-pytorch 0.8.3 with beta 0.8, min_value 0.1 for a weight of 1, 4, 9, … 144."""
    settings = {"decay": 0.8, "min_decay": 0.1, "update_after_step": 3, "update_every": 2, "inv_gamma": 1.0, "power": 0.7}
    seen = _follow(EmaPytorchParams(kind="ema_pytorch", counts="steps", **settings), [0.0, *(float(n**2) for n in range(1, 13))])
    assert seen[::2] == pytest.approx([1.0, 9.0, 18.84916, 30.27419, 44.74601, 62.53288], abs=1e-4)
    assert seen[::2] == seen[1::2]


class EveryBatch:
    """ema-pytorch's own loop, one `update` at a time, with tiny-audio-diffusion's beta and power."""

    def __init__(self, weight):
        self.average, self.calls = weight.detach().clone(), 0

    def update(self, weight):
        count, self.calls = self.calls, self.calls + 1
        if count % 10:
            return
        decay = 0.0 if count <= 100 else min(1 - (1 + count - 100) ** -0.7, 0.995)
        self.average = decay * self.average + (1 - decay) * weight.detach()


TINY_AUDIO = EmaPytorchParams(
    kind="ema_pytorch",
    counts="batches",
    decay=0.995,
    min_decay=0.0,
    update_after_step=100,
    update_every=10,
    inv_gamma=1.0,
    power=0.7,
)


@pytest.mark.parametrize("batches", [1, 3, 32])
def test_counting_batches_is_an_update_on_each_before_the_step(batches):
    net = torch.nn.Linear(4, 3, bias=False).double()
    literal, ours = EveryBatch(net.weight), Ema(net, TINY_AUDIO)
    for _ in range(400 // batches + 2):
        for _ in range(batches):
            literal.update(net.weight)
        ours.before_step(net, batches)
        net.weight.data.add_(torch.randn(3, 4))
        ours.step(net)
        torch.testing.assert_close(ours.shadow[0], literal.average, rtol=1e-12, atol=1e-12)
    assert ours.steps == literal.calls


def test_tiny_audio_diffusion_counts_batches():
    document = params.compose(ROOT / "conf", ["model=waveform_unet", "scale=paper"])["waveform_unet"]["train"]
    assert EmaPytorchParams(**document["ema"]) == TINY_AUDIO
    assert (document["batch_size"], document["accumulate"]) == (1, 32)
    kept = {key: value for key, value in TINY_AUDIO.model_dump().items() if key != "counts"}
    assert params.parse(EmaPytorchParams, kept, "ema") == TINY_AUDIO.model_copy(update={"counts": "steps"})


def test_without_an_average_it_is_the_weights_themselves():
    net = torch.nn.Linear(2, 1)
    ema = Ema(net, None)
    net.weight.data.add_(1)
    last = net.weight.detach().clone()
    ema.step(net)
    with ema.applied(net):
        assert torch.equal(net.weight, last)
    ema.load_state_dict(ema.state_dict())
    ema.copy_to(net)
    assert torch.equal(net.weight, last)


def test_applied_puts_the_weights_back_and_the_state_survives():
    net = torch.nn.Linear(2, 1)
    ema = Ema(net, DiffusersEmaParams(kind="diffusers", decay=0.9, min_decay=0.9, update_after_step=0))
    ema.step(net)
    before = net.weight.detach().clone()
    net.weight.data.add_(1)
    ema.step(net)
    with ema.applied(net):
        torch.testing.assert_close(net.weight.data, before + 0.1)
    torch.testing.assert_close(net.weight.data, before + 1)

    other = Ema(torch.nn.Linear(2, 1), DiffusersEmaParams(kind="diffusers", decay=0.9, min_decay=0.9, update_after_step=0))
    other.load_state_dict(ema.state_dict())
    net.weight.data.add_(1)
    ema.step(net)
    other.step(net)
    assert all(torch.equal(a, b) for a, b in zip(ema.shadow, other.shadow, strict=True))


OPTIMISER = OptimiserParams(
    learning_rate=0.02, betas=[0.5, 0.9], eps=1e-8, weight_decay=0.01, warmup_steps=0, decay="exponential", clip_norm=1.0
)
OWN_WEIGHTS = DiffusersEmaParams(kind="diffusers", decay=0.0, min_decay=0.0, update_after_step=0)
PARAMS = test_loop.PARAMS.model_copy(update={"seed": 3, "optimiser": OPTIMISER, "ema": OWN_WEIGHTS})


def test_losses_have_their_known_values():
    real, output = [torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0]])], [torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0]])]
    assert discriminator_loss(real, output) == (0.5 + 0.5) + (4 + 4)
    assert generator_loss(output) == 0.5 + 1
    maps = [[torch.zeros(2, 3), torch.ones(2, 4)], [torch.zeros(1)]]
    others = [[torch.full((2, 3), 0.5), torch.ones(2, 4)], [torch.tensor([-2.0])]]
    assert feature_loss(maps, others) == 0.5 + 0 + 2
    assert feature_loss(maps, maps) == 0
    nothing = [torch.zeros(4, 60), torch.zeros(4, 9)]
    assert (modules.hinge_discriminator_loss(nothing, nothing), modules.hinge_generator_loss(nothing)) == (2 * 2, 0)
    assert modules.hinge_discriminator_loss([one + 1 for one in nothing], [one - 1 for one in nothing]) == 0


class Points:
    """A source of points on a circle."""

    def batch(self, items, drawn):
        angle = torch.from_numpy(drawn) * 6.28318
        return (torch.stack([angle.cos(), angle.sin()], 1),)


class Duel(modules.PhasedModule):
    """From noise to points, told by a net with dropout, so that every source of randomness takes part."""

    def losses(self, step, batch, nets):
        real = batch.values[0]
        output = self.net(torch.randn(len(real), 2, generator=self.rng("noise", step)))
        discriminator = self.discriminator
        yield discriminator_loss([discriminator(real)], [discriminator(output.detach())])
        yield generator_loss([discriminator(output)])


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


def layers(last):
    return nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.2), nn.Dropout(0.1), nn.Linear(16, last))


def batches(steps):
    order = Order(3, dict.fromkeys("abcdefgh", 1.0), 4)
    return Loader(Points(), order, lambda step: torch.rand(4, generator=torch.Generator().manual_seed(step)), steps=steps)


def fit(scratch, steps=12, kind=Duel):
    torch.manual_seed(0)
    duel = kind(layers(2), {"discriminator": (layers(1), PARAMS.optimiser)}, PARAMS, steps)
    curve = Curve(4)
    train(duel, batches(steps), hardware=CPU, scratch=scratch, progress=Progress("duel", 0.5), curve=curve)
    return duel, curve.points


def test_both_step_once_on_every_batch_and_the_steps_are_the_nets(tmp_path):
    class Projected(Watched, Duel):
        """What is frozen on purpose stays so."""

        def __init__(self, net, others, params, steps):
            others["discriminator"][0][0].requires_grad_(False)
            super().__init__(net, others, params, steps)

    watch, points = fit(tmp_path, kind=Projected)
    assert [weight.requires_grad for weight in watch.discriminator.parameters()] == [False, False, True, True]
    assert torch.equal(watch.weights[0]["discriminator.0.weight"], watch.weights[-1]["discriminator.0.weight"])
    assert not torch.equal(watch.weights[0]["net.0.weight"], watch.weights[-1]["net.0.weight"])
    assert watch.counts == [[step, step] for step in range(1, 13)]
    assert [point["step"] for point in points] == [4, 8, 12]
    rates = np.array(watch.rates)
    np.testing.assert_array_equal(rates[:, 0], rates[:, 1])
    np.testing.assert_allclose(rates[1:, 0] / rates[:-1, 0], 0.045 ** (1 / 12))


def test_a_net_is_not_moved_by_its_discriminators_loss(tmp_path, monkeypatch):
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

    def due(self, step):
        return ["net"] if step < 4 or step % 2 else ["discriminator"]

    def frozen(self, step):
        return [] if step < 4 else ["net.0"]

    def losses(self, step, batch, nets):
        own, other = super().losses(step, batch, nets)
        yield self.net(batch.values[0]).square().mean() if step < 4 else other if nets == ["net"] else own


def test_phases_say_who_steps_and_what_stands_still(tmp_path):
    watch, _ = fit(tmp_path, kind=type("WatchedPhases", (Watched, TwoPhases), {}))
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

        def losses(self, step, batch, nets):
            lost = {"net": 1, "discriminator": 100}
            yield lost[nets[0]] + 0 * self.get_submodule(nets[0])(batch.values[0]).sum()

    _, points = fit(tmp_path, kind=Known)
    assert [point["loss/train"] for point in points] == [1, 1, 1]


def test_an_average_that_counts_batches_is_updated_on_each_as_the_training_goes(tmp_path):
    """tiny-audio-diffusion updates it in `training_step`, before the step that the batch may end."""

    class Literal(test_loop.Regression):
        def loss(self, step, batch):
            literal.update(self.net[0].weight)
            return super().loss(step, batch)

    net = test_loop._net()
    literal = EveryBatch(net[0].weight)
    trained = Literal(net, test_loop.PARAMS.model_copy(update={"ema": TINY_AUDIO}), 60, 4)
    train(trained, make_loader(tmp_path, 240), hardware=CPU, scratch=tmp_path, progress=Progress("test", 0.5), curve=Curve(4))
    assert trained.ema.steps == literal.calls == 240
    torch.testing.assert_close(trained.ema.shadow[0], literal.average)
    assert not torch.allclose(literal.average, net[0].weight)


def test_rate_rises_and_falls():
    assert rate_factor(0, 100, test_loop.OPTIMISER) == pytest.approx(0.25)
    assert rate_factor(50, 100, test_loop.OPTIMISER) == pytest.approx(0.5)
    assert rate_factor(100, 100, test_loop.OPTIMISER) == pytest.approx(0, abs=1e-12)
    falling = test_loop.OPTIMISER.model_copy(update={"decay": "three_quarters"})
    assert [rate_factor(step, 100, falling) for step in (40, 100)] == pytest.approx([0.9, 0.75])
    held = test_loop.OPTIMISER.model_copy(update={"decay": "none"})
    assert rate_factor(99, 100, held) == 1
    shrinking = held.model_copy(update={"decay": "exponential", "warmup_steps": 0})
    assert rate_factor(0, 100, shrinking) == 1
    assert rate_factor(50, 100, shrinking) ** 2 == pytest.approx(rate_factor(100, 100, shrinking)) == 0.045


def test_weights_of_another_net_are_refused_by_name():
    trained = test_loop.Regression(test_loop._net(), test_loop.PARAMS, 1)
    other = {name: value + 1 for name, value in test_loop._net().state_dict().items()}
    trained.start_from(other, "there")
    assert all(torch.equal(*pair) for pair in zip(trained.net.parameters(), other.values(), strict=True))
    other["3.bias"] = torch.zeros(5)
    other["4.bias"] = torch.zeros(1)
    message = r"start_from: there: 3\.bias is \[5\] there and \[4\] here; 4\.bias is \[1\] there and absent here; make them agree"
    with pytest.raises(UserError, match=message):
        trained.start_from(other, "there")


@pytest.mark.parametrize(
    ("instructions", "used"),
    [
        ({"avx512_bf16": True}, "bf16"),
        ({"avx512_bf16": False, "amx_bf16": True}, "bf16"),
        ({"avx512_f": True, "avx512_bf16": False}, "32"),
    ],
)
def test_bfloat16_is_left_to_processors_that_have_instructions_for_it(monkeypatch, instructions, used):
    assert any(name.endswith("bf16") for name in torch.cpu.get_capabilities())  # torch tells of this one
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    assert usable_precision(torch.device("cpu"), "bf16") == used
    assert usable_precision(torch.device("cpu"), "32") == "32"
    assert usable_precision(torch.device("cuda"), "bf16") == "bf16"
    x = torch.ones(2, 2)
    with autocast(torch.device("cpu"), "bf16"):
        assert (x @ x).dtype == {"bf16": torch.bfloat16, "32": torch.float32}[used]
    with autocast(torch.device("cpu"), "32"):
        assert (x @ x).dtype == torch.float32


def test_fp16_is_a_gpus():
    assert usable_precision(torch.device("cuda"), "fp16") == "fp16"
    with pytest.raises(UserError, match=r"`fp16`, which needs a GPU, and there is none here; set it to `bf16` or `32`"):
        usable_precision(torch.device("cpu"), "fp16")
    hardware = {"accelerator": "cpu", "devices": 1, "precision": "fp16", "threads": 1}
    with pytest.raises(UserError, match="precision fp16 needs a GPU; on a CPU use bf16 or 32"):
        params.parse(HardwareParams, hardware, "params.yaml: hardware")


class Alone(modules.TrainingModule):
    def loss(self, step, batch):
        return (self.net(batch.values[0]) - batch.values[0]).square().mean()


def alone(params, steps):
    return Alone(layers(2), params, steps)


def duel(params, steps):
    return Duel(layers(2), {"discriminator": (layers(1), params.optimiser)}, params, steps)


@pytest.mark.parametrize("build", [alone, duel])
@pytest.mark.parametrize("clip_norm", [1e-3, 20.0, None])
def test_steps_of_fp16_are_those_of_32_bits_whatever_the_scale_of_its_losses(build, clip_norm):
    """The gradients are longer than the first bound and shorter than the second; both nets' steps are fused."""
    whole, half = (lengths(build, clip_norm, scale) for scale in (None, 1024.0))
    assert len(half) == (3 if build is alone else 6)
    assert half == pytest.approx(whole, rel=0.05)
    if clip_norm:  # the first moment begins with half of the gradient: its beta is 0.5
        assert (whole[0] == pytest.approx(clip_norm / 2)) == (clip_norm < 1)


def lengths(build, clip_norm: float | None, scale: float | None) -> list[float]:
    """Length of each optimiser's first moments after each of its steps, a sum of the gradients that it took."""
    params = PARAMS.model_copy(update={"optimiser": OPTIMISER.model_copy(update={"clip_norm": clip_norm})})
    seen: list[float] = []

    def note(optimiser: torch.optim.Optimizer, *_) -> None:
        moments = [state["exp_avg"].flatten() for state in optimiser.state.values()]
        seen.append(float(torch.linalg.vector_norm(torch.cat(moments))))

    torch.manual_seed(0)
    module = build(params, 3)
    with loop.accelerated(CPU, "fp16" if scale else "32", 1) as accelerator:
        if scale:  # which accelerate leaves to a GPU
            accelerator.scaler, accelerator.native_amp = torch.amp.GradScaler("cpu", init_scale=scale), True
        optimisers = loop.place(module, accelerator, CPU)
        for one in optimisers.values():
            one.optimizer.register_step_post_hook(note)
        for batch in batches(3):
            loop.train_on(module, batch, accelerator, optimisers)
    return seen
