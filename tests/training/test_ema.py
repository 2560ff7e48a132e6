"""The average copies first and decays after."""

import pytest
import torch

from soundmill import params
from soundmill.training.module import Ema
from soundmill.training.params import DiffusersEmaParams, EmaParams, EmaPytorchParams
from tests.imports import ROOT


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


def test_copies_then_decays_as_the_paper_does():
    seen = _follow(
        DiffusersEmaParams(kind="diffusers", decay=0.995, min_decay=0.995, update_after_step=3), [9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    )
    assert seen[:4] == [1.0, 2.0, 3.0, 4.0]  # update_after_step + 1 copies
    assert seen[4] == pytest.approx(0.995 * 4 + 0.005 * 5)
    assert seen[5] == pytest.approx(0.995 * seen[4] + 0.005 * 6)


def test_rises_to_its_decay_without_a_minimum():
    seen = _follow(DiffusersEmaParams(kind="diffusers", decay=0.5, min_decay=0.0, update_after_step=0), [0.0, 1.0, 2.0, 3.0])
    assert seen[0] == 1.0
    assert seen[1] == pytest.approx(2 / 11 * 1 + 9 / 11 * 2)
    assert seen[2] == pytest.approx(3 / 12 * seen[1] + 9 / 12 * 3)


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
    seen = _follow(
        EmaPytorchParams(kind="ema_pytorch", counts="steps", **settings), [0.0, *(float(step**2) for step in range(1, 13))]
    )
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
    torch.manual_seed(0)
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


def test_a_checkpoint_that_does_not_say_what_it_counts_counted_steps():
    kept = {key: value for key, value in TINY_AUDIO.model_dump().items() if key != "counts"}
    assert params.parse(EmaPytorchParams, kept, "ema") == TINY_AUDIO.model_copy(update={"counts": "steps"})


def test_tiny_audio_diffusion_counts_batches():
    document = params.compose(ROOT / "conf", ["model=waveform_unet", "scale=paper"])["waveform_unet"]["train"]
    assert EmaPytorchParams(**document["ema"]) == TINY_AUDIO
    assert (document["batch_size"], document["accumulate"]) == (1, 32)


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
