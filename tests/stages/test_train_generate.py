"""The stages `train` and `generate`, by the family `ddpm_mel` in small: weights that are kept and chosen, scores, killed processes,
labels as people write them, and pictures that fail."""

import json
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from soundmill import hashing, manifest, params, shards
from soundmill.audio import tags
from soundmill.audio.mel import log_mel
from soundmill.errors import UserError
from soundmill.evaluation import folders
from soundmill.models import generation, registry
from soundmill.models.catalog import choose_balanced
from soundmill.models.sounds import match_label
from soundmill.tracking import StageRun
from soundmill.training import checkpoint
from tests.imports import ROOT
from tests.stages import of_waves
from tests.stages.families import ROWS
from tests.stages.handling import tree
from tests.stages.of_waves import config_of
from tests.training.doubling import Killed, die_before

TRAINED = "ddpm_mel"  # of the fixtures
ROW = ROWS[TRAINED]
WHOLE = ["best.safetensors", "config.json", "model.safetensors", manifest.TRAINED_ON_FILE]
LONG = (".steps=12", ".log_every_steps=2", ".validate_every_steps=4", ".samples_every_steps=5", ".keep_every_steps=4", ".keep=1")
SCORED = (".score_every_steps=5", ".score_requests=4", ".score_share=null")
train, generate = partial(of_waves.train, "ddpm_mel"), partial(of_waves.generate, "ddpm_mel")
STRANGE = (r"$\frac{$", "rain", "[/b]\nbell", "🐶", "$x^$", "_^}{%#& " * 1250)
OFTEN = (".samples_every_steps=3", ".grid={columns: 3, rows: 2}")


