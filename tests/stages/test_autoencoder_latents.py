"""An autoencoder of a small corpus and the latents it makes: learnt, kept, the same bytes however they were made."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from soundmill import manifest, shards, stage
from soundmill.audio.flac import decode_mono, encode_flac
from soundmill.audio.mel import log_mel
from soundmill.errors import UserError
from soundmill.models.components.contracts import read_codec, save_codec
from soundmill.models.components.latents.store import ABOUT_KEY, iterate_index, iterate_posteriors, read_about
from soundmill.models.components.mel_autoencoder import autoencoder as autoencoders
from soundmill.models.components.mel_autoencoder.autoencoder import Autoencoder, build_autoencoder, padded_log_mel
from soundmill.params import write_yaml
from soundmill.shards import run as shard_run
from soundmill.shards.run import run_job
from stages import latents
from tests import prepared
from tests.models.components.test_mel_autoencoder import SPEC, TINY
from tests.prepared import execution
from tests.stages import of_waves
from tests.stages.components import CODECS

LENGTHS = [3200, 3200, 2400, 3200, 3200, 3200]  # samples of each clip
SPLITS = ["train", "train", "train", "train", "valid", "test"]
LATENTS = {"num_samples": 3840, "batch_size": 2, "accelerator": "cpu", "precision": "32"}  # 24 frames
OF_CLIPS = {"audio": "sounds", "catalog": "catalog.parquet", "autoencoder": "autoencoder", "latents": "clips", "metrics": "l.json"}
OF_MIXES = {"audio": "mixes", "autoencoder": "autoencoder", "latents": "mixed", "metrics": "l.json"}


def sound(number: int) -> np.ndarray:
    """A tone that rises, and faint noise [T]."""
    time = np.arange(LENGTHS[number]) / SPEC.sample_rate
    wave = 0.3 * np.sin(2 * np.pi * (400 + 900 * number + 4000 * time) * time)
    wave += 1e-3 * np.random.default_rng(number).standard_normal(len(time))
    return decode_mono(encode_flac(wave.astype(np.float32), SPEC.sample_rate))


@pytest.fixture
def project(tmp_path, root, monkeypatch) -> Path:
    monkeypatch.chdir(root)
    data, rows, mixes = tmp_path / "data", [], []
    for number, split in enumerate(SPLITS):  # in two shards
        told = {"split": split, "captions": ["a tone rises", f"number {number}"], "shard": number % 2}
        rows.append(prepared.sound(f"clip{number}", sound(number), SPEC.sample_rate, digest=f"row clip{number}", **told))
        mixes.append({"clip_id": f"mix{number}", "caption": f"two, {number}", "labels": [], "audio": rows[-1]["audio"]})
    prepared.write_sounds(rows, data / "sounds", data / "catalog.parquet")
    shards.write_rows(mixes[:2], data / "mixes" / shards.shard_name(0), manifest.MIXES)
    save_autoencoder(data / "autoencoder")
    return tmp_path


def save_autoencoder(directory: Path, seed: int = 0) -> str:
    """With random weights; returns its digest."""
    torch.manual_seed(seed)
    model = Autoencoder(TINY, SPEC, build_autoencoder(TINY).eval(), mean=-8.0, deviation=2.0, scaling_factor=0.5)
    return save_codec(model, directory, {"kind": "train"})["digest"]


def make_latents(project: Path, ports: dict[str, str] = OF_CLIPS, **changes) -> dict:
    codecs = {"tango": {"codec": "mel_autoencoder"}}
    document = {"execution": execution(), "latent_families": codecs, "tango": {"latents": LATENTS | changes}}
    write_yaml(document, project / "params.yaml")
    argv = [word for port, path in ports.items() for word in (f"--{port}", str(project / "data" / path))]
    stage.main(latents.run, "latents", [*argv, "--family", "tango", "--params", str(project / "params.yaml")])
    return json.loads((project / "data/l.json").read_text())


@pytest.mark.slow
def test_training_learns_to_rebuild(tmp_path):
    """It standardises by its training clips."""
    row, data = CODECS["mel_autoencoder"], tmp_path / "data"
    of_waves.write_waves(data, SPEC.sample_rate, [sound(number)[None] for number in (0, 1, 2, 3, 4, 5, 0, 1)])
    of_waves.write_mels(data, SPEC)
    weights = ("batch_size=4", "crop_frames=16", "checkpoint_seconds=60", "validate_every_steps=20", "ema.decay=0.9")
    weights = [f".weights.{one}" for one in (*weights, "optimiser.learning_rate=0.01", "optimiser.warmup_steps=0")]
    trained, untrained = (
        row.make(tmp_path / f"{steps}", data, row.composed(*weights, f".weights.steps={steps}")) for steps in (90, 1)
    )
    assert trained["valid_l1_db"] < 0.5 * untrained["valid_l1_db"]
    model = autoencoders.load(tmp_path / "90/inputs/autoencoder")
    values = np.concatenate([log_mel(sound(number), SPEC).astype("<f2").astype(np.float64).ravel() for number in range(5)])
    assert (model.mean, model.deviation) == pytest.approx((values.mean(), values.std()), abs=1e-5)
    # Of these clips all frames but a few are in latents of 20; with silence to frames that none has, it would be far from 1.
    shutil.copytree(tmp_path / "90/inputs", data / "inputs")
    told = of_waves.make_latents("tango", data, row.composed("tango.latents.num_samples=3200"))
    assert told["latent_std"] == pytest.approx(1.0, rel=0.05)
    assert told["autoencoder"] == model.digest == trained["digest"]


def test_latents_are_what_the_autoencoder_says_of_padded_clips(project):
    metrics = make_latents(project)
    directory, model = project / "data/clips", autoencoders.load(project / "data/autoencoder")
    about = read_about(directory)
    assert (about.autoencoder, about.num_samples, about.scaling_factor) == (model.digest, 3840, 0.5)
    rows = {row["clip_id"]: row for row in iterate_index(directory)}
    found = dict(iterate_posteriors(directory))
    assert set(rows) == set(found) == {f"clip{number}" for number in range(6)}
    for number, split in enumerate(SPLITS):
        row, posterior = rows[f"clip{number}"], found[f"clip{number}"]
        assert (row["split"], row["captions"]) == (split, ["a tone rises", f"number {number}"])
        assert posterior.shape == (2, row["channels"], row["frames"], row["bands"]) == (2, 4, 12, 8)
        padded = np.full((1, 16, 24), math.log(1e-5), np.float32)
        alone = log_mel(sound(number), SPEC)
        whole = alone.shape[1] - 4  # in the last ones the wave ends: silence follows it, and none of it is mirrored
        ours = padded_log_mel(sound(number)[None], SPEC, 3840)
        np.testing.assert_allclose(ours[:, :whole], alone[:, :whole], atol=1e-4)
        assert (ours[:, alone.shape[1] + 4 :] == padded[0, 0, 0]).all()
        padded[0] = ours
        expected = torch.stack(model.encode(torch.from_numpy(padded)))[:, 0]
        np.testing.assert_allclose(posterior, expected.numpy(), rtol=2e-3, atol=2e-3)
    assert (metrics["clips"], metrics["captions"], metrics["silent_samples"]) == (6, 12, 5 * 640 + 1440)


def test_a_gpu_has_one_process(project, monkeypatch):
    processes = []

    def run(function, jobs, directory, workers, progress):
        processes.append(workers)
        raise UserError("enough")

    monkeypatch.setattr(shard_run, "_run_here", run)
    monkeypatch.setattr(latents, "pick_device", lambda accelerator: torch.device("cuda"))
    with pytest.raises(SystemExit, match="enough"):
        make_latents(project)
    assert processes == [1]


def test_a_length_that_does_not_fit_is_named(project):
    assert make_latents(project, num_samples=3200)["silent_samples"] == 800
    with pytest.raises(SystemExit, match=r"clip 'clip0' has 3200 samples; raise latents.num_samples \(now 2880\)"):
        make_latents(project, num_samples=2880)
    with pytest.raises(SystemExit, match=r"num_samples 3360 must be a multiple of 320, hop_length · 2"):
        make_latents(project, num_samples=3360)


def test_mixes_bring_their_own_captions_and_may_be_none(project):
    make_latents(project, OF_MIXES)
    rows = {row["clip_id"]: row for row in iterate_index(project / "data/mixed")}
    assert {name: (row["split"], row["captions"]) for name, row in rows.items()} == {
        "mix0": ("train", ["two, 0"]),
        "mix1": ("train", ["two, 1"]),
    }
    for path in (project / "data/mixes").iterdir():
        shards.write_rows([], path, manifest.MIXES)
    assert make_latents(project, OF_MIXES)["clips"] == 0
    assert read_about(project / "data/mixed").num_samples == 3840


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """Notes each clip that was really encoded."""
    clips, own = [], Autoencoder.encode
    monkeypatch.setattr(Autoencoder, "encode", lambda self, values: clips.append(len(values)) or own(self, values))
    return clips


def latents_of(project: Path, scratch: str, kept: str, facts: dict[str, dict]) -> dict[str, bytes]:
    """The latents of one shard, as a stage makes them where it needs to."""
    config = read_codec(project / "data/autoencoder")
    about = latents.LatentsAbout(autoencoder=config.digest, scaling_factor=config.scaling_factor, num_samples=3840)
    encoding = latents.Encoding(project / "data/autoencoder", about, "cpu", 2, "32")
    job = shards.Job(shards.shard_name(0), (project / "data/sounds" / shards.shard_name(0), facts, encoding), key="another")
    (project / kept).mkdir(exist_ok=True)
    run_job(latents.encode_shard, job, project / kept)
    shutil.copytree(project / kept, project / scratch)
    return {path.name: path.read_bytes() for path in (project / scratch).glob("*.parquet")}


def known_clips(*numbers: int, caption: str = "a") -> dict[str, dict]:
    return {f"clip{number}": {"clip_id": f"clip{number}", "split": "train", "captions": [caption]} for number in numbers}


def test_only_what_changed_is_encoded_and_bytes_are_those_from_scratch(project, encoded):
    latents_of(project, "before", "kept", known_clips(0, 2))
    assert encoded == [1, 1]
    reused = latents_of(project, "after", "kept", known_clips(0, 2, 4))
    assert encoded == [1, 1, 1]
    assert reused == latents_of(project, "scratch", "none", known_clips(0, 2, 4))
    assert latents_of(project, "caption", "kept", known_clips(0, 2, 4, caption="b")) != reused


def test_batches_as_of_a_gpu_change_last_bits_only(project, encoded, monkeypatch):
    latents_of(project, "singly", "none", known_clips(0, 2, 4))
    monkeypatch.setattr(latents.Encoding, "at_once", property(lambda self: self.batch_size))
    latents_of(project, "batched", "none_either", known_clips(0, 2, 4))
    assert encoded == [1, 1, 1, 2, 2]
    singly, batched = (dict(iterate_posteriors(project / name)) for name in ("singly", "batched"))
    assert list(singly) == list(batched) == ["clip0", "clip2", "clip4"]
    for clip_id, posterior in singly.items():
        np.testing.assert_allclose(posterior, batched[clip_id], rtol=2e-3, atol=2e-3)


def test_another_autoencoder_in_the_same_directory_is_noticed(project, encoded):
    """Parameters are the same, and there are kept shards: none may be used, not even one without rows."""
    before = latents_of(project, "before", "kept", known_clips(0, 2))
    empty = latents_of(project, "empty", "kept_empty", {})
    shutil.rmtree(project / "data/autoencoder")
    digest = save_autoencoder(project / "data/autoencoder", seed=1)
    assert latents_of(project, "after", "kept", known_clips(0, 2)) != before
    assert encoded == [1, 1, 1, 1]
    assert latents_of(project, "still_empty", "kept_empty", {}) != empty
    for name in ("after", "still_empty"):
        about = pq.read_schema(project / name / shards.shard_name(0)).metadata[ABOUT_KEY]
        assert json.loads(about)["autoencoder"] == digest


def test_clips_of_another_rate_are_refused(project):
    for path in shards.shard_paths(project / "data/sounds"):
        rows = list(shards.read_rows(path, manifest.CLIPS))
        rows = [{**row, "audio": {"bytes": encode_flac(sound(0), 22_050), "path": ""}} for row in rows]
        shards.write_rows(rows, path, manifest.CLIPS)
    with pytest.raises(SystemExit, match="'clip0' has 1 channels at 22050 Hz, the autoencoder needs 1 at 16000"):
        make_latents(project)
