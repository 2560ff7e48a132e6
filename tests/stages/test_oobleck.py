"""Oobleck from its stage: trained, killed, loaded; and `audio_dit` over its latents, in stereo."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile

from soundmill import manifest, params, shards, stage
from soundmill.models import registry
from soundmill.models.components.contracts import read_codec
from stages import autoencoder, latents
from tests.imports import ROOT
from tests.models.components.test_oobleck import publish
from tests.stages import of_waves
from tests.training.killing import Killed, die_before

RATE = 44_100
ONE = "{accelerator: cpu, devices: 1, precision: '32', threads: 1}"
NETWORK = (
    f"audio_dit.autoencoder.network={{channels: 4, ratios: [2, 4], multiples: [1, 2], latent_channels: 3, audio_channels: 2, "
    f"sample_rate: {RATE}}}"
)
LOADED = ["model=audio_dit", "codec@audio_dit.autoencoder=oobleck", NETWORK, f"audio_dit.autoencoder.hardware={ONE}"]
SHRUNK = [
    "model=audio_dit",
    "codec@audio_dit.autoencoder=oobleck_laptop",
    NETWORK,
    "audio_dit.autoencoder.weights.steps=4",
    "audio_dit.autoencoder.weights.batch_size=2",
    "audio_dit.autoencoder.weights.num_samples=4096",
    "audio_dit.autoencoder.weights.log_every_steps=1",
    "audio_dit.autoencoder.weights.checkpoint_seconds=0",
    "audio_dit.autoencoder.weights.validate_every_steps=2",
    f"audio_dit.autoencoder.hardware={ONE}",
    "audio_dit.latents.num_samples=4416",
    "audio_dit.train.condition=label",
    "audio_dit.train.steps=2",
    "audio_dit.train.batch_size=2",
    "audio_dit.train.log_every_steps=1",
    f"audio_dit.train.hardware={ONE}",
    "audio_dit.train.network={layers: 1, heads: 2, head_width: 8, key_heads: 1, condition_width: 8}",
    "audio_dit.train.grid.columns=2",
    "audio_dit.train.sampling.num_steps=2",
    "audio_dit.generate.codec_count=1",
]


def composed(*changes: str) -> dict:
    return params.compose(ROOT / "conf", [*SHRUNK, *changes])


def make_codec(home: Path, document: dict) -> dict:
    """Of the clips in `home`."""
    params.write_yaml(document, home / "params.yaml")
    (home / "mels").mkdir(exist_ok=True)  # it takes none
    autoencoder.main(
        [
            "--family", "audio_dit", "--clips", f"{home}/clips", "--mels", f"{home}/mels",
            "--catalog", f"{home}/catalog.parquet", "--autoencoder", f"{home}/inputs/autoencoder",
            "--curves", f"{home}/ae.csv", "--grid", f"{home}/ae.png",
            "--metrics", f"{home}/ae.json", "--params", f"{home}/params.yaml",
        ]
    )  # fmt: skip
    return json.loads((home / "ae.json").read_text())


def trained_on(codec: Path) -> list[dict]:
    path = codec / manifest.TRAINED_ON_FILE
    return shards.read_table(path, manifest.TRAINED_ON).to_pylist() if path.exists() else []


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("data")
    of_waves.write(home, rate=RATE, channels=2)
    metrics = make_codec(home, composed())
    assert metrics["latent_values_per_second"] == 3 * RATE / 8
    assert 0 < metrics["best_valid_loss"] <= metrics["valid_loss"]
    return home


def test_a_codec_killed_ends_like_an_unbroken_one(tmp_path, data, monkeypatch, capfd):
    of_waves.write(tmp_path, rate=RATE, channels=2)
    with monkeypatch.context() as patch:
        die_before(patch, 2)
        with pytest.raises(Killed):
            make_codec(tmp_path, composed())
    make_codec(tmp_path, composed())
    assert "resuming at step 2 of 4" in capfd.readouterr().out
    for name in ("inputs/autoencoder/model.safetensors", "inputs/autoencoder/config.json", "ae.csv", "ae.png", "ae.json"):
        assert (tmp_path / name).read_bytes() == (data / name).read_bytes(), name


def test_a_codec_is_loaded_or_goes_on_from_another(tmp_path, data):
    of_waves.write(tmp_path, rate=RATE, channels=2)
    publish(tmp_path / "published")
    loading = params.compose(ROOT / "conf", [*LOADED, f"audio_dit.autoencoder.weights.name={tmp_path}/published"])
    assert "steps" not in make_codec(tmp_path, loading)
    (tmp_path / "inputs").rename(tmp_path / "first")
    begun = composed(f"audio_dit.autoencoder.weights.start_from={data}/inputs/autoencoder")
    assert make_codec(tmp_path, begun)["steps"] == 4
    (tmp_path / "inputs").rename(tmp_path / "second")
    ours = params.compose(ROOT / "conf", [*LOADED, f"audio_dit.autoencoder.weights.name={data}/inputs/autoencoder"])
    make_codec(tmp_path, ours)
    rows = list(shards.read_rows(tmp_path / "inputs/autoencoder" / manifest.TRAINED_ON_FILE, manifest.TRAINED_ON))
    assert {row["clip_id"] for row in rows} == {
        row["clip_id"] for row in shards.read_rows(data / "inputs/autoencoder" / manifest.TRAINED_ON_FILE, manifest.TRAINED_ON)
    }
    assert rows
    assert all(row["earlier"] for row in rows)
    (tmp_path / "inputs").rename(tmp_path / "third")
    with pytest.raises(SystemExit, match=r"clips has 2 channels at 44100 Hz, but autoencoder\.network has 1 at 44100; make them"):
        make_codec(tmp_path, composed("audio_dit.autoencoder.network.audio_channels=1"))


def test_a_codec_is_taken_as_it_is_with_no_step(tmp_path, data):
    """One trained here, and one that others trained and that came with a checkpoint."""
    of_waves.write(tmp_path, rate=RATE, channels=2)
    publish(tmp_path / "published")
    make_codec(tmp_path, params.compose(ROOT / "conf", [*LOADED, f"audio_dit.autoencoder.weights.name={tmp_path}/published"]))
    (tmp_path / "inputs").rename(tmp_path / "loaded")
    for first in (data / "inputs/autoencoder", tmp_path / "loaded/autoencoder"):
        taken = tmp_path / "inputs/autoencoder"
        start = f"audio_dit.autoencoder.weights.start_from={first}"
        metrics = make_codec(tmp_path, composed("audio_dit.autoencoder.weights.steps=0", start))
        assert (metrics["latent_rate"], metrics["digest"]) == (RATE / 8, read_codec(first).digest)
        assert "steps" not in metrics
        assert read_codec(taken) == read_codec(first)
        assert (taken / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()
        before, now = ([row["clip_id"] for row in trained_on(one)] for one in (first, taken))
        assert now == before
        assert all(row["earlier"] for row in trained_on(taken))
        (tmp_path / "inputs").rename(tmp_path / f"taken-{first.parent.name}")
    with pytest.raises(SystemExit, match=r"0 steps take the weights of start_from, which is null"):
        make_codec(tmp_path, composed("audio_dit.autoencoder.weights.steps=0"))
    with pytest.raises(SystemExit, match=r"start_from: .*autoencoder: network\.latent_channels is 3 there and 4 here; make them"):
        wider = "audio_dit.autoencoder.network.latent_channels=4"
        make_codec(tmp_path, composed("audio_dit.autoencoder.weights.steps=0", start, wider))


def test_audio_dit_makes_stereo_of_its_latents(tmp_path, data):
    params.write_yaml(composed(), tmp_path / "params.yaml")
    arguments = ["--family", "audio_dit", "--audio", f"{data}/clips", "--catalog", f"{data}/catalog.parquet"]
    arguments += ["--autoencoder", f"{data}/inputs/autoencoder", "--latents", f"{data}/inputs/latents/clips"]
    stage.main(latents.run, "latents", [*arguments, "--params", f"{tmp_path}/params.yaml"], code_by_name=latents.code_by_name)
    metrics = of_waves.train("audio_dit", tmp_path, data, composed(), parts="inputs", inputs="inputs")
    assert (metrics["clips"], metrics["labels"], metrics["steps"]) == (5, 2, 2)
    model = registry.family("audio_dit").load(tmp_path / "model")
    assert (model.sample_rate, model.channels, model.num_samples, model.latent_frames, model.vocoder) == (RATE, 2, 4416, 552, None)
    assert list(of_waves.generate("audio_dit", tmp_path, data, composed())) == ["clip-6.wav", "clip-7.wav"]
    info = soundfile.info(tmp_path / "generated/clip-6.wav")
    assert (info.samplerate, info.channels, info.frames) == (RATE, 2, 4410)
    other = composed("vocoder=hifigan_laptop", "audio_dit.train.sampling.vocoder=trained")
    with pytest.raises(SystemExit, match="latents of waves need no vocoder: leave `vocoder=` out"):
        of_waves.train("audio_dit", tmp_path / "wrong", data, other, parts="inputs", inputs="inputs")
