"""Families whose U-Net sees a signal beside the noisy one, shrunk: `diffusion_vocoder` and `upsampler`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from soundmill import manifest, params
from soundmill.models import generation, registry
from soundmill.models.upsampler.model import without_upper_band
from tests.commands.running import soundmill
from tests.imports import ROOT
from tests.stages import of_waves

FAMILIES = {
    "diffusion_vocoder": ["crop_frames=4", "mel.n_mels=8"],
    "upsampler": ["num_samples=1024"],
}
SHRUNK = {
    "steps": "4",
    "batch_size": "2",
    "log_every_steps": "1",
    "checkpoint_seconds": "0",
    "validate_every_steps": "2",
    "validate_batches": "1",
    "network": "{channels: [4, 8], factors: [1, 4], items: [1, 1], attention: [false, false], text_attention: [false, false], "
    "heads: 2, head_width: 4, groups: 2, modulation: 8}",
    "hardware": "{accelerator: cpu, devices: 1, precision: '32', threads: 1}",
    "grid": "{columns: 2, rows: 1}",
    "sampling.num_steps": "2",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("data")
    of_waves.write(home, channels=2)
    return home


def composed(family: str, *changes: str) -> dict:
    overrides = [f"{family}.train.{key}={value}" for key, value in SHRUNK.items()]
    overrides += [f"{family}.train.{change}" for change in (*FAMILIES[family], *changes)]
    return params.compose(ROOT / "conf", [f"model={family}", *overrides, f"{family}.generate.count=2"])


@pytest.mark.parametrize("family", FAMILIES)
def test_trains_and_is_judged_by_its_reconstructions(tmp_path, data, family):
    """Of whole clips, longer than a window, in stereo; the same every time."""
    metrics = of_waves.train(family, tmp_path, data, composed(family))
    assert (metrics["clips"], metrics["steps"]) == (5, 4)
    assert 0 < metrics["best_valid_loss"] <= metrics["valid_loss"]
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")
    output = of_waves.generate(family, tmp_path, data, composed(family))
    assert list(output) == ["clip-6.wav", "clip-7.wav"]
    info = soundfile.info(tmp_path / "generated/clip-6.wav")
    assert (info.samplerate, info.channels, info.frames) == (of_waves.RATE, 2, 1600)
    assert json.loads((tmp_path / "generated" / manifest.ABOUT_SOUNDS).read_text())["made_by"] == "reconstruct"
    assert of_waves.generate(family, tmp_path, data, composed(family)) == output
    soundfile.write(tmp_path / "some.wav", 0.1 * np.random.default_rng(0).standard_normal((3000, 2)), of_waves.RATE)
    done = soundmill("reconstruct", "some.wav", "--checkpoint", "model", "--output", "byhand", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert soundfile.info(tmp_path / "byhand/some.wav").frames == 3000


@pytest.mark.parametrize("family", FAMILIES)
def test_a_killed_training_ends_like_an_unbroken_one(tmp_path, data, family, monkeypatch, capfd):
    of_waves.check_resuming(family, tmp_path, data, composed(family), monkeypatch, catalog="two_held_out.parquet")
    assert "resuming at step 2 of 4" in capfd.readouterr().out


def test_the_low_band_is_all_that_an_upsampler_sees():
    """Of white noise nearly a quarter of the energy; a tone below a quarter of the rate comes through, one above it does not."""
    noise = torch.randn(1, 1, 16_384, generator=torch.Generator().manual_seed(0))
    assert 0.2 < float(without_upper_band(noise, 4).square().mean() / noise.square().mean()) < 0.25
    time = torch.arange(16_384) / 16_384
    low, high = (torch.sin(2 * torch.pi * hertz * time)[None, None] for hertz in (1000, 3000))
    assert float((without_upper_band(low, 4) - low)[..., 100:-100].abs().max()) < 1e-2
    assert float(without_upper_band(high, 4)[..., 100:-100].abs().max()) < 1e-2


def test_an_upsampler_hears_no_more_than_the_low_band(tmp_path, data):
    """Two sounds of the same low band get the same upper band, and `soundmill upsample` makes it of a file of that rate."""
    of_waves.train("upsampler", tmp_path, data, composed("upsampler", "factor=4"))
    model = registry.family("upsampler").load(tmp_path / "model")
    time = torch.arange(1024) / of_waves.RATE
    low, high = (0.3 * torch.sin(2 * torch.pi * hertz * time).expand(1, 2, -1) for hertz in (800, 5000))
    with generation.running(model, tmp_path) as run:
        output, same, other = (model.reconstruct(waves, run) for waves in (low, low + high, -low))
    torch.testing.assert_close(output[..., 200:-200], same[..., 200:-200], atol=2e-3, rtol=0)
    assert (output - other).abs().max() > 1e-2

    soundfile.write(tmp_path / "low.wav", 0.1 * np.random.default_rng(0).standard_normal(1000), 4000)
    soundfile.write(tmp_path / "high.wav", 0.1 * np.random.default_rng(0).standard_normal(1000), 8000)
    done = soundmill("upsample", "low.wav", "high.wav", "--checkpoint", "model", "--output", "up", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "high: has 8000 Hz; content above 2000 Hz is replaced" in done.stdout
    assert "low: has" not in done.stdout
    info = soundfile.info(tmp_path / "up/low.wav")
    assert (info.samplerate, info.channels, info.frames) == (16_000, 2, 4000)
    for command, message in (
        (["restyle", "low.wav"], "this family cannot restyle: its sampling has no 'amount'"),
        (["inpaint", "low.wav", "--keep", "0:0.1"], "this family cannot inpaint"),
        (["interpolate", "1", "2"], "cannot interpolate"),
    ):
        done = soundmill(*command, "--checkpoint", "model", "--output", "nothing", cwd=tmp_path)
        assert message in " ".join(done.stderr.split())
        assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("diffusion_vocoder", ["mel.sample_rate=22050"], r"mel\.sample_rate is 22050, but .* has 16000; make them agree"),
        ("upsampler", ["num_samples=1022"], "num_samples 1022 must be a multiple of 4 and of 4"),
        ("upsampler", ["batch_size=3", "hardware.devices=2"], "batch_size 3 must be a multiple of hardware.devices 2"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, data, family, changes, message):
    with pytest.raises(SystemExit, match=message):
        of_waves.train(family, tmp_path / "home", data, composed(family, *changes))
    assert not (tmp_path / "home/model").exists()
