"""Train and generate of the family `diffwave` on the real configuration, shrunk: each condition, kills, and what does not fit."""

from __future__ import annotations

import json
import shutil
from functools import partial

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from soundmill import commands, manifest, params
from soundmill.models import registry
from soundmill.models.diffwave.model import Generating
from soundmill.models.family import Request
from tests.imports import ROOT
from tests.stages import of_waves
from tests.stages.of_waves import LABELS, RATE

CHOICES = {"mel": ["diffwave=laptop"], "label": ["diffwave=sc09_laptop"], "none": ["diffwave=sc09_laptop"]}
SHRUNK = [
    "model=diffwave",
    "families.diffwave.clips=default",
    "diffwave.train.steps=4",
    "diffwave.train.batch_size=2",
    "diffwave.train.crop_seconds=0.1",
    "diffwave.train.log_every_steps=1",
    "diffwave.train.checkpoint_seconds=0",
    "diffwave.train.validate_every_steps=2",
    "diffwave.train.validate_batches=1",
    "diffwave.train.network={layers: 3, channels: 4, dilation_cycle: 3}",
    "diffwave.train.mel.n_mels=8",
    "diffwave.train.hardware={accelerator: cpu, devices: 1, precision: '32', threads: 1}",
    "diffwave.train.grid={columns: 2, rows: 1}",
    "diffwave.train.sampling.betas=[0.01,0.3]",
    "diffwave.generate.count=2",
    "diffwave.generate.batch_size=2",
]


def composed(condition: str, *changes: str) -> dict:
    return params.compose(ROOT / "conf", [*SHRUNK, *CHOICES[condition], f"diffwave.train.condition={condition}", *changes])


train, generate = partial(of_waves.train, "diffwave"), partial(of_waves.generate, "diffwave")


def test_counts_of_the_published_systems():
    """By label without its labels' embeddings, 128 numbers each: SC09 has ten."""

    def count(*choices: str) -> int:
        return registry.parameter_counts("diffwave", params.compose(ROOT / "conf", ["model=diffwave", *choices]))["net"]

    assert count("scale=paper") == 2_619_971
    assert count("diffwave=large") == 6_885_315
    assert count("diffwave=sc09", "diffwave.train.condition=none") == 24_034_305
    assert count("diffwave=sc09") + 10 * 128 == 26_413_313


@pytest.mark.parametrize("condition", CHOICES)
def test_trains_and_makes_sounds(tmp_path, mono, condition, capfd):
    """Four training clips of five are long enough; the same checkpoint makes the same sounds, one at a time or together."""
    metrics = train(tmp_path, mono, composed(condition))
    assert (metrics["clips"], metrics["dropped"], metrics["steps"]) == (4, 1, 4)
    assert metrics["labels"] == (2 if condition == "label" else 0)
    assert 0 < metrics["best_valid_loss"] <= metrics["valid_loss"]
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")
    output = generate(tmp_path, mono, composed(condition))
    assert list(output) == ["clip-6.wav", "clip-7.wav"]
    info = soundfile.info(tmp_path / "generated/clip-6.wav")
    assert (info.samplerate, info.channels, info.frames) == (RATE, 1, 1600)
    about = json.loads((tmp_path / "generated" / manifest.ABOUT_SOUNDS).read_text())
    assert about["made_by"] == ("reconstruct" if condition == "mel" else "generate")
    shutil.rmtree(tmp_path / "generated")
    after = generate(tmp_path, mono, composed(condition, "diffwave.generate.batch_size=1"))
    assert after.keys() == output.keys()
    for name, before in output.items():
        one, other = (np.frombuffer(data, "<i2") for data in (before, after[name]))
        assert np.abs(one.astype(int) - other).max() <= 1

    runner, place = CliRunner(), ["--checkpoint", str(tmp_path / "model"), "--set", "betas=trained"]
    if condition == "mel":
        soundfile.write(tmp_path / "some.wav", 0.1 * np.random.default_rng(0).standard_normal(3000), RATE)
        command = ["reconstruct", str(tmp_path / "some.wav"), *place, "--output", str(tmp_path / "byhand")]
    else:
        command = [
            "generate",
            *(["bell"] if condition == "label" else []),
            *place,
            "-n",
            "2",
            "--output",
            str(tmp_path / "byhand"),
        ]
    done = runner.invoke(commands.app, command)
    assert done.exit_code == 0, done.output
    sounds = [soundfile.info(path) for path in done.output.split() if path.endswith(".wav")]
    assert {sound.frames for sound in sounds} == {3000 if condition == "mel" else 1600}

    # With all steps of the training, by the vocoder alone: the same.
    soundfile.write(tmp_path / "some.wav", 0.1 * np.random.default_rng(0).standard_normal(3000), RATE)
    place = ["--checkpoint", str(tmp_path / "model"), "--steps", "50", "--output", str(tmp_path / "vocoded")]
    done = runner.invoke(commands.app, ["vocode", str(tmp_path / "some.wav"), *place])
    if condition != "mel":
        assert "this checkpoint of the family 'diffwave' has no vocoder" in done.output
        return
    vocoded, reconstructed = (soundfile.read(tmp_path / folder / "some.wav")[0] for folder in ("vocoded", "byhand"))
    np.testing.assert_allclose(vocoded, reconstructed, atol=2e-4)
    assert np.abs(vocoded).max() > 0.01