def metrics_of(home: Path) -> dict:
    return json.loads((home / "train.json").read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data) -> Path:
    """By a process of its own: what it prints is what a person sees, and the thread count is fixed before torch starts."""
    home = tmp_path_factory.mktemp("whole")
    params.write_yaml(ROW.composed(*LONG), home / "params.yaml")
    command = [sys.executable, "-m", "stages.train", *of_waves.train_arguments("ddpm_mel", home, data)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warn" not in (done.stdout + done.stderr).lower()
    return home


def test_the_lowest_held_out_loss_and_kept_steps_are_in_the_checkpoint(trained):
    metrics, curve = metrics_of(trained), pd.read_csv(trained / "curve.csv")
    assert [*curve.columns] == ["step", "loss/train", "loss/valid", "learning_rate"]
    assert [*curve.step] == [4, 8, 12]
    assert metrics["valid_loss"] == pytest.approx(curve["loss/valid"].iloc[-1], rel=1e-5)
    assert metrics["best_valid_loss"] == pytest.approx(curve["loss/valid"].min(), rel=1e-5)
    assert metrics["best_step"] == curve.step[curve["loss/valid"].idxmin()]
    assert config_of(trained / "model")["weights"] == {
        "last": {"step": 12, "valid_loss": metrics["valid_loss"]},
        "best": {"step": metrics["best_step"], "valid_loss": metrics["best_valid_loss"]},
        "8": {"step": 8, "valid_loss": pytest.approx(curve["loss/valid"][1], rel=1e-5)},
    }
    assert sorted(path.name for path in (trained / "model").iterdir()) == sorted([*WHOLE, "step-8.safetensors"])


def test_sounds_are_made_with_the_weights_of_any_step_that_was_kept(tmp_path, trained, data, capfd):
    shutil.copytree(trained / "model", tmp_path / "model")
    output = {}
    for use, said in (("last", "last weights (step 12,"), (12, "last weights (step 12,"), (8, "weights of step 8, held-out loss ")):
        generate(tmp_path, data, ROW.composed(f"ddpm_mel.generate.use={use}"))
        assert said in capfd.readouterr().out
        output[use] = tree(tmp_path / "generated") | {"about.json": b""}
    assert output["last"] == output[12] != output[8]
    kept, last = (checkpoint.read_weights(tmp_path / "model" / name) for name in ("step-8.safetensors", "model.safetensors"))
    assert any(not torch.equal(value, last[f"net.{name}"]) for name, value in kept.items())
    with pytest.raises(SystemExit, match=r"has no weights of step 4; it has those of steps (\d+, )?8, 12"):
        generate(tmp_path, data, ROW.composed("ddpm_mel.generate.use=4"))


@pytest.mark.slow
def test_two_processes_generate_the_bytes_of_one(tmp_path, trainings, data):
    """Each makes whole batches: other sounds in a batch would change the last bits."""
    trainings.copy("ddpm_mel", tmp_path)
    output = {}
    for devices in (1, 2):
        generate(tmp_path, data, ROW.composed("ddpm_mel.generate.batch_size=1", f"execution.devices={devices}"))
        output[devices] = hashing.tree_digest(tmp_path / "generated"), hashing.tree_digest(tmp_path / "codec")
        metrics = json.loads((tmp_path / "generate.json").read_text())
        assert len(list((tmp_path / "generated").glob("*.wav"))) == metrics["generated"] == 2
        assert json.loads((tmp_path / "data/.work/generate-ddpm_mel/cost.json").read_text())["seconds_per_second"] > 0
    assert output[1] == output[2]


def test_another_start_is_another_training(tmp_path, trainings, monkeypatch):
    start = trainings.trained("ddpm_mel") / "model"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_before(patch, 1)
        trainings.train(tmp_path, "ddpm_mel", f".start_from={start}")
    (directory,) = tmp_path.glob("data/.work/train-ddpm_mel/*/training*")
    assert directory.name == f"training-{hashing.tree_digest(start)}"


def test_sounds_of_a_training_are_tracked_and_another_process_trains_the_same(tmp_path, trained, data, monkeypatch):
    sent: dict[str, list[str]] = {}
    drawn: list[str] = []
    made: dict[str, tags.MadeBy | None] = {}

    def log_file(self: StageRun, path: Path, folder: str = "") -> None:
        sent.setdefault(folder, []).append(path.name)
        made[folder] = tags.read(path)

    monkeypatch.setattr(StageRun, "log_file", log_file)
    monkeypatch.setattr(StageRun, "log_figure", lambda self, figure, name: drawn.append(name))
    train(tmp_path, data, ROW.composed(*LONG))
    assert sent["samples/step-0000010"] == sent["samples/final"] == ["01-bell.wav", "02-rain.wav"]
    assert made["samples/step-0000010"] == tags.MadeBy("train/ddpm_mel after 10 steps", tags.GENERATED)
    assert drawn[-3:] == ["samples/step-0000010", "loss", "samples/final"]
    for name in ("model/model.safetensors", "model/best.safetensors", "model/config.json", "curve.csv", "grid.png", "train.json"):
        assert (tmp_path / name).read_bytes() == (trained / name).read_bytes(), name


@pytest.fixture(scope="module")
def scored(tmp_path_factory, data) -> tuple[Path, list]:
    """A training with scores, and the points of their curves."""
    home, points = tmp_path_factory.mktemp("scored"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageRun, "log_curve", lambda self, values, step: points.append((step, values)))
        train(home, data, ROW.composed(*LONG, *SCORED))
    return home, [(step, values) for step, values in points if any(name.startswith("score/") for name in values)]


def test_scores_while_training_change_no_weight_and_have_intervals(trained, scored):
    home, points = scored
    assert [step for step, _ in points] == [5, 10, 12]
    names = [f"score/{metric}_tagger" for metric in ("fad", "kl", "class")]
    for _, values in points:
        assert [*values] == [name + end for name in names for end in ("", "_low", "_high")]
        assert all(values[f"{name}_low"] <= values[name] <= values[f"{name}_high"] for name in names)
    metrics, before = metrics_of(home), metrics_of(trained)
    best = min(points, key=lambda point: point[1]["score/fad_tagger"])
    assert (metrics["best_fad_step"], metrics["best_fad"]) == (best[0], best[1]["score/fad_tagger"])
    assert metrics.items() > before.items()
    assert metrics.keys() - before.keys() == {"best_fad", "best_fad_step", *(name.replace("/", "_") for name in points[0][1])}
    for name in ("model/model.safetensors", "model/best.safetensors", "curve.csv", "grid.png"):
        assert (home / name).read_bytes() == (trained / name).read_bytes(), name


def test_scores_of_a_small_training_keep_to_their_share_of_its_operations(tmp_path, data, capfd):
    """Four sounds cost more than a few steps of it, so after the first only the last step is scored."""
    points, share = [], ".score_share=0.1"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageRun, "log_curve", lambda self, values, step: "score/fad_tagger" in values and points.append(step))
        train(tmp_path, data, ROW.composed(*SCORED[:2], share, ".steps=20"))
    assert points == [5, 20]
    said = capfd.readouterr().out
    assert re.search(r"scores would be \d\d% of all operations; for 10% \(score_share\), the next ones come every", said)


