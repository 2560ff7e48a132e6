"""The U-Net of waves beside audio-diffusion-pytorch: the same numbers from its weights, and the measurement, shrunken."""

import pytest
import torch
from torch import Tensor

from bench.waveform import Pair
from soundmill.diffusion import solvers
from soundmill.diffusion.sampling import sample
from tests.bench.test_measurements import bench

SMALL = [
    *(f"waveform_unet.train.network.{name}={value}" for name, value in (("channels", "[8,16]"), ("factors", "[1,4]"))),
    *(f"waveform_unet.train.network.{name}={value}" for name, value in (("items", "[1,2]"), ("heads", 2), ("modulation", 32))),
    *(f"waveform_unet.train.network.{name}=[false,true]" for name in ("attention", "text_attention")),
    "waveform_unet.train.num_samples=256",
    "waveform_unet.train.batch_size=2",
]


@pytest.fixture
def pair():
    threads = torch.get_num_threads()
    yield Pair(SMALL)
    torch.set_num_threads(threads)


def test_its_sample_in_five_steps_is_the_same(pair):
    with torch.no_grad():
        output = sample(solvers.velocity(5), pair.ours.net, pair.noise)
    torch.testing.assert_close(output, pair.theirs.sample(pair.noise, num_steps=5), atol=1e-5, rtol=0)
    assert (output - pair.noise).abs().mean() > 0.1


def test_its_loss_and_gradients_are_the_same(pair, monkeypatch):
    noise, level = torch.randn_like(pair.noise), torch.tensor([0.3, 0.8])

    def drawn(self: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.copy_(noise)

    monkeypatch.setattr(Tensor, "normal_", drawn)
    monkeypatch.setattr(torch, "randn_like", lambda like: noise)
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: level)
    losses = pair.loss()(), pair.theirs(0.3 * pair.noise)
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)
    for loss in losses:
        loss.backward()
    ours, theirs = (sorted(weight.grad.norm().item() for weight in net.parameters()) for net in (pair.ours.net, pair.theirs.net))
    assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    assert ours[-1] > 1e-3


def test_memory_is_counted(pair):
    weights, kept = pair.memory()
    assert weights == 4 * sum(weight.numel() for weight in pair.theirs.net.parameters())
    pair.noise = pair.noise.repeat(3, 1, 1)
    assert pair.memory()[1] / kept == pytest.approx(3, rel=0.1)


@pytest.mark.slow(minutes=1)
def test_measurement(root, tmp_path):
    document = bench(root, tmp_path, "waveform", "--repetitions", "1", "--steps", "1", *SMALL)
    names = {f"{side}, {what} step" for side in ("soundmill", "audio-diffusion-pytorch") for what in ("training", "sampling")}
    assert set(document["seconds"]) == set(document["cpu_seconds"]) == set(document["peak_memory_bytes"]) == names
    assert all(value > 1 << 16 for value in document["peak_memory_bytes"].values())
    assert len(document["targets"]) == 5
    assert document["targets"][-1]["met"]
    assert document["kept_for_backward_bytes"] > document["weights_bytes"] > 0
    factors = document["real_time_factors"]
    assert set(factors) == {"laptop", "one_shots", "published"}
    assert factors["one_shots"] > factors["laptop"] > 0
