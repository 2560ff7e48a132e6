"""The family `upsampler`: what it hears, and its command."""

import numpy as np
import soundfile
import torch

from soundmill.models import generation, registry
from soundmill.models.upsampler.model import without_upper_band
from tests.commands.running import soundmill
from tests.stages import of_waves


def test_the_low_band_is_all_that_an_upsampler_sees():
    """Of white noise nearly a quarter of the energy; a tone below a quarter of the rate comes through, one above it does not."""
    noise = torch.randn(1, 1, 16_384, generator=torch.Generator().manual_seed(0))
    assert 0.2 < float(without_upper_band(noise, 4).square().mean() / noise.square().mean()) < 0.25
    time = torch.arange(16_384) / 16_384
    low, high = (torch.sin(2 * torch.pi * hertz * time)[None, None] for hertz in (1000, 3000))
    assert float((without_upper_band(low, 4) - low)[..., 100:-100].abs().max()) < 1e-2
    assert float(without_upper_band(high, 4)[..., 100:-100].abs().max()) < 1e-2


def test_an_upsampler_hears_no_more_than_the_low_band(tmp_path, trainings):
    """Two sounds of the same low band get the same upper band, and `soundmill upsample` makes it of a file of that rate."""
    trainings.copy("upsampler", tmp_path)
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
