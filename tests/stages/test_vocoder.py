"""The stage on real recordings: it learns, ends the same however often it was killed, and takes what others trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from soundmill import hashing, manifest, params, shards
from soundmill.audio import flac
from soundmill.audio.log_mels import SPEC_KEY
from soundmill.audio.mel import log_mel
from soundmill.decoding import decode
from soundmill.models.components import registry
from soundmill.models.components.contracts import save_vocoder
from soundmill.models.components.diffwave import vocoder as diffwave
from soundmill.models.components.diffwave.network import DiffWaveNet
from soundmill.models.components.hifigan.vocoder import build_vocoder
from stages import vocoder
from tests.models.components.test_diffwave import FAST, NOISE
from tests.models.components.test_hifigan import VOICE
from tests.models.components.test_mel_autoencoder import SPEC
from tests.training.killing import Killed, die_before

SECONDS = 0.8
TINY = {"channels": 32, "rates": [8, 5, 4], "kernels": [16, 11, 8], "resblock_kernels": [3], "resblock_dilations": [[1, 3]]}
NETWORKS = {"hifigan": TINY, "diffwave": {"layers": 4, "channels": 16, "dilation_cycle": 4}}
NETWORKS["melgan"] = {"channels": 4, "rates": [8, 5, 4], "residual_layers": 1}
LEVELS = {"channels": [8, 16], "factors": [1, 4], "items": [1, 1], "attention": [False, False], "text_attention": [False, False]}
NETWORKS["istft"] = {"head": "magnitude", "layers": 2, "width": 16, "hidden": 32}
NETWORKS["vocos"] = NETWORKS["istft"] | {"head": "wave"}
CONF = {"vocos": ("vocos", ["vocoder.weights.discriminator_width=4"])}  # where it is not `KIND_laptop`
CROPS = {"istft": 12}  # frames
NETWORKS["diffusion"] = LEVELS | {"heads": 1, "head_width": 8, "groups": 4, "modulation": 16}


@pytest.fixture(scope="module")
def data(tmp_path_factory, shared) -> Path:
    """One recording of each class, its loudest part: eight to train on, two held out."""
    directory, rate = tmp_path_factory.mktemp("data"), SPEC.sample_rate
    clips, rows, catalog = [], [], []
    folders = sorted(path for path in (shared / "data" / "esc10").iterdir() if path.is_dir())
    for number, folder in enumerate(folders):
        clip_id = f"clip{number}"
        whole = decode.read_mono(min(folder.iterdir()), rate, 60.0)
        middle = int(abs(whole).argmax())
        start = min(max(0, middle - int(SECONDS * rate / 2)), len(whole) - int(SECONDS * rate))
        data = flac.encode_flac(whole[start : start + int(SECONDS * rate)], rate)
        wave = flac.decode_mono(data)
        common = {"clip_id": clip_id, "recording_id": "r", "source": "r.wav", "start": 0.0}
        audio = {"bytes": data, "path": f"{clip_id}.flac"}
        clips.append({**common, "audio": audio, "num_samples": len(wave), "digest": clip_id, "quality": None})
        values = log_mel(wave, SPEC).astype("<f2")
        size = {"num_mels": SPEC.n_mels, "num_frames": values.shape[1]}
        rows.append({"clip_id": clip_id, "log_mel": values.tobytes(), "digest": clip_id, **size})
        told = {"shard": 0, "labels": [], "captions": [], "corpus": "test", "weight": 1.0}
        catalog.append({**common, **told, "split": "train" if number < 8 else "valid"})
    shards.write_rows(clips, directory / "clips" / shards.shard_name(0), manifest.CLIPS)
    schema = manifest.SPECTROGRAMS.with_metadata({SPEC_KEY: SPEC.model_dump_json().encode()})
    shards.write_rows(rows, directory / "mels" / shards.shard_name(0), schema)
    shards.write_rows(catalog, directory / "catalog.parquet", manifest.CATALOG)
    return directory


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch, root):
    monkeypatch.chdir(root)


def make(
    home: Path,
    data: Path,
    root: Path,
    steps: int,
    network=None,
    weights=None,
    checkpoint_seconds=60.0,
    start_from="null",
    rate=0.01,
    kind="hifigan",
    more=(),
) -> dict:
    """Run the stage in this process, on the laptop's configuration, shrunk; returns its metrics."""
    conf, smaller = CONF.get(kind, (f"{kind}_laptop", []))
    changes = [
        "model=tango", f"vocoder={conf}", "vocoder.hardware.threads=1", "vocoder.hardware.accelerator=cpu",
        "vocoder.griffin_lim_iterations=4", "execution.workers=1",
        f"vocoder.weights.steps={steps}", "vocoder.weights.batch_size=2", f"vocoder.weights.crop_frames={CROPS.get(kind, 8)}",
        f"vocoder.weights.checkpoint_seconds={checkpoint_seconds}", "vocoder.weights.log_every_steps=2",
        f"vocoder.weights.optimiser.learning_rate={rate}", f"vocoder.weights.start_from={start_from}", *smaller, *more,
    ]  # fmt: skip
    document = params.compose(root / "conf", changes)
    document["vocoder"] |= {"network": network or NETWORKS[kind]} | ({"weights": weights} if weights else {})
    home.mkdir(exist_ok=True)
    params.write_yaml(document, home / "params.yaml")
    arguments = [
        "--family", "tango", "--clips", f"{data}/clips", "--mels", f"{data}/mels",
        "--catalog", f"{data}/catalog.parquet", "--vocoder", f"{home}/vocoder", "--curves", f"{home}/curve.csv",
        "--grid", f"{home}/grid.png", "--metrics", f"{home}/metrics.json", "--params", f"{home}/params.yaml",
    ]  # fmt: skip
    vocoder.main(arguments)
    return json.loads((home / "metrics.json").read_text())


