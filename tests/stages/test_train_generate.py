"""The two stages of a family on the real configuration, shrunk: train, kill, resume, sample, and the mistakes people make."""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

import stages.generate
import stages.train
from soundmill import hashing, manifest, params, shards
from soundmill.audio import tags
from soundmill.audio.mel import MelSpec, SpectrogramParams, log_mel
from soundmill.errors import UserError
from soundmill.evaluation import folders
from soundmill.models import generation, registry
from soundmill.models.catalog import choose_balanced
from soundmill.models.components.contracts import save_vocoder
from soundmill.models.components.diffwave.network import DiffWaveNet
from soundmill.models.components.diffwave.vocoder import DiffWave
from soundmill.models.requests import match_label
from soundmill.tracking import StageRun
from soundmill.training import checkpoint
from stages.spectrogram import spectrogram_shard
from tests.models.components.test_diffwave import FAST, NOISE, TINY
from tests.stages import of_waves
from tests.training.killing import Killed, die_before

ROOT = Path(__file__).resolve().parents[2]
LABELS = ("bell", "dog bark", "rain")
WHOLE = ["best.safetensors", "config.json", "model.safetensors", manifest.TRAINED_ON_FILE]

GUIDED = ["num_steps=3", "guidance_scale=1.5"]

SHRUNK = [
    "model=ddpm_mel",
    "ddpm_mel.train.steps=12",
    "ddpm_mel.train.batch_size=4",
    "ddpm_mel.train.log_every_steps=2",
    "ddpm_mel.train.checkpoint_seconds=0",
    "ddpm_mel.train.hardware.accelerator=cpu",
    "ddpm_mel.train.hardware.threads=1",
    "ddpm_mel.train.validate_every_steps=4",
    "ddpm_mel.train.validate_batches=2",
    "ddpm_mel.train.samples_every_steps=5",
    "ddpm_mel.train.keep_every_steps=4",
    "ddpm_mel.train.keep=1",
    "ddpm_mel.train.grid.columns=3",
    "ddpm_mel.train.grid.rows=1",
    "ddpm_mel.train.network.widths=[8,16,24]",
    "ddpm_mel.train.network.embedding_size=8",
    "ddpm_mel.train.sampling.num_steps=2",
    "ddpm_mel.train.sampling.griffin_lim_iterations=2",
    "ddpm_mel.generate.count=3",
    "ddpm_mel.generate.codec_count=2",
]


def _wave(label: str, index: int, num_samples: int) -> np.ndarray:
    time = np.arange(num_samples) / 16_000
    rng = np.random.default_rng(LABELS.index(label) * 100 + index)
    tone = np.sin(2 * np.pi * (300 + 400 * LABELS.index(label)) * time) * np.exp(-time * (1 + index % 3))
    return (0.3 * tone + 0.02 * rng.standard_normal(num_samples)).astype(np.float32)


def _flac(wave: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave, 16_000, format="FLAC", subtype="PCM_16")
    return file.getvalue()


@pytest.fixture(scope="module")
def composed() -> dict:
    return params.compose(ROOT / "conf", SHRUNK)


@pytest.fixture(scope="module")
def data(tmp_path_factory, composed) -> Path:
    home = tmp_path_factory.mktemp("data")
    write_data(home, composed)
    return home


