"""Waves of unit variance, in the families and components that diffuse waves: what is stored, and what earlier checkpoints give."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from soundmill.audio import flac, mel
from soundmill.models import registry
from soundmill.models.components.unet1d.codec import codec
from soundmill.models.components.unet1d.vocoder import vocoder
from tests.models.components.test_mel_autoencoder import SPEC
from tests.stages import of_waves
from tests.stages.components import ROWS, Components
from tests.stages.families import ROWS as FAMILIES
from tests.stages.families import Trainings

LEVEL = 0.1  # of the clips
FAMILY_ROWS = ["waveform_unet_none", "upsampler", "diffusion_vocoder", "diffwave_none"]
COMPONENTS = ["unet1d", "unet1d_vocoder"]


def config_of(place: Path) -> dict:
    return json.loads((place / "config.json").read_text())


@pytest.mark.parametrize("name", FAMILY_ROWS)
def test_the_scale_of_the_waves_is_measured_and_stored(tmp_path, trainings: Trainings, name):
    first = tmp_path / "unit/model"
    unit = "per_frequency" if name == "waveform_unet_none" else "true"
    trainings.train(first.parent, name, ".steps=1", f".unit_variance={unit}")
    stored = config_of(first)["sigma_data"]
    if name == "waveform_unet_none":  # per frequency
        assert len(stored) == 257
    expected = LEVEL / np.sqrt(2) if name == "diffusion_vocoder" else LEVEL  # that of both channels' mean
    assert np.sqrt(np.mean(np.square(stored))) == pytest.approx(expected, rel=0.05)
    assert registry.family(FAMILIES[name].family).load(first).sigma_data == stored
    # What starts from it keeps the scale of its weights.
    trainings.train(tmp_path / "second", name, ".steps=1", f".start_from={first}", ".unit_variance=false")
    assert config_of(tmp_path / "second/model")["sigma_data"] == stored


@pytest.mark.parametrize("name", FAMILY_ROWS)
def test_an_earlier_checkpoint_makes_the_same_sounds(tmp_path, trainings: Trainings, name):
    row, data = FAMILIES[name], trainings.data(name)
    trainings.train(tmp_path, name, ".steps=1", ".unit_variance=false")
    made = of_waves.generate(row.family, tmp_path, data, row.composed())
    earlier = config_of(tmp_path / "model")
    assert earlier.pop("sigma_data") == 1
    earlier["params"].pop("unit_variance", None)
    (tmp_path / "model/config.json").write_text(json.dumps(earlier))
    for path in (tmp_path / "generated", tmp_path / "codec"):
        path.rename(path.with_name(f"first-{path.name}"))
    assert of_waves.generate(row.family, tmp_path, data, row.composed()) == made


def output(name: str, place: Path) -> torch.Tensor:
    """What it decodes from the same input."""
    if name == "unet1d_vocoder":
        return vocoder.load(place, SPEC).vocode(torch.zeros(1, SPEC.n_mels, 8))
    return codec.load(place).decode(torch.zeros(1, 3, 8))


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_component_stores_the_scale_of_its_waves(tmp_path, components: Components, name):
    row, data = ROWS[name], components.data(name)
    training = [flac.decode_mono(clip["audio"]["bytes"]) for clip in of_waves.clips_of(data)[:5]]
    expected = LEVEL if name == "unet1d" else np.concatenate([mel.levelled(wave, SPEC) for wave in training]).std()
    first = components.made(name) / "inputs" / row.part
    assert config_of(first)["sigma_data"] == pytest.approx(expected, rel=0.05)
    start = f".weights.start_from={first}", ".weights.unit_variance=false", ".weights.steps=1"
    row.make(tmp_path, data, row.composed(*start))
    assert config_of(tmp_path / "inputs" / row.part)["sigma_data"] == config_of(first)["sigma_data"]


@pytest.mark.parametrize("name", COMPONENTS)
def test_an_earlier_component_makes_the_same_sounds(tmp_path, components: Components, name):
    row, place = ROWS[name], tmp_path / "inputs" / ROWS[name].part
    row.make(tmp_path, components.data(name), row.composed(".weights.unit_variance=false", ".weights.steps=1"))
    made, expected = config_of(place), output(name, place)
    assert made.pop("sigma_data") == 1
    (place / "config.json").write_text(json.dumps(made))
    assert torch.equal(output(name, place), expected)
    (place / "config.json").write_text(json.dumps({**made, "sigma_data": LEVEL}))
    assert output(name, place).std() < 0.5 * expected.std()