def contents(home: Path) -> dict[str, bytes]:
    return {
        name: (home / name).read_bytes() for name in ("vocoder/model.safetensors", "vocoder/config.json", "curve.csv", "grid.png")
    }


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_killed_training_ends_like_an_unbroken_one(tmp_path, data, root, monkeypatch, capfd, kind):
    whole = make(tmp_path / "whole", data, root, 6, checkpoint_seconds=0.0, kind=kind)
    with monkeypatch.context() as patch:
        die_before(patch, 4)
        with pytest.raises(Killed):
            make(tmp_path / "killed", data, root, 6, checkpoint_seconds=0.0, kind=kind)
    assert make(tmp_path / "killed", data, root, 6, checkpoint_seconds=0.0, kind=kind) == whole
    assert "resuming at step 4 of 6" in capfd.readouterr().out
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert whole["measured_clips"] == 2
    assert 0 < whole["best_valid_loss"] <= whole["valid_loss"]
    assert registry.load_vocoder(tmp_path / "whole" / "vocoder", SPEC).spec == SPEC


@pytest.mark.slow(minutes=1)
def test_it_learns(tmp_path, data, root):
    untrained, trained = (make(tmp_path / f"{steps}", data, root, steps) for steps in (1, 80))
    assert trained["valid_l1_db"] < 0.85 * untrained["valid_l1_db"]
    assert trained["valid_griffin_lim_l1_db"] == untrained["valid_griffin_lim_l1_db"] > 0


def test_the_weights_of_a_kept_step_are_published(tmp_path, data, root):
    """Of a training of six steps those of the fourth: the same as of one whose fourth held-out loss was its best."""
    kept = ["vocoder.weights.keep_every_steps=2", "vocoder.weights.use=4"]
    make(tmp_path / "kept", data, root, 6, more=kept)
    make(tmp_path / "last", data, root, 6)
    weights = {name: (tmp_path / name / "vocoder/model.safetensors").read_bytes() for name in ("kept", "last")}
    assert weights["kept"] != weights["last"]
    source = json.loads((tmp_path / "kept/vocoder/config.json").read_text())["source"]
    assert (source["use"], source["weights"]["4"]["step"]) == (4, 4)


@pytest.mark.parametrize(("kind", "rate"), [("hifigan", 0.01), ("melgan", 0.001)])  # a higher one makes rounding errors grow
def test_two_processes_train_what_one_does(tmp_path, data, root, kind, rate):
    """Discriminators and all; their losses are means over the batch."""
    one, two = (
        make(tmp_path / devices, data, root, 4, kind=kind, rate=rate, more=[f"vocoder.hardware.devices={devices}"])
        for devices in "12"
    )
    for key in ("loss", "valid_loss", "best_valid_loss", "valid_l1_db"):
        assert two[key] == pytest.approx(one[key], rel=1e-4)
    with pytest.raises(SystemExit, match=r"batch_size 2 must be a multiple of hardware\.devices 3"):
        make(tmp_path / "three", data, root, 4, kind=kind, more=["vocoder.hardware.devices=3"])