def test_sounds_of_the_weights_that_the_tagger_chose_are_not_ranked_by_it(tmp_path, scored, data, capfd):
    home, points = scored
    shutil.copytree(home / "model", tmp_path / "model")
    generate(tmp_path, data, ROW.composed("ddpm_mel.generate.use=best_fad"))
    step, values = min(points, key=lambda point: point[1]["score/fad_tagger"])
    assert f"best_fad weights (step {step}, " in (said := capfd.readouterr().out)
    assert f"FAD while training {values['score/fad_tagger']:.4g})" in said
    assert folders.about(tmp_path / "generated").seen == {"tagger": "the model's weights were chosen by tagger"}

    # What starts from these weights was chosen by the tagger, too.
    further = tmp_path / "further"
    shutil.copytree(home / "model", further / "before")
    config = config_of(further / "before")
    config["params"]["use"] = "best_fad"
    (further / "before/config.json").write_text(json.dumps(config))
    train(further, data, ROW.composed(".start_from=before"))
    shutil.rmtree(further / "before")
    generate(further, data, ROW.composed())
    assert folders.about(further / "generated").chosen_by == ("tagger",)


def test_scores_that_cannot_be_measured_are_refused_before_training(tmp_path, data):
    shutil.copytree(data, tmp_path / "data")
    rows = shards.read_table(data / "catalog.parquet", manifest.CATALOG).to_pylist()
    kept = [row for row in rows if row["split"] != "valid"]
    shards.write_rows(kept, tmp_path / "data/kept.parquet", manifest.CATALOG)
    with pytest.raises(SystemExit, match=r"the validation split has no clip; raise splits\.valid_fraction, or set it to null"):
        train(tmp_path / "home", tmp_path / "data", ROW.composed(*SCORED), "kept.parquet")
    shutil.rmtree(tmp_path / "data/tagger")
    with pytest.raises(SystemExit, match=r"needs the tagger, but .*tagger is none: set families\.ddpm_mel\.tagger to data/tagger"):
        train(tmp_path / "home", tmp_path / "data", ROW.composed(*SCORED))


def test_a_reconstruction_sounds_like_the_recording(tmp_path, trainings):
    document, rng, time_ = ROW.composed(), np.random.default_rng(0), np.arange(4800) / 16_000
    spec = of_waves.spec_of(document, "ddpm_mel")
    model = registry.family("ddpm_mel").load(trainings.trained("ddpm_mel") / "model")
    for hertz in (300, 700, 1100):
        wave = (0.3 * np.sin(2 * np.pi * hertz * time_) * np.exp(-3 * time_) + 0.02 * rng.standard_normal(4800)).astype(np.float32)
        with generation.running(model, tmp_path, ["griffin_lim_iterations=16"]) as run:
            output = model.reconstruct(torch.from_numpy(wave)[None, None], run)[0, 0].numpy()
        real, back = log_mel(wave, spec), log_mel(output, spec)
        loud = real > real.max() - 9  # within 40 dB of the loudest
        assert np.abs(back - real)[loud].mean() < 0.35  # 1.5 dB
        assert np.exp(back).sum() == pytest.approx(np.exp(real).sum(), rel=0.1)


def test_without_labels_it_is_unconditional_and_says_so(tmp_path, data, capfd):
    train(tmp_path, data, ROW.composed(".steps=1"), "unlabelled.parquet")
    assert "unconditional" in capfd.readouterr().out
    assert config_of(tmp_path / "model")["labels"] == []
    (path,) = generation.generate_sounds(tmp_path / "model", [], 1, 0, tmp_path / "sounds", tmp_path)
    assert soundfile.info(path).frames == 4800


@pytest.fixture(scope="module")
def strange(tmp_path_factory, data) -> Path:
    """The same clips and log-mels under labels that people do write."""
    home = tmp_path_factory.mktemp("strange") / "data"
    rows = shards.read_table(data / "catalog.parquet", manifest.CATALOG).to_pylist()
    rows = [{**row, "labels": [STRANGE[-1 - index % 6]], "captions": []} for index, row in enumerate(rows)]
    shards.write_rows(rows, home / "catalog.parquet", manifest.CATALOG)
    for name in ("clips", "inputs"):
        (home / name).symlink_to(data / name)
    return home


