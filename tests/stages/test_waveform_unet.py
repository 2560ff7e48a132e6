"""The family `waveform_unet`: what it makes of recordings and between seeds, its conditions, and the crops it trains on."""

import numpy as np
import pytest
import soundfile
import torch

from soundmill import params
from soundmill.models import generation, registry
from soundmill.models.family import Request
from tests.stages.families import ROWS, Trainings


def load(trainings: Trainings, name: str):
    return registry.family("waveform_unet").load(trainings.trained(name) / "model")


@pytest.mark.parametrize("name", ["waveform_unet_none", "waveform_unet", "waveform_unet_caption"])
def test_guidance_changes_what_has_a_condition(tmp_path, trainings, name):
    """By hand a caption's states come from the encoder."""
    place, asked = trainings.trained(name) / "model", [ROWS[name].prompt] if ROWS[name].prompt else []
    guided, plain = (
        soundfile.read(generation.generate_sounds(place, asked, 1, 0, tmp_path / by, tmp_path, [f"guidance_scale={by}"])[0])[0]
        for by in ("2.0", "1.0")
    )
    assert (np.abs(guided - plain).max() > 1e-4) == bool(asked)  # of waves of standard deviation 0.1


def test_restyles_and_inpaints(tmp_path, trainings):
    model = load(trainings, "waveform_unet")
    waves = 0.3 * torch.randn(2, 2, 3000, generator=torch.Generator().manual_seed(0))
    expected = [Request(("bell",), seed=1), Request(("rain",), seed=2)]

    def transformed(*settings: str) -> torch.Tensor:
        with generation.running(model, tmp_path, settings) as run:
            return model.transform(waves, expected, run)

    assert torch.equal(transformed("amount=0.0"), waves)
    changes = [float((transformed(f"amount={amount}") - waves).square().mean()) for amount in (0.1, 1.0)]
    assert 0 < changes[0] < changes[1]
    with generation.running(model, tmp_path) as run:
        torch.testing.assert_close(transformed("amount=1.0"), model.generate(expected, run)[..., :3000])
    inpainted = transformed("keep=[[0,1000],[2500,3000]]", "resamples=2")
    assert torch.equal(inpainted[..., :1000], waves[..., :1000])
    assert torch.equal(inpainted[..., 2500:], waves[..., 2500:])
    assert (inpainted - waves)[..., 1000:2500].abs().mean() > 0.01


def test_sounds_on_the_way_between_two(tmp_path, trainings):
    model, ends = load(trainings, "waveform_unet_none"), (Request(seed=1), Request(seed=2))
    with generation.running(model, tmp_path, ["amount=0.0"]) as run:
        path = model.interpolate(ends, None, [0.0, 0.5, 1.0], run)
        torch.testing.assert_close(path[::2], model.generate(ends, run))
        assert 0.5 < float(path[1].std() / path[0].std()) < 2
        waves = torch.stack([torch.full((2, 3000), 0.2), torch.full((2, 3000), 0.4)])
        torch.testing.assert_close(model.interpolate(ends, waves, [0.0, 0.25, 1.0], run)[:, 0, 0], torch.tensor([0.2, 0.25, 0.4]))


@pytest.mark.parametrize(("crop", "fixed"), [("start", True), ("random", False)])
def test_shorter_clips_end_in_silence_and_crops_begin_where_they_are_told_to(tmp_path, trainings, crop, fixed):
    kind, data = registry.family("waveform_unet"), trainings.data("waveform_unet_none")
    document = ROWS["waveform_unet_none"].composed(f".crop={crop}", ".num_samples=4000")
    expected = params.parse(kind.train_params, document["waveform_unet"]["train"], "waveform_unet.train")

    class Context:
        scratch = tmp_path

    prepared = kind.prepare(expected, Context, data / "clips", data / "clips", tmp_path, data / "catalog.parquet", None)
    first, second = (prepared.source.batch(np.array([0, 4]), prepared.draw(step).numpy())[0] for step in (0, 1))
    assert first.shape == (2, 2, 4000)
    assert torch.equal(first[0], second[0]) == fixed
    assert (first[1, :, 2205:] == 0).all()
    assert (first[1, :, :2205] != 0).any()