def test_a_killed_training_ends_like_an_unbroken_one(tmp_path, mono, capfd, monkeypatch):
    of_waves.check_resuming("diffwave", tmp_path, mono, composed("label"), monkeypatch)
    assert "resuming at step 2 of 4" in capfd.readouterr().out


def test_a_request_without_labels_gets_one_by_its_seed():
    expected = params.parse(registry.family("diffwave").train_params, composed("label")["diffwave"]["train"], "diffwave.train")
    model = Generating(expected, None, RATE, LABELS)
    drawn = model._conditions([Request(seed=seed) for seed in range(20)], "cpu")
    assert set(map(tuple, drawn.tolist())) == {(1.0, 0.0), (0.0, 1.0)}
    assert model._conditions([Request(LABELS), Request(("rain",))], "cpu").tolist() == [[0.5, 0.5], [0.0, 1.0]]


@pytest.mark.parametrize(
    ("condition", "changes", "catalog", "message"),
    [
        (
            "none",
            ["diffwave.train.crop_seconds=0.2"],
            "catalog",
            r"none of 5 training clips is as long as a crop of 0\.2 s, the longest",
        ),
        ("mel", ["diffwave.train.crop_seconds=0.2"], "catalog", r"or fill clips with silence \(`clips\.clips\.tail: pad`\)"),
        ("mel", ["diffwave.train.crop_seconds=0.001"], "catalog", r"crop_seconds 0\.001 must be at least one frame"),
        ("label", [], "unlabelled", r"no training clip has a label; set diffwave\.train\.condition to `none`"),
        ("mel", ["diffwave.train.mel.sample_rate=22050"], "catalog", r"mel\.sample_rate is 22050, but .* has 16000"),
        ("none", ["diffwave.train.sampling.betas=[0.3,0.01]"], "catalog", "betas must increase"),
        ("none", ["diffwave.train.optimiser.learning_rate=1e30"], "catalog", "loss is no longer a number at step"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, mono, condition, changes, catalog, message):
    with pytest.raises(SystemExit, match=message):
        train(tmp_path / "home", mono, composed(condition, *changes), f"{catalog}.parquet")
    assert not (tmp_path / "home/model").exists()


def test_a_checkpoint_of_another_rate_is_refused(tmp_path, mono):
    train(tmp_path / "first", mono, composed("none"))
    of_waves.write(tmp_path / "other", 22_050)
    start = f"diffwave.train.start_from={tmp_path / 'first/model'}"
    with pytest.raises(SystemExit, match=r"sample_rate is 16000 there and 22050 here; make them agree"):
        train(tmp_path / "second", tmp_path / "other", composed("none", start))
    assert train(tmp_path / "second", mono, composed("none", start))["steps"] == 4