def test_a_label_may_be_any_text(tmp_path, strange, capfd, recwarn):
    train(tmp_path, strange, ROW.composed(*OFTEN))
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")
    assert config_of(tmp_path / "model")["labels"] == sorted(STRANGE[1:])
    assert len(generate(tmp_path, strange, ROW.composed())) == 2
    for label in STRANGE[3:]:
        (path,) = generation.generate_sounds(tmp_path / "model", [label], 1, 0, tmp_path / "sounds", tmp_path)
        assert re.fullmatch(r"[a-z0-9-]{1,90}\.wav", path.name)
        with soundfile.SoundFile(path) as sound:
            prompt = json.loads(sound.comment)["prompt"]
        assert prompt == label or (len(prompt) == generation.LONGEST_PROMPT and label.startswith(prompt[:-1]))
        assert (tmp_path / "sounds/spectrograms.png").read_bytes().startswith(b"\x89PNG")
        (tmp_path / "sounds/spectrograms.png").unlink()
    assert capfd.readouterr().err == ""
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_pictures_that_fail_lose_neither_model_nor_sounds(strange, tmp_path, capfd, no_picture):
    train(tmp_path, strange, ROW.composed(*OFTEN))
    failed = r"could not be made: MemoryError: no picture \(conftest\.py, line \d+\)"
    now_and_then, losses, last = capfd.readouterr().err.splitlines()
    assert re.fullmatch(r"tracking: figures/loss\.png " + failed, losses)
    assert re.fullmatch(r"tracking: figures/samples/step-0000003\.png " + failed, now_and_then)
    assert re.fullmatch(r"train/ddpm_mel: the samples \(grid\.png\) " + failed, last)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == WHOLE
    assert metrics_of(tmp_path)["valid_loss"] > 0
    assert last in (tmp_path / "grid.png").read_text()

    assert len(generate(tmp_path, strange, ROW.composed())) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert re.fullmatch(r"tracking: figures/generated_spectrograms\.png " + failed, line)
    assert len(list((tmp_path / "codec").iterdir())) == 1
    (path,) = generation.generate_sounds(tmp_path / "model", ["rain"], 1, 0, tmp_path / "sounds", tmp_path)
    assert soundfile.info(path).frames == 4800
    assert re.fullmatch(f"{tmp_path}/sounds/spectrograms\\.png " + failed, capfd.readouterr().err.strip())


@pytest.mark.parametrize(
    ("prompt", "label"),
    [
        ("a dog barks", "dog"),
        ("A BABY CRIES, loudly", "baby_cry"),
        ("engines idled outside", "engine-idling"),
        ("a beat on a kick drum", "kick drum"),  # `drum` is within it
        ("somebody drums", "drum"),
        ("DRUM", "drum"),  # exactly, though `kick drum` has it too
        ("idling", "engine-idling"),
    ],
)
def test_the_words_of_a_prompt_name_one_label(prompt, label):
    assert match_label(prompt, ["dog", "baby_cry", "engine-idling", "kick drum", "drum", "rain", "the sea"]) == label


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a dog barks while rain falls", "could be any of: dog_barking, rain; choose one"),
        ("dog", "dog_barking, hot dog"),
        ("a bell rings", "unknown label 'a bell rings'"),
    ],
)
def test_a_prompt_that_names_several_labels_or_none_says_what_there_is(prompt, said):
    with pytest.raises(UserError, match=said):
        match_label(prompt, ["dog_barking", "rain", "train", *(["hot dog"] if prompt == "dog" else [])])


def test_choice_is_balanced_and_stable():
    clips = {f"a{index}": ["a"] for index in range(10)} | {"b0": ["b"], "c0": ["c"], "c1": ["c"], "d0": []}
    chosen = choose_balanced(clips, 6)
    assert chosen == sorted(chosen)
    assert {re.sub(r"\d", "", clip_id) for clip_id in chosen} == {"a", "b", "c", "d"}
    assert choose_balanced(dict(reversed(clips.items())), 6) == chosen
    assert len(choose_balanced(clips, None)) == len(clips)
