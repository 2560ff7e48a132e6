"""Waves of unit variance, in the families and components that diffuse waves: what is stored, what earlier checkpoints give, what is
refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from soundmill import manifest, params, shards
from soundmill.audio import flac, mel
from soundmill.audio.log_mels import SPEC_KEY
from soundmill.models import registry
from soundmill.models.components.unet1d.codec import codec
from soundmill.models.components.unet1d.vocoder import vocoder
from tests.imports import ROOT
from tests.stages import of_waves, test_beside, test_diffusion_ae, test_diffwave, test_vocoder

LEVEL = 0.1  # of the clips


def composed(family: str, *changes: str) -> dict:
    if family == "diffwave":
        return test_diffwave.composed("none", *(f"diffwave.train.{change}" for change in changes))
    if family != "waveform_unet":
        return test_beside.composed(family, *changes)
    its = [f"{family}.train.{key}={value}" for key, value in test_beside.SHRUNK.items()]
    its += [f"{family}.train.{change}" for change in ("num_samples=1024", *changes)]
    return params.compose(ROOT / "conf", [f"model={family}", *its, f"{family}.generate.count=2"])


@pytest.mark.parametrize("family", ["waveform_unet", "upsampler", "diffusion_vocoder", "diffwave"])
def test_the_scale_of_the_waves_is_measured_and_stored(tmp_path, mono, family):
    of_waves.train(family, tmp_path / "unit", mono, composed(family))
    stored = json.loads((tmp_path / "unit/model/config.json").read_text())["sigma_data"]
    if family == "waveform_unet":  # per frequency
        assert len(stored) == 257
    assert np.sqrt(np.mean(np.square(stored))) == pytest.approx(LEVEL, rel=0.05)
    assert registry.family(family).load(tmp_path / "unit/model").sigma_data == stored
    # What starts from it keeps the scale of its weights.
    start = composed(family, f"start_from={tmp_path / 'unit/model'}", "unit_variance=false")
    of_waves.train(family, tmp_path / "second", mono, start)
    assert json.loads((tmp_path / "second/model/config.json").read_text())["sigma_data"] == stored


@pytest.mark.parametrize("family", ["waveform_unet", "upsampler", "diffusion_vocoder", "diffwave"])
def test_an_earlier_checkpoint_makes_the_same_sounds(tmp_path, mono, family):
    document = composed(family, "unit_variance=false")
    of_waves.train(family, tmp_path, mono, document)
    made = of_waves.generate(family, tmp_path, mono, document)
    config = tmp_path / "model/config.json"
    earlier = json.loads(config.read_text())
    assert earlier.pop("sigma_data") == 1
    earlier["params"].pop("unit_variance", None)
    config.write_text(json.dumps(earlier))
    for path in (tmp_path / "generated", tmp_path / "codec"):
        path.rename(path.with_name(f"first-{path.name}"))
    assert of_waves.generate(family, tmp_path, mono, document) == made


@pytest.mark.parametrize("family", ["waveform_unet", "upsampler", "diffusion_vocoder", "diffwave"])
def test_silent_clips_are_refused_before_the_training(tmp_path, family):
    of_waves.write(tmp_path / "data")
    of_waves.silence(tmp_path / "data")
    with pytest.raises(
        SystemExit, match=rf"training clips are digital silence.*{family}\.train\.unit_variance.*check corpus\.path"
    ):
        of_waves.train(family, tmp_path / "home", tmp_path / "data", composed(family))
    assert not (tmp_path / "home/model").exists()


def write(home: Path, silent: bool = False) -> np.ndarray:
    """Clips and their log-mels; returns the samples of the training clips, as a vocoder for these log-mels gets them."""
    of_waves.write(home)
    if silent:
        of_waves.silence(home)
    spec, rows, training = test_vocoder.SPEC, [], []
    for number, row in enumerate(shards.read_rows(home / "clips" / shards.shard_name(0), manifest.CLIPS)):
        wave = flac.decode_mono(row["audio"]["bytes"])
        values = mel.log_mel(wave, spec).astype("<f2")
        told = {"digest": row["digest"], "num_mels": spec.n_mels, "num_frames": values.shape[1]}
        rows.append({"clip_id": row["clip_id"], "log_mel": values.tobytes(), **told})
        if of_waves.SPLITS[number] == "train":
            training.append(mel.levelled(wave, spec))
    schema = manifest.SPECTROGRAMS.with_metadata({SPEC_KEY: spec.model_dump_json().encode()})
    shards.write_rows(rows, home / "mels" / shards.shard_name(0), schema)
    return np.concatenate(training)


def make(component: str, home: Path, *changes: str) -> dict:
    """Train the autoencoder of `diffusion_ae` or `vocoder=diffusion_laptop`, shrunk; returns its configuration as stored."""
    if component == "vocoder":
        test_vocoder.make(home, home, ROOT, 2, kind="diffusion", more=[f"vocoder.weights.{change}" for change in changes])
    else:
        weights = [f"diffusion_ae.autoencoder.weights.{change}" for change in changes]
        test_diffusion_ae.make_autoencoder(home, test_diffusion_ae.composed(*weights))
    return json.loads((home / component / "config.json").read_text())


def output(component: str, directory: Path) -> torch.Tensor:
    """What it decodes from the same input."""
    if component == "vocoder":
        return vocoder.load(directory, test_vocoder.SPEC).vocode(torch.zeros(1, test_vocoder.SPEC.n_mels, 8))
    return codec.load(directory).decode(torch.zeros(1, 3, 8))


@pytest.mark.parametrize("component", ["autoencoder", "vocoder"])
def test_a_component_stores_the_scale_of_its_waves(tmp_path, component):
    expected = write(tmp_path)
    stored = make(component, tmp_path)["sigma_data"]
    assert stored == pytest.approx(LEVEL if component == "autoencoder" else expected.std(), rel=0.05)
    first = (tmp_path / component).rename(tmp_path / "first")
    assert make(component, tmp_path, f"start_from={first}", "unit_variance=false")["sigma_data"] == stored


@pytest.mark.parametrize("component", ["autoencoder", "vocoder"])
def test_an_earlier_component_makes_the_same_sounds(tmp_path, component):
    write(tmp_path)
    made = make(component, tmp_path, "unit_variance=false")
    expected = output(component, tmp_path / component)
    assert made.pop("sigma_data") == 1
    (tmp_path / component / "config.json").write_text(json.dumps(made))
    assert torch.equal(output(component, tmp_path / component), expected)
    scaled = {**made, "sigma_data": LEVEL}
    (tmp_path / component / "config.json").write_text(json.dumps(scaled))
    assert output(component, tmp_path / component).std() < 0.5 * expected.std()


@pytest.mark.parametrize(("component", "says"), [("autoencoder", "digital silence.*autoencoder"), ("vocoder", "silent")])
def test_silent_clips_make_no_component(tmp_path, component, says):
    write(tmp_path, silent=True)
    with pytest.raises(SystemExit, match=rf"training clips are {says}.*check corpus\.path"):
        make(component, tmp_path)
    assert not (tmp_path / component).exists()


@pytest.mark.parametrize("family", ["waveform_unet", "upsampler", "diffusion_vocoder"])
def test_published_scales_keep_the_published_noise(family):
    for scale, unit in (("paper", False), ("gpu", True), ("laptop", "per_frequency" if family == "waveform_unet" else True)):
        train = params.compose(ROOT / "conf", [f"model={family}", f"scale={scale}"])[family]["train"]
        assert train["unit_variance"] == unit


def test_published_components_keep_the_published_noise():
    for scale, unit in (("paper", False), ("gpu", True), ("laptop", True)):
        document = params.compose(ROOT / "conf", ["model=diffusion_ae", f"scale={scale}"])
        assert document["diffusion_ae"]["autoencoder"]["weights"]["unit_variance"] == unit
    for name, unit in (("diffusion", False), ("diffusion_laptop", True)):
        assert params.compose(ROOT / "conf", [f"vocoder={name}"])["vocoder"]["weights"]["unit_variance"] == unit