def test_one_that_others_trained_is_taken(tmp_path, data, root, capfd):
    (tmp_path / "home").mkdir()
    build_vocoder(VOICE, SPEC.n_mels, SPEC.sample_rate).save_pretrained(tmp_path / "home" / "theirs" / "vocoder")
    loaded = {"kind": "load", "name": "theirs", "revision": None}
    metrics = make(tmp_path / "home", data, root, 1, VOICE.model_dump(), loaded)
    assert "CC BY-NC-SA" in capfd.readouterr().out
    assert "loss" not in metrics
    assert metrics["valid_l1_db"] > 0
    assert (tmp_path / "home" / "curve.csv").read_text() == "step,loss/train\n"
    assert json.loads((tmp_path / "home" / "vocoder" / "config.json").read_text())["source"]["name"] == "theirs"


def test_training_starts_from_another(tmp_path, data, root):
    first = make(tmp_path / "first", data, root, 6)
    again = make(tmp_path / "again", data, root, 1, start_from=tmp_path / "first/vocoder", rate=1e-9)
    assert again["valid_l1_db"] == pytest.approx(first["valid_l1_db"], rel=1e-3)
    source = json.loads((tmp_path / "again/vocoder/config.json").read_text())["source"]
    assert source["started_from"] == hashing.file_digest(tmp_path / "first/vocoder/model.safetensors")
    with pytest.raises(SystemExit, match=r"network\.channels is 32 there and 16 here; make them agree"):
        make(tmp_path / "more", data, root, 1, {**TINY, "channels": 16}, start_from=tmp_path / "first/vocoder")


def test_training_of_a_diffwave_starts_only_from_one_of_the_same_noise(tmp_path, data, root):
    network = diffwave.NetworkParams(**NETWORKS["diffwave"])
    voice = diffwave.DiffWave(
        network, NOISE.model_copy(update={"beta_end": 0.02, "prior": "mel"}), FAST, SPEC, DiffWaveNet(network, SPEC)
    )
    save_vocoder(voice, tmp_path / "other", {"kind": "train"})
    with pytest.raises(SystemExit, match=r"noise\.beta_end is 0\.02 there and 0\.05 here; make them agree"):
        make(tmp_path / "home", data, root, 1, start_from=tmp_path / "other", kind="diffwave")


def test_a_picture_that_fails_loses_no_vocoder(tmp_path, data, root, monkeypatch, capfd):
    def fail(*_: object, **__: object) -> None:
        raise ValueError("no picture")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    assert make(tmp_path, data, root, 1)["steps"] == 1
    assert registry.load_vocoder(tmp_path / "vocoder", SPEC).spec == SPEC
    assert "vocoder/tango: the picture (grid.png) could not be made: ValueError: no picture" in capfd.readouterr().err


def test_silent_recordings_are_refused_before_the_training(tmp_path, data, root):
    schema = manifest.SPECTROGRAMS.with_metadata({SPEC_KEY: SPEC.model_dump_json().encode()})
    rows = shards.read_table(data / "mels" / shards.shard_name(0), manifest.SPECTROGRAMS).to_pylist()
    for row in rows:
        values = log_mel(np.zeros(int(SECONDS * SPEC.sample_rate), np.float32), SPEC).astype("<f2")
        row["log_mel"] = values.tobytes()
    silent = tmp_path / "silent"
    shutil.copytree(data, silent)
    (silent / "mels" / shards.shard_name(0)).unlink()
    shards.write_rows(rows, silent / "mels" / shards.shard_name(0), schema)
    with pytest.raises(SystemExit, match=r"mels: all 8 training clips are silent.* check corpus\.path"):
        make(tmp_path / "home", silent, root, 1, kind="istft")
    assert not (tmp_path / "home/vocoder").exists()


def test_a_crop_of_ends_alone_is_refused(tmp_path, data, root):
    with pytest.raises(SystemExit, match=r"vocoder\.weights\.crop_frames 4 must be more than"):
        make(tmp_path / "home", data, root, 1, kind="istft", more=["vocoder.weights.crop_frames=4"])


def test_rates_of_another_hop_are_refused(tmp_path, data, root):
    with pytest.raises(SystemExit, match=r"multiply to 80 samples per frame, but hop_length of its spectrogram is 160"):
        make(tmp_path / "home", data, root, 1, {**TINY, "rates": [4, 5, 4]})


def test_a_noise_schedule_that_the_training_never_has_is_refused_before_it(tmp_path, data, root):
    for betas, said in (("[0.5,0.2]", "betas must increase"), ("[1e-5,0.5]", "must stay within")):
        with pytest.raises(SystemExit, match=said):
            make(tmp_path / "home", data, root, 1, kind="diffwave", more=[f"vocoder.sampling.betas={betas}"])
    assert not (tmp_path / "home/vocoder").exists()
