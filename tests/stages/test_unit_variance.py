"""Waves of unit variance in the families that diffuse waves: what is stored, what earlier checkpoints give, what is refused."""

from __future__ import annotations

import json

import pytest

from soundmill import params
from soundmill.models import registry
from tests.imports import ROOT
from tests.stages import of_waves, test_beside, test_diffwave

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
    assert stored == pytest.approx(LEVEL, rel=0.05)
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


@pytest.mark.parametrize("family", ["waveform_unet", "upsampler", "diffusion_vocoder"])
def test_published_scales_keep_the_published_noise(family):
    for scale, unit in (("paper", False), ("gpu", True), ("laptop", True)):
        train = params.compose(ROOT / "conf", [f"model={family}", f"scale={scale}"])[family]["train"]
        assert train["unit_variance"] == unit
