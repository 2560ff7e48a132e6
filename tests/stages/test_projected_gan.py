"""The family `projected_gan`: what it looks through, and loops at a tempo."""

import json
import struct
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from soundmill import manifest, shards
from soundmill.commands import app
from soundmill.decoding import decode
from soundmill.models import registry
from tests.stages import of_waves
from tests.stages.families import ROWS

TRAINED = "projected_gan"  # of the fixtures
ROW = ROWS[TRAINED]
SECONDS = 1.36
PROJECTORS = ".discriminators.projectors"

train, generate = partial(of_waves.train, "projected_gan"), partial(of_waves.generate, "projected_gan")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data) -> Path:
    """A project with a checkpoint, trained by label through the tagger."""
    home = tmp_path_factory.mktemp("project")
    train(home, data, ROW.composed(".conditional=true"))
    (home / "data/models").mkdir(parents=True)
    (home / "model").rename(home / "data/models/projected_gan")
    (home / "dvc.yaml").touch()
    return home


def run(home: Path, *arguments: str) -> str:
    checkpoint = ["--checkpoint", f"{home}/data/models/projected_gan"]
    result = CliRunner().invoke(app, [*arguments, *checkpoint])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("names", ["[tagger]", "[random,tagger]", "[none]"])
def test_what_discriminators_looked_through_is_told(tmp_path, data, names):
    """In the checkpoint, and beside its sounds."""
    document = ROW.composed(f"{PROJECTORS}={names}", ".steps=1")
    assert train(tmp_path, data, document)["steps"] == 1
    assert json.loads((tmp_path / "model/config.json").read_text())["projectors"] == names.strip("[]").split(",")
    generate(tmp_path, data, document)
    about = json.loads((tmp_path / "generated/about.json").read_text())
    assert about["loops"] is True
    assert about["trained_against"] == (["tagger"] if "tagger" in names else [])
    assert "discriminators on " in about["weights"]
    (back,) = (tmp_path / "codec").iterdir()
    assert np.abs(soundfile.read(back)[0]).max() > 0.01


def test_a_judge_is_marked_however_long_ago_it_was_a_projector(tmp_path, trainings, data):
    """Trained through the tagger, then on from there without."""
    document = ROW.composed(f".start_from={trainings.trained('projected_gan')}/model", f"{PROJECTORS}=[none]", ".steps=1")
    train(tmp_path, data, document)
    config = json.loads((tmp_path / "model/config.json").read_text())
    assert (config["projectors"], config["trained_against"]) == (["none"], ["tagger"])
    generate(tmp_path, data, document)
    assert json.loads((tmp_path / "generated/about.json").read_text())["trained_against"] == ["tagger"]


def test_weights_that_are_not_there_are_told(tmp_path, data, monkeypatch, capsys):
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(tmp_path))
    train(tmp_path, data, ROW.composed(f"{PROJECTORS}=[vggish]", ".steps=1"))
    said = capsys.readouterr().out
    assert "projector 'vggish': vggish-10086976.pth is not in the directory" in said
    assert "Using random weights; an untrained projector reduces quality" in said
    assert json.loads((tmp_path / "model/config.json").read_text())["projectors"] == ["random"]


def test_one_loop_is_enough_to_train_on(tmp_path, data, capsys):
    rows = shards.read_table(data / "catalog.parquet", manifest.CATALOG).to_pylist()
    shards.write_rows([{**row, "split": "train"} for row in rows[:1]], tmp_path / "catalog.parquet", manifest.CATALOG)
    for name in ("clips", "inputs"):
        (tmp_path / name).symlink_to(data / name)
    metrics = train(tmp_path, tmp_path, ROW.composed())
    assert (metrics["clips"], metrics["steps"]) == (1, 4)
    assert len(generate(tmp_path, tmp_path, ROW.composed())) == 1
    assert "these sounds are for train clips: raise splits.test_fraction" in capsys.readouterr().out


def test_loops_are_written_at_a_tempo_and_repeated(tmp_path, trained):
    """Each repetition has the same samples; the tempo is in name, comment and chunk."""
    natural = 240 / SECONDS
    run(trained, "generate", "bell", "-n", "1", "--output", str(tmp_path / "plain"))
    (plain,) = (tmp_path / "plain").glob("*.wav")
    assert plain.name == f"bell-0-001-{round(natural, 3):g}bpm.wav"
    run(trained, "generate", "bell", "-n", "1", "--psi", "0.7", "--bpm", "250", "--repeat", "3", "--output", str(tmp_path / "set"))
    (path,) = (tmp_path / "set").glob("*.wav")
    assert path.name == "bell-0-001-250bpm.wav"
    with soundfile.SoundFile(path) as sound:
        comment, wave, rate = json.loads(sound.comment), sound.read(), sound.samplerate
    assert (comment["bpm"], comment["bars"], comment["sampling"]["psi"]) == (250, 3, 0.7)
    bar = round(rate * 240 / 250)
    assert wave.shape == (3 * bar,)
    assert (wave[:bar] == wave[bar : 2 * bar]).all()
    assert (wave[:bar] == wave[2 * bar :]).all()
    data = path.read_bytes()
    assert struct.unpack("<I", data[4:8])[0] == len(data) - 8
    assert struct.unpack("<IHHfIHHf", data[data.index(b"acid") + 8 :][:24])[4:] == (12, 4, 4, 250.0)
    assert decode.read_mono(path, rate, 60).shape == wave.shape


def test_between_two_seeds(tmp_path, trained):
    """The ends are what these seeds make; a recording has no style."""
    run(trained, "interpolate", "1", "2", "--steps", "3", "--output", str(tmp_path / "way"))
    first, middle, last = (soundfile.read(tmp_path / "way" / f"0{step}.wav")[0] for step in range(3))
    assert b"acid" in (tmp_path / "way/00.wav").read_bytes()
    assert not np.allclose(first, middle)
    assert not np.allclose(middle, last)
    run(trained, "generate", "-n", "1", "--seed", "1", "--output", str(tmp_path / "one"))
    (path,) = (tmp_path / "one").glob("*.wav")
    assert np.abs(soundfile.read(path)[0] - first).max() < 1e-4
    soundfile.write(tmp_path / "a.wav", middle, of_waves.RATE)
    checkpoint = ["--checkpoint", f"{trained}/data/models/projected_gan"]
    refused = CliRunner().invoke(app, ["interpolate", str(tmp_path / "a.wav"), str(tmp_path / "a.wav"), *checkpoint])
    assert refused.exit_code == 1
    assert "this family cannot interpolate between recordings, only between seeds: its sampling has no 'amount'" in refused.output


def test_a_family_of_other_sounds_has_no_tempo(tmp_path, trained, monkeypatch):
    from dataclasses import replace

    family = registry.family
    monkeypatch.setattr(registry, "family", lambda name: replace(family(name), loops=False))
    checkpoint = ["--checkpoint", f"{trained}/data/models/projected_gan", "--output", str(tmp_path)]
    refused = CliRunner().invoke(app, ["generate", "--bpm", "120", *checkpoint])
    assert refused.exit_code == 1
    assert "--bpm and --repeat are for loop families, which 'projected_gan' is not; leave them out" in refused.output
