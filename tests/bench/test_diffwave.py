"""DiffWave beside the package `diffwave`: the same numbers from its weights, and the measurement, shrunken."""

import pytest
import torch
from diffwave import inference
from diffwave.model import DiffWave as TheirNet
from diffwave.params import AttrDict
from diffwave.params import params as their_params

from soundmill.models.components.diffwave import published
from soundmill.models.components.diffwave.vocoder import conditioner
from soundmill.training.seeds import noise_at
from tests.bench.test_measurements import bench


@pytest.fixture
def theirs(tmp_path):
    """Their net, as its training writes it (`learner.py`), and ours of that file."""
    torch.manual_seed(0)
    params = AttrDict(their_params, residual_layers=12)
    net = TheirNet(params)
    torch.nn.init.normal_(net.output_projection.weight, std=0.05)
    torch.save({"step": 5, "model": net.state_dict(), "params": dict(params)}, tmp_path / "weights-5.pt")
    return net.eval(), published.read(tmp_path / "weights-5.pt")


def test_its_fast_sampling_makes_the_same_wave(theirs, monkeypatch):
    net, ours = theirs
    log_mels = torch.linspace(-6, 2, 80 * 5).reshape(1, 80, 5)
    output, steps = ours.vocode(log_mels), iter(["start", *reversed(range(1, len(ours.sampling.betas)))])
    drawn = {step: noise_at(0, 5 * ours.spec.hop_length, 1, ours.sampling.seed, step) for step in ["start", *range(6)]}
    monkeypatch.setattr(torch, "randn", lambda *shape, device: drawn[next(steps)])
    monkeypatch.setattr(torch, "randn_like", lambda like: drawn[next(steps)])
    monkeypatch.setitem(inference.models, "theirs", net)
    wave, rate = inference.predict(conditioner(log_mels, ours.spec), "theirs", device=torch.device("cpu"), fast_sampling=True)
    assert rate == ours.spec.sample_rate
    torch.testing.assert_close(output[:, 0], wave, atol=1e-4, rtol=0)
    assert output.std() > 0.01


@pytest.mark.slow(minutes=1)
def test_measurement(root, tmp_path):
    sizes = {"layers": 2, "batch": 1, "repetitions": 1, "frames": 1}
    document = bench(root, tmp_path, "diffwave", *(f"--{name}={value}" for name, value in sizes.items()))
    names = {f"{side}, {what} step" for side in ("soundmill", "diffwave") for what in ("training", "sampling")}
    assert set(document["seconds"]) == set(document["cpu_seconds"]) == set(document["peak_memory_bytes"]) == names
    assert all(value > 1 << 20 for value in document["peak_memory_bytes"].values())
    assert len(document["targets"]) == 4
    assert set(document["real_time_factors"]) == {"laptop", "2 × 64", "2 × 128"}
    for factors in document["real_time_factors"].values():
        assert factors["50"] > factors["6"] > 0