def write_data(home: Path, composed: dict) -> None:
    """Catalog, clips and spectrograms of 18 clips with one label each, one with two and a short one."""
    spec = SpectrogramParams(**composed["spectrogram"]["ddpm_mel"]).spec
    catalog, clips = [], []
    for index in range(18):
        labels = [LABELS[index % 3]] + (["rain"] if index == 1 else [])
        split = ("train", "train", "train", "train", "valid", "test")[index // 3]
        wave = _wave(labels[0], index, 40_000 if index == 17 else 80_000)
        clip_id = f"clip-{index:02d}_0"
        common = {"clip_id": clip_id, "recording_id": f"clip-{index:02d}", "source": f"{index}.wav", "start": 0.0}
        catalog.append({**common, "shard": 0, "split": split, "captions": [labels[0]], "labels": labels, "weight": 1.0})
        clips.append({**common, "audio": {"bytes": _flac(wave), "path": f"{clip_id}.flac"}, "digest": "", "num_samples": len(wave)})
    shards.write_rows(catalog, home / "catalog.parquet", manifest.CATALOG)
    unlabelled = [{**row, "labels": []} for row in catalog]
    shards.write_rows(unlabelled, home / "unlabelled.parquet", manifest.CATALOG)
    shards.write_rows(clips, home / "clips" / "shard-00000.parquet", manifest.CLIPS)
    write_log_mels(home / "clips", home / "mels", spec)


def write_log_mels(clips: Path, mels: Path, spec: MelSpec) -> None:
    """Spectrogram shards of shards of clips."""
    spectrogram_shard(clips / "shard-00000.parquet", spec.model_dump_json(), mels / "shard-00000.parquet")


def train_arguments(
    home: Path, data: Path, catalog: str = "catalog.parquet", vocoders: str = "mels", tagger: str = "mels"
) -> list[str]:
    return [
        "--family", "ddpm_mel", "--inputs", f"{data}/mels", "--parts", f"{data}/{vocoders}", "--tagger", f"{data / tagger}",
        "--clips", f"{data}/clips", "--catalog", f"{data / catalog}",
        "--model", f"{home}/model", "--curves", f"{home}/curve.csv", "--grid", f"{home}/grid.png",
        "--metrics", f"{home}/train.json", "--params", f"{home}/params.yaml",
    ]  # fmt: skip


def _train(home: Path, data: Path, catalog: str = "catalog.parquet") -> None:
    stages.train.main(train_arguments(home, data, catalog))


def _generate(home: Path, data: Path) -> None:
    arguments = [
        "--family", "ddpm_mel", "--model", f"{home}/model", "--clips", f"{data}/clips",
        "--catalog", f"{data}/catalog.parquet", "--generated", f"{home}/generated", "--codec", f"{home}/codec",
        "--metrics", f"{home}/generate.json", "--params", f"{home}/params.yaml",
    ]  # fmt: skip
    stages.generate.main(arguments)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data, composed) -> Path:
    home = tmp_path_factory.mktemp("whole")
    params.write_yaml(composed, home / "params.yaml")
    # A process of its own: what it prints is what a person sees, and the thread count is fixed before torch starts.
    done = subprocess.run(
        [sys.executable, "-m", "stages.train", *train_arguments(home, data)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "warn" not in (done.stdout + done.stderr).lower()
    return home


def test_trains_the_real_configuration_shrunk(trained):
    metrics = json.loads((trained / "train.json").read_text())
    assert metrics["clips"] == 12
    assert metrics["labels"] == 3
    assert metrics["steps"] == 12
    curve = pd.read_csv(trained / "curve.csv")
    assert [*curve.columns] == ["step", "loss/train", "loss/valid", "learning_rate"]
    assert [*curve.step] == [4, 8, 12]
    assert metrics["valid_loss"] == pytest.approx(curve["loss/valid"].iloc[-1], rel=1e-5)
    assert metrics["best_valid_loss"] == pytest.approx(curve["loss/valid"].min(), rel=1e-5)
    assert metrics["best_step"] == curve.step[curve["loss/valid"].idxmin()]
    assert (trained / "grid.png").read_bytes().startswith(b"\x89PNG")
    config = json.loads((trained / "model" / "config.json").read_text())
    assert config["family"] == "ddpm_mel"
    assert config["labels"] == list(LABELS)
    assert config["weights"] == {
        "last": {"step": 12, "valid_loss": metrics["valid_loss"]},
        "best": {"step": metrics["best_step"], "valid_loss": metrics["best_valid_loss"]},
        "8": {"step": 8, "valid_loss": pytest.approx(curve["loss/valid"][1], rel=1e-5)},
    }
    assert sorted(path.name for path in (trained / "model").iterdir()) == sorted([*WHOLE, "step-8.safetensors"])


def test_a_checkpoint_takes_its_vocoder_along(tmp_path, data, composed):
    """It must be for the family's log-mels; sounds and reconstructions are by it, also where it is no longer beside the inputs."""
    spec = SpectrogramParams(**composed["spectrogram"]["ddpm_mel"]).spec
    document = json.loads(json.dumps(composed))  # as few sounds as can be: a network of every sample is slow
    document["ddpm_mel"]["train"] |= {"steps": 2, "samples_every_steps": None, "grid": {"columns": 1, "rows": 1}}
    document["ddpm_mel"]["generate"] |= {"count": 1, "codec_count": 1, "precision": "32"}
    params.write_yaml(document, tmp_path / "params.yaml")
    for name in ("mels", "clips", "catalog.parquet"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).symlink_to(data / name)
    arguments = train_arguments(tmp_path, tmp_path / "data", vocoders="made")
    where = tmp_path / "data/made/vocoder"
    where.parent.mkdir()
    for change, message in (({"f_max": 7000.0}, r"f_max 7000\.0, not 8000\.0"), ({}, None)):
        shutil.rmtree(where, ignore_errors=True)
        torch.manual_seed(0)
        made_for = spec.model_copy(update=change)
        save_vocoder(
            DiffWave(TINY, NOISE, FAST.model_copy(update={"betas": [1e-4, 0.5]}), made_for, DiffWaveNet(TINY, made_for)),
            where,
            {"kind": "train"},
        )
        if message:
            with pytest.raises(SystemExit, match=message):
                stages.train.main(arguments)
    stages.train.main(arguments)
    shutil.rmtree(where)
    model = registry.family("ddpm_mel").load(tmp_path / "model")
    assert isinstance(model.vocoder, DiffWave)
    _generate(tmp_path, data)
    output, _ = soundfile.read(next((tmp_path / "generated").glob("*.wav")))
    assert np.abs(output).max() > 0.99  # a net that predicts no noise leaves it all, held within 1
    assert sorted(registry.parameter_counts("ddpm_mel", params.compose(ROOT / "conf", ["vocoder=diffwave"]))) == ["unet", "vocoder"]


def test_sounds_are_made_with_the_weights_of_any_step_that_was_kept(tmp_path, trained, data, composed, capfd):
    shutil.copytree(trained / "model", tmp_path / "model")
    document, output = json.loads(json.dumps(composed)), {}
    for use, said in (("last", "last weights (step 12,"), (12, "last weights (step 12,"), (8, "weights of step 8, held-out loss ")):
        document["ddpm_mel"]["generate"]["use"] = use
        params.write_yaml(document, tmp_path / "params.yaml")
        _generate(tmp_path, data)
        assert said in capfd.readouterr().out
        output[use] = [path.read_bytes() for path in sorted((tmp_path / "generated").glob("*.wav"))]
    assert output["last"] == output[12] != output[8]
    kept, last = (checkpoint.read_weights(tmp_path / "model" / name) for name in ("step-8.safetensors", "model.safetensors"))
    assert any(not torch.equal(value, last[f"net.{name}"]) for name, value in kept.items())
    document["ddpm_mel"]["generate"]["use"] = 4
    params.write_yaml(document, tmp_path / "params.yaml")
    with pytest.raises(SystemExit, match=r"has no weights of step 4; it has those of steps (\d+, )?8, 12"):
        _generate(tmp_path, data)


def test_two_processes_generate_the_bytes_of_one(tmp_path, trained, data, composed):
    """Each makes whole batches: other sounds in a batch would change the last bits."""
    shutil.copytree(trained / "model", tmp_path / "model")
    document, output = json.loads(json.dumps(composed)), {}
    document["ddpm_mel"]["generate"]["batch_size"] = 2
    for devices in (1, 2):
        document["execution"]["devices"] = devices
        params.write_yaml(document, tmp_path / "params.yaml")
        _generate(tmp_path, data)
        output[devices] = hashing.tree_digest(tmp_path / "generated"), hashing.tree_digest(tmp_path / "codec")
        metrics = json.loads((tmp_path / "generate.json").read_text())
        assert len(list((tmp_path / "generated").glob("*.wav"))) == metrics["generated"] == 3
        assert json.loads((tmp_path / "data/.work/generate-ddpm_mel/cost.json").read_text())["seconds_per_second"] > 0
    assert output[1] == output[2]


def test_a_training_that_is_to_use_weights_that_it_will_not_keep_is_refused(tmp_path, data, composed):
    document = json.loads(json.dumps(composed))
    document["ddpm_mel"]["train"]["use"] = 5
    params.write_yaml(document, tmp_path / "params.yaml")
    with pytest.raises(
        SystemExit, match=r"`use` is step 5, whose weights are not kept \(those of 8, 12 are\); change keep_every_steps"
    ):
        _train(tmp_path, data)


@pytest.fixture
def further(tmp_path, trained, data, composed):
    """A function that trains on from `trained` with some parameters changed, on clips some of which have a new label."""
    rows = shards.read_table(data / "catalog.parquet", manifest.CATALOG).to_pylist()
    rows = [{**row, "labels": ["wind"] if row["labels"] == ["bell"] else row["labels"]} for row in rows]
    shards.write_rows(rows, tmp_path / "data" / "catalog.parquet", manifest.CATALOG)
    for name in ("mels", "clips"):
        (tmp_path / "data" / name).symlink_to(data / name)
    shutil.copytree(trained / "model", tmp_path / "before")

    def run(**changes):
        document = json.loads(json.dumps(composed))
        document["ddpm_mel"]["train"] |= {"start_from": "before", "steps": 4, **changes}
        params.write_yaml(document, tmp_path / "params.yaml")
        _train(tmp_path, tmp_path / "data")

    return run


def test_starts_from_a_checkpoint_and_adds_rows_for_new_labels(tmp_path, further, trained, composed, capfd, monkeypatch):
    still = {**composed["ddpm_mel"]["train"]["optimiser"], "learning_rate": 1e-12, "weight_decay": 0.0}
    with monkeypatch.context() as patch:
        die_before(patch, 1)
        with pytest.raises(Killed):
            further(optimiser=still)
    digest = hashing.tree_digest(trained / "model")
    (directory,) = tmp_path.glob("data/.work/train-ddpm_mel/*/training*")
    assert directory.name == f"training-{digest}"  # another checkpoint there is another training

    further(optimiser=still)
    assert "starts from last weights (step 12, held-out loss" in (said := capfd.readouterr().out)
    assert "new labels: wind" in said
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["labels"] == [*LABELS, "wind"]
    assert config["started_from"]["checkpoint"] == digest
    before, after = (checkpoint.read_weights(path / "model.safetensors") for path in (trained / "model", tmp_path / "model"))
    assert len(after["net.labels.weight"]) == 4
    after["net.labels.weight"] = after["net.labels.weight"][:3]
    for name in before.keys() - {"levels", "level_labels"}:
        torch.testing.assert_close(after[name], before[name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start_from": "nowhere"}, r"nowhere: no such directory.* copy it elsewhere first"),
        ({"conditional": False}, "conditional is True there and False here; make them agree, or train from nothing"),
        ({"network": {"widths": [8, 16, 16]}}, r"before: network\.widths is \[8, 16, 24\] there and \[8, 16, 16\] here"),
        ({"diffusion": {"objective": "eps"}}, r"diffusion\.objective is v there and eps here"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(further, composed, changes, message):
    defaults = composed["ddpm_mel"]["train"]
    with pytest.raises(SystemExit, match=message):
        further(**{key: {**defaults[key], **value} if isinstance(value, dict) else value for key, value in changes.items()})


def test_a_start_of_another_family_is_refused(tmp_path, further):
    (tmp_path / "before" / "config.json").write_text('{"family": "tango"}')
    with pytest.raises(SystemExit, match="a checkpoint of family 'tango', not 'ddpm_mel'"):
        further()


def test_kill_9_and_rerun_end_like_an_unbroken_run(tmp_path, trained, data, composed, capfd, monkeypatch):
    sent: dict[str, list[str]] = {}
    drawn: list[str] = []
    made: dict[str, tags.MadeBy | None] = {}

    def log_file(self: StageRun, path: Path, folder: str = "") -> None:
        sent.setdefault(folder, []).append(path.name)
        made[folder] = tags.read(path)

    monkeypatch.setattr(StageRun, "log_file", log_file)
    monkeypatch.setattr(StageRun, "log_figure", lambda self, figure, name: drawn.append(name))
    params.write_yaml(composed, tmp_path / "params.yaml")
    command = [sys.executable, "-m", "stages.train", *train_arguments(tmp_path, data)]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    give_up = time.monotonic() + 120
    while not list(tmp_path.glob("data/.work/train-ddpm_mel/*/training/previous.ckpt")):
        assert running.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < give_up
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not (tmp_path / "model").exists()

    _train(tmp_path, data)
    assert "resuming at step" in capfd.readouterr().out
    sounds = ["01-bell.wav", "02-dog-bark.wav", "03-rain.wav"]
    assert sent["samples/step-0000010"] == sent["samples/final"] == sounds
    assert made["samples/step-0000010"] == tags.MadeBy("train/ddpm_mel after 10 steps", tags.GENERATED)
    assert drawn[-3:] == ["samples/step-0000010", "loss", "samples/final"]
    for name in ("model/model.safetensors", "model/best.safetensors", "model/config.json", "curve.csv", "grid.png", "train.json"):
        assert (tmp_path / name).read_bytes() == (trained / name).read_bytes(), name


@pytest.fixture(scope="module")
def tagger(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("tagger") / "tagger"
    of_waves.write_tagger(directory)
    return directory


@pytest.fixture(scope="module")
def scored(tmp_path_factory, data, composed, tagger) -> tuple[Path, list]:
    """A training with scores, and the points of their curves."""
    home, points = tmp_path_factory.mktemp("scored"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageRun, "log_curve", lambda self, values, step: points.append((step, values)))
        _train_scored(home, data, composed, tagger)
    return home, [(step, values) for step, values in points if any(name.startswith("score/") for name in values)]


def _train_scored(home: Path, data: Path, composed: dict, tagger: Path, catalog: str = "catalog.parquet", **changes) -> None:
    document = json.loads(json.dumps(composed))
    document["ddpm_mel"]["train"] |= {"score_every_steps": 5, "score_requests": 4, "score_share": None, **changes}
    params.write_yaml(document, home / "params.yaml")
    stages.train.main(train_arguments(home, data, catalog, tagger=str(tagger)))


def test_scores_while_training_change_no_weight_and_have_intervals(trained, scored):
    home, points = scored
    assert [step for step, _ in points] == [5, 10, 12]
    names = [f"score/{metric}_tagger" for metric in ("fad", "kl", "class")]
    for _, values in points:
        assert [*values] == [name + end for name in names for end in ("", "_low", "_high")]
        assert all(values[f"{name}_low"] <= values[name] <= values[f"{name}_high"] for name in names)
    metrics, before = (json.loads((path / "train.json").read_text()) for path in (home, trained))
    best = min(points, key=lambda point: point[1]["score/fad_tagger"])
    assert (metrics["best_fad_step"], metrics["best_fad"]) == (best[0], best[1]["score/fad_tagger"])
    assert metrics.items() > before.items()
    assert metrics.keys() - before.keys() == {"best_fad", "best_fad_step", *(name.replace("/", "_") for name in points[0][1])}
    for name in ("model/model.safetensors", "model/best.safetensors", "curve.csv", "grid.png"):
        assert (home / name).read_bytes() == (trained / name).read_bytes(), name


def test_scores_of_a_small_training_keep_to_their_share_of_its_operations(tmp_path, data, composed, tagger, capfd):
    """Four sounds cost more than a few steps of it, so after the first only the last step is scored."""
    points = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageRun, "log_curve", lambda self, values, step: "score/fad_tagger" in values and points.append(step))
        _train_scored(tmp_path, data, composed, tagger, score_share=composed["ddpm_mel"]["train"]["score_share"], steps=20)
    assert points == [5, 20]
    said = capfd.readouterr().out
    assert re.search(r"scores would be \d\d% of all operations; for 10% \(score_share\), the next ones come every", said)


def test_a_killed_training_has_the_scores_and_the_best_weights_of_an_unbroken_one(
    tmp_path, scored, data, composed, tagger, monkeypatch
):
    home, _ = scored
    with monkeypatch.context() as patch:
        die_before(patch, 7)
        with pytest.raises(Killed):
            _train_scored(tmp_path, data, composed, tagger)
    _train_scored(tmp_path, data, composed, tagger)
    for name in ("model/best_fad.safetensors", "model/config.json", "train.json"):
        assert (tmp_path / name).read_bytes() == (home / name).read_bytes(), name


def test_sounds_of_the_weights_that_the_tagger_chose_are_not_ranked_by_it(tmp_path, scored, data, composed, tagger, capfd):
    home, points = scored
    shutil.copytree(home / "model", tmp_path / "model")
    document = json.loads(json.dumps(composed))
    document["ddpm_mel"]["generate"]["use"] = "best_fad"
    params.write_yaml(document, tmp_path / "params.yaml")
    _generate(tmp_path, data)
    step, values = min(points, key=lambda point: point[1]["score/fad_tagger"])
    assert f"best_fad weights (step {step}, " in (said := capfd.readouterr().out)
    assert f"FAD while training {values['score/fad_tagger']:.4g})" in said
    assert folders.about(tmp_path / "generated").seen == {"tagger": "the model's weights were chosen by tagger"}

    # What starts from these weights was chosen by the tagger, too.
    further = tmp_path / "further"
    further.mkdir()
    shutil.copytree(home / "model", further / "before")
    config = json.loads((further / "before/config.json").read_text())
    config["params"]["use"] = "best_fad"
    (further / "before/config.json").write_text(json.dumps(config))
    _train_scored(further, data, composed, tagger, start_from="before", score_every_steps=None, steps=4)
    shutil.rmtree(further / "before")
    params.write_yaml(composed, further / "params.yaml")
    _generate(further, data)
    assert folders.about(further / "generated").chosen_by == ("tagger",)


def test_scores_that_cannot_be_measured_are_refused_before_training(tmp_path, data, composed, tagger):
    with pytest.raises(SystemExit, match=r"needs the tagger, but .*mels is none: set families\.ddpm_mel\.tagger to data/tagger"):
        _train_scored(tmp_path, data, composed, "mels")
    with pytest.raises(SystemExit, match="`use` is `best_fad`, but nothing is scored while it trains; set score_every_steps"):
        _train_scored(tmp_path, data, composed, "mels", score_every_steps=None, use="best_fad")
    rows = shards.read_table(data / "catalog.parquet", manifest.CATALOG).to_pylist()
    kept = [row for row in rows if row["split"] != "valid"]
    shards.write_rows(kept, tmp_path / "catalog.parquet", manifest.CATALOG)
    with pytest.raises(SystemExit, match=r"the validation split has no clip; raise splits\.valid_fraction, or set it to null"):
        _train_scored(tmp_path, data, composed, tagger, str(tmp_path / "catalog.parquet"))


def test_generates_from_the_checkpoint_alone(tmp_path, trained, data, composed):
    """Today's train section is of another network; generate must not look at it, and must give the same bytes twice."""
    other = json.loads(json.dumps(composed))
    other["ddpm_mel"]["train"]["network"]["widths"] = [64, 128, 256]
    other["ddpm_mel"]["train"]["picture"]["whitening"] = 1.0
    output = []
    for turn, document in (("one", composed), ("two", other)):
        home = tmp_path / turn
        home.mkdir()
        params.write_yaml(document, home / "params.yaml")
        (home / "model").symlink_to(trained / "model")
        _generate(home, data)
        output.append({path.name: path.read_bytes() for path in sorted((home / "generated").glob("*.wav"))})
    assert output[0] == output[1]
    assert sorted(output[0]) == ["clip-15_0.wav", "clip-16_0.wav", "clip-17_0.wav"]

    home = tmp_path / "one"
    for name, num_samples in (("clip-15_0", 80_000), ("clip-17_0", 40_000)):
        info = soundfile.info(home / "generated" / f"{name}.wav")
        assert (info.samplerate, info.frames, info.channels, info.subtype) == (16_000, num_samples, 1, "PCM_16")
    assert len(list((home / "codec").iterdir())) == 2
    assert json.loads((home / "generate.json").read_text())["generated"] == 3
    about = json.loads((home / "generated" / manifest.ABOUT_SOUNDS).read_text())
    for directory, kind in (
        (home / "generated", "/trainedAlgorithmicMedia"),
        (home / "codec", "/compositeWithTrainedAlgorithmicMedia"),
    ):
        for path in directory.glob("*.wav"):
            assert soundfile.SoundFile(path).software == f"Soundmill, ddpm_mel checkpoint {about['checkpoint']} (libsndfile)"
            assert kind.encode() in path.read_bytes()
    weights = json.loads((trained / "model" / "config.json").read_text())["weights"]
    said = f"last weights (step 12, held-out loss {weights['last']['valid_loss']:.4g})"
    assert folders.about(home / "generated") == folders.About("generate", weights=said, candidates=1)


def test_the_judges_that_a_family_was_trained_against_are_recorded_beside_its_sounds(
    tmp_path, trained, data, composed, monkeypatch
):
    family = registry.family
    monkeypatch.setattr(registry, "family", lambda name: replace(family(name), trained_against=("tagger",)))
    shutil.copytree(trained / "model", tmp_path / "model")
    params.write_yaml(composed, tmp_path / "params.yaml")
    _generate(tmp_path, data)
    assert folders.about(tmp_path / "generated").trained_against == ("tagger",)


def test_codec_sounds_like_the_clip(tmp_path, trained, data, composed):
    document = json.loads(json.dumps(composed))
    document["ddpm_mel"]["generate"]["sampling"]["griffin_lim_iterations"] = 16
    params.write_yaml(document, tmp_path / "params.yaml")
    (tmp_path / "model").symlink_to(trained / "model")
    _generate(tmp_path, data)
    spec = SpectrogramParams(**composed["spectrogram"]["ddpm_mel"]).spec
    for path in sorted((tmp_path / "codec").iterdir()):
        index = int(path.name[5:7])
        real = log_mel(_wave(LABELS[index % 3], index, 80_000), spec)
        back = log_mel(soundfile.read(path, dtype="float32")[0], spec)
        loud = real > real.max() - 9  # within 40 dB of the loudest
        assert np.abs(back - real)[loud].mean() < 0.35  # 1.5 dB
        assert np.exp(back).sum() == pytest.approx(np.exp(real).sum(), rel=0.1)


@pytest.mark.parametrize("conditional", [True, False])
def test_paper_scale_trains_and_generates(tmp_path, data, conditional):
    """As published but for sizes: fewer bands, timesteps and channels, one epoch. Unconditional by that one parameter."""
    changes = ["model=ddpm_mel", "scale=paper", f"ddpm_mel.train.conditional={conditional}"]
    document = params.compose(ROOT / "conf", changes)
    document["spectrogram"]["ddpm_mel"] |= {"n_fft": 1600, "n_mels": 64}
    train, generate = document["ddpm_mel"]["train"], document["ddpm_mel"]["generate"]
    train["epochs"], train["hardware"]["threads"], generate["threads"] = 1, 1, 1
    train["network"]["widths"], train["network"]["attention_levels"] = [8, 8, 16, 16], [2, 3]
    train["diffusion"]["num_timesteps"], train["grid"]["rows"] = 8, 1
    for sampling in (train["sampling"], generate["sampling"]):
        sampling["num_steps"], sampling["griffin_lim_iterations"] = 7, 2
    generate["count"], generate["codec_count"] = 3, 1
    params.write_yaml(document, tmp_path / "params.yaml")
    (tmp_path / "data").mkdir()
    for name in ("catalog.parquet", "clips"):
        (tmp_path / "data" / name).symlink_to(data / name)
    write_log_mels(data / "clips", tmp_path / "data" / "mels", SpectrogramParams(**document["spectrogram"]["ddpm_mel"]).spec)
    _train(tmp_path, tmp_path / "data")
    _generate(tmp_path, tmp_path / "data")
    assert json.loads((tmp_path / "train.json").read_text())["labels"] == (len(LABELS) if conditional else 0)
    assert json.loads((tmp_path / "generate.json").read_text())["conditioned"] == (3 if conditional else 0)
    for path in sorted((tmp_path / "generated").glob("*.wav")):
        wave = soundfile.read(path)[0]
        assert len(wave) in (80_000, 40_000)
        assert np.abs(wave).max() > 0


def test_without_labels_it_is_unconditional_and_says_so(tmp_path, data, composed, capfd):
    document = json.loads(json.dumps(composed))
    document["ddpm_mel"]["train"]["steps"] = 1
    params.write_yaml(document, tmp_path / "params.yaml")
    _train(tmp_path, data, "unlabelled.parquet")
    assert "unconditional" in capfd.readouterr().out
    assert json.loads((tmp_path / "model" / "config.json").read_text())["labels"] == []
    (path,) = generation.generate_sounds(tmp_path / "model", [], 1, 0, tmp_path / "sounds", tmp_path)
    assert soundfile.info(path).frames == 80_000
    with pytest.raises(UserError, match="without labels"):
        generation.generate_sounds(tmp_path / "model", ["rain"], 1, 0, tmp_path / "sounds", tmp_path)


STRANGE = (r"$\frac{$", "rain", "[/b]\nbell", "🐶", "$x^$", "_^}{%#& " * 1250)  # the last three are of the test clips, too


@pytest.fixture(scope="module")
def strange(tmp_path_factory, data, composed) -> tuple[Path, Path]:
    """A directory with a params.yaml, and the same clips and spectrograms under labels that people do write."""
    home = tmp_path_factory.mktemp("strange")
    document = json.loads(json.dumps(composed))
    document["ddpm_mel"]["train"] |= {
        "steps": 4,
        "samples_every_steps": 3,
        "grid": {**document["ddpm_mel"]["train"]["grid"], "rows": 2},
    }
    params.write_yaml(document, home / "params.yaml")
    rows = shards.read_table(data / "catalog.parquet", manifest.CATALOG).to_pylist()
    rows = [{**row, "labels": [STRANGE[index % 6]], "captions": [STRANGE[index % 6]]} for index, row in enumerate(rows)]
    shards.write_rows(rows, home / "data" / "catalog.parquet", manifest.CATALOG)
    for name in ("clips", "mels"):
        (home / "data" / name).symlink_to(data / name)
    return home, home / "data"


def test_a_label_may_be_any_text(strange, capfd, recwarn):
    home, data = strange
    _train(home, data)
    assert (home / "grid.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((home / "model" / "config.json").read_text())["labels"] == sorted(STRANGE)
    _generate(home, data)
    assert len(list((home / "generated").glob("*.wav"))) == 3
    for label in STRANGE[3:]:
        (path,) = generation.generate_sounds(home / "model", [label], 1, 0, home / "sounds", home)
        assert re.fullmatch(r"[a-z0-9-]{1,90}\.wav", path.name)
        with soundfile.SoundFile(path) as sound:
            prompt = json.loads(sound.comment)["prompt"]
        assert prompt == label or (len(prompt) == generation.LONGEST_PROMPT and label.startswith(prompt[:-1]))
        assert (home / "sounds" / "spectrograms.png").read_bytes().startswith(b"\x89PNG")
        (home / "sounds" / "spectrograms.png").unlink()
    assert capfd.readouterr().err == ""
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_pictures_that_fail_lose_neither_model_nor_sounds(strange, tmp_path, capfd, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise MemoryError("no room for a picture")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    home, data = strange
    (tmp_path / "params.yaml").write_bytes((home / "params.yaml").read_bytes())
    _train(tmp_path, data)
    failed = r"could not be made: MemoryError: no room for a picture \(test_train_generate\.py, line \d+\)"
    now_and_then, last = capfd.readouterr().err.splitlines()
    assert re.fullmatch(r"tracking: figures/samples/step-0000003\.png " + failed, now_and_then)
    assert re.fullmatch(r"train/ddpm_mel: the samples \(grid\.png\) " + failed, last)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == WHOLE
    assert json.loads((tmp_path / "train.json").read_text())["valid_loss"] > 0
    assert last in (tmp_path / "grid.png").read_text()

    _generate(tmp_path, data)
    (line,) = capfd.readouterr().err.splitlines()
    assert re.fullmatch(r"tracking: figures/generated_spectrograms\.png " + failed, line)
    assert len(list((tmp_path / "generated").glob("*.wav"))) == 3
    assert len(list((tmp_path / "codec").iterdir())) == 2
    (path,) = generation.generate_sounds(tmp_path / "model", ["rain"], 1, 0, tmp_path / "sounds", tmp_path)
    assert soundfile.info(path).frames == 80_000
    assert re.fullmatch(f"{tmp_path}/sounds/spectrograms\\.png " + failed, capfd.readouterr().err.strip())


def test_a_checkpoint_of_another_architecture(tmp_path, trained, data, composed):
    (tmp_path / "model").mkdir()
    config = json.loads((trained / "model" / "config.json").read_text())
    config["params"]["network"]["widths"] = [8, 16, 16]
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    (tmp_path / "model" / "model.safetensors").write_bytes((trained / "model" / "model.safetensors").read_bytes())
    params.write_yaml(composed, tmp_path / "params.yaml")
    with pytest.raises(SystemExit, match="do not fit the architecture"):
        _generate(tmp_path, data)

    (tmp_path / "model" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(SystemExit, match="weights cannot be read"):
        _generate(tmp_path, data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": None}, "one of steps and epochs"),
        ({"stepps": 3}, "did you mean 'steps'"),
        ({"batch_size": 0}, "ddpm_mel.train.batch_size"),
    ],
)
def test_wrong_parameters_are_named(tmp_path, data, composed, change, message):
    document = json.loads(json.dumps(composed))
    document["ddpm_mel"]["train"] |= change
    params.write_yaml(document, tmp_path / "params.yaml")
    with pytest.raises(SystemExit, match=message):
        _train(tmp_path, data)


def test_pictures_that_the_network_cannot_halve_are_refused(composed):
    document = json.loads(json.dumps(composed["ddpm_mel"]["train"]))
    document["picture"]["width"] = 200
    with pytest.raises(UserError, match=r"multiple of 4"):
        params.parse(registry.family("ddpm_mel").train_params, document, "params.yaml: ddpm_mel.train")


def test_sounds_on_demand(tmp_path, trained):
    paths = generation.generate_sounds(trained / "model", ["dog"], 2, 1, tmp_path / "a", tmp_path, GUIDED)
    assert [path.name for path in paths] == ["dog-bark-1-001.wav", "dog-bark-1-002.wav"]
    with soundfile.SoundFile(paths[1]) as sound:
        said = json.loads(sound.comment)
    trained_sampling = json.loads((trained / "model" / "config.json").read_text())["params"]["sampling"]
    assert said.pop("weights").startswith("last weights (step 12, held-out loss ")
    assert {**said, "checkpoint": None} == {
        "family": "ddpm_mel", "checkpoint": None, "prompt": "dog bark", "seed": 1, "number": 2,
        "sampling": {**trained_sampling, "num_steps": 3, "guidance_scale": 1.5},
    }  # fmt: skip
    assert said["checkpoint"] == hashing.tree_digest(trained / "model")
    assert (tmp_path / "a" / "spectrograms.png").read_bytes().startswith(b"\x89PNG")
    again = generation.generate_sounds(trained / "model", ["dog bark"], 2, 1, tmp_path / "b", tmp_path, GUIDED)
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]
    assert paths[0].read_bytes() != paths[1].read_bytes()
    with pytest.raises(UserError, match=r"unknown label 'rian'; did you mean 'rain'\? \(labels: bell, dog bark, rain\)"):
        generation.generate_sounds(trained / "model", ["rian"], 1, 1, tmp_path / "c", tmp_path)


def test_label_by_part():
    labels = ["Dog bark", "cat", "cat purr", "hot dog"]
    assert match_label("CAT", labels) == "cat"
    assert match_label("purr", labels) == "cat purr"
    with pytest.raises(UserError, match="Dog bark, hot dog"):
        match_label("dog", labels)


@pytest.mark.parametrize(
    ("prompt", "label"),
    [
        ("a dog barks", "dog"),
        ("A BABY CRIES, loudly", "baby_cry"),
        ("engines idled outside", "engine-idling"),
        ("a beat on a kick drum", "kick drum"),  # `drum` is within it
        ("somebody drums", "drum"),
    ],
)
def test_the_words_of_a_prompt_name_one_label(prompt, label):
    assert match_label(prompt, ["dog", "baby_cry", "engine-idling", "kick drum", "drum", "rain", "the sea"]) == label


def test_a_prompt_that_names_several_labels_or_none_says_what_there_is():
    labels = ["dog_barking", "rain", "train"]
    with pytest.raises(UserError, match="could be any of: dog_barking, rain; choose one"):
        match_label("a dog barks while rain falls", labels)
    with pytest.raises(UserError, match="unknown label 'a bell rings'"):
        match_label("a bell rings", labels)


def test_choice_is_balanced_and_stable():
    clips = {f"a{index}": ["a"] for index in range(10)} | {"b0": ["b"], "c0": ["c"], "c1": ["c"], "d0": []}
    chosen = choose_balanced(clips, 6)
    assert chosen == sorted(chosen)
    assert {re.sub(r"\d", "", clip_id) for clip_id in chosen} == {"a", "b", "c", "d"}
    assert choose_balanced(dict(reversed(clips.items())), 6) == chosen
    assert len(choose_balanced(clips, None)) == len(clips)
