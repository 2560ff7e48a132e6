"""The family `diffwave`: sizes as published, labels drawn by the seed, and its vocoder alone."""

from pathlib import Path

import numpy as np
import soundfile
import torch

from soundmill import params
from soundmill.models import registry
from soundmill.models.diffwave.model import Generating
from soundmill.models.family import Request, Run
from tests.commands.running import soundmill
from tests.imports import ROOT
from tests.stages.families import ROWS
from tests.stages.of_waves import LABELS, RATE

RUN = Run(None, torch.device("cpu"), "32", 1, Path(), Path())


def test_counts_of_the_published_systems():
    """By label without its labels' embeddings, 128 numbers each: SC09 has ten."""

    def count(*choices: str) -> int:
        return registry.parameter_counts("diffwave", params.compose(ROOT / "conf", ["model=diffwave", *choices]))["net"]

    assert count("scale=paper") == 2_619_971
    assert count("diffwave=large") == 6_885_315
    assert count("diffwave=sc09", "diffwave.train.condition=none") == 24_034_305
    assert count("diffwave=sc09") + 10 * 128 == 26_413_313


def test_a_request_without_labels_gets_one_by_its_seed():
    document = ROWS["diffwave_label"].composed()
    expected = params.parse(registry.family("diffwave").train_params, document["diffwave"]["train"], "diffwave.train")
    model = Generating(expected, None, RATE, labels=LABELS)
    drawn = model._conditions([Request(seed=seed) for seed in range(20)], RUN)
    assert set(map(tuple, drawn.tolist())) == {(1.0, 0.0), (0.0, 1.0)}
    assert model._conditions([Request(LABELS), Request(("rain",))], RUN).tolist() == [[0.5, 0.5], [0.0, 1.0]]


def test_its_vocoder_alone_makes_what_it_reconstructs(tmp_path, trainings):
    """With all steps of the training; by label it has none."""
    soundfile.write(tmp_path / "some.wav", 0.1 * np.random.default_rng(0).standard_normal(3000), RATE)
    place = ["--checkpoint", f"{trainings.trained('diffwave')}/model"]
    done = soundmill("reconstruct", "some.wav", *place, "--set", "betas=trained", "--output", "back", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    soundmill("vocode", "some.wav", *place, "--steps", "50", "--output", "vocoded", cwd=tmp_path)
    vocoded, reconstructed = (soundfile.read(tmp_path / folder / "some.wav")[0] for folder in ("vocoded", "back"))
    np.testing.assert_allclose(vocoded, reconstructed, atol=2e-4)
    assert np.abs(vocoded).max() > 0.01
    place = ["--checkpoint", f"{trainings.trained('diffwave_label')}/model"]
    done = soundmill("vocode", "some.wav", *place, "--steps", "50", "--output", "none", cwd=tmp_path)
    assert "this checkpoint of the family 'diffwave' has no vocoder" in done.stderr
