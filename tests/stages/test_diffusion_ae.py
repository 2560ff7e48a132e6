"""The family `diffusion_ae`, shrunk: its autoencoder, the latents of it, the diffusion over them, and sounds, in stereo."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from soundmill import hashing, manifest, params, shards, stage
from soundmill.audio import flac
from soundmill.audio.log_mels import SPEC_KEY
from soundmill.audio.mel import SpectrogramParams
from soundmill.models import registry
from soundmill.models.components.unet1d.codec import codec as codecs
from stages import autoencoder, latents
from tests.commands.running import soundmill
from tests.imports import ROOT
from tests.stages import of_waves
from tests.training.killing import Killed, die_before

LEVELS = "items: [1, 1], text_attention: [false, false], heads: 2, head_width: 4, groups: 2, modulation: 8"
SHRUNK = [
    "model=diffusion_ae",
    "clips.default.channels=2",
    "spectrogram.diffusion_ae.n_mels=8",
    "spectrogram.diffusion_ae.hop_length=16",
    "diffusion_ae.autoencoder.encoder={channels: 8, blocks: 1, factor: 2, latent_channels: 3, groups: 2}",
    f"diffusion_ae.autoencoder.network={{channels: [4, 8], factors: [2, 16], attention: [false, false], {LEVELS}}}",
    "diffusion_ae.autoencoder.latents_at=1",
    "diffusion_ae.autoencoder.weights.steps=4",
    "diffusion_ae.autoencoder.weights.batch_size=2",
    "diffusion_ae.autoencoder.weights.num_samples=1024",
    "diffusion_ae.autoencoder.weights.log_every_steps=1",
    "diffusion_ae.autoencoder.weights.checkpoint_seconds=0",
    "diffusion_ae.autoencoder.weights.validate_every_steps=2",
    "diffusion_ae.autoencoder.decoding.num_steps=2",
    "diffusion_ae.autoencoder.hardware={accelerator: cpu, devices: 1, precision: '32', threads: 1}",
    "diffusion_ae.latents.num_samples=2048",
    f"diffusion_ae.train.network={{channels: [4, 8], factors: [1, 4], attention: [false, true], {LEVELS}}}",
    "diffusion_ae.train.steps=4",
    "diffusion_ae.train.batch_size=2",
    "diffusion_ae.train.log_every_steps=1",
    "diffusion_ae.train.checkpoint_seconds=0",
    "diffusion_ae.train.hardware={accelerator: cpu, devices: 1, precision: '32', threads: 1}",
    "diffusion_ae.train.grid={columns: 2, rows: 1}",
    "diffusion_ae.train.sampling.num_steps=2",
    "diffusion_ae.train.sampling.decoding.num_steps=2",
    "diffusion_ae.generate.count=2",
    "diffusion_ae.generate.codec_count=1",
]


def composed(*changes: str) -> dict:
    return params.compose(ROOT / "conf", [*SHRUNK, *changes])


def make_autoencoder(home: Path, document: dict) -> dict:
    """Of the clips in `home`."""
    params.write_yaml(document, home / "params.yaml")
    spec = SpectrogramParams(**document["spectrogram"]["diffusion_ae"]).spec
    schema = manifest.SPECTROGRAMS.with_metadata({SPEC_KEY: spec.model_dump_json().encode()})
    shards.write_rows([], home / "mels" / shards.shard_name(0), schema)  # it reads the spec of them
    autoencoder.main(
        [
            "--family", "diffusion_ae", "--clips", f"{home}/clips", "--mels", f"{home}/mels",
            "--catalog", f"{home}/catalog.parquet", "--autoencoder", f"{home}/autoencoder",
            "--curves", f"{home}/ae.csv", "--grid", f"{home}/ae.png",
            "--metrics", f"{home}/ae.json", "--params", f"{home}/params.yaml",
        ]
    )  # fmt: skip
    return json.loads((home / "ae.json").read_text())


def encode(home: Path) -> None:
    arguments = ["--family", "diffusion_ae", "--audio", f"{home}/clips", "--catalog", f"{home}/catalog.parquet"]
    arguments += ["--autoencoder", f"{home}/autoencoder", "--latents", f"{home}/latents/clips", "--params", f"{home}/params.yaml"]
    stage.main(latents.run, "latents", arguments, code_by_name=latents.code_by_name)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Stereo clips, the autoencoder and latents: what the family trains on."""
    home = tmp_path_factory.mktemp("data")
    of_waves.write(home, channels=2)
    metrics = make_autoencoder(home, composed())
    assert (metrics["latent_rate"], metrics["latent_values_per_second"]) == (500, 1500)
    assert 0 < metrics["best_valid_loss"] <= metrics["valid_loss"]
    assert (home / "ae.png").read_bytes().startswith(b"\x89PNG")
    encode(home)
    return home


def train(home: Path, data: Path, document: dict) -> dict:
    """As of_waves.train, of inputs that lie in `data` itself."""
    (data / "inputs").exists() or (data / "inputs").symlink_to(data, target_is_directory=True)
    return of_waves.train("diffusion_ae", home, data, document, parts="inputs", inputs="inputs")


def test_trains_generates_and_reconstructs_in_stereo(tmp_path, data):
    """Latents have unit deviation as the diffusion sees them, sounds the codec's length, and the codec line is there."""
    metrics = train(tmp_path, data, composed())
    assert (metrics["clips"], metrics["labels"], metrics["steps"]) == (5, 2, 4)
    model = registry.family("diffusion_ae").load(tmp_path / "model")
    assert (model.num_samples, model.frames, model.channels) == (2048, 64, 2)
    waves = torch.randn(3, 2, 2048, generator=torch.Generator().manual_seed(0))
    assert model.codec.encode(waves).shape == (3, 3, 64)
    assert model.codec.decode(model.codec.encode(waves)).shape == waves.shape
    output = of_waves.generate("diffusion_ae", tmp_path, data, composed())
    assert list(output) == ["clip-6.wav", "clip-7.wav"]
    assert len(list((tmp_path / "codec").glob("*.wav"))) == 1
    info = soundfile.info(tmp_path / "generated/clip-6.wav")
    assert (info.samplerate, info.channels, info.frames) == (of_waves.RATE, 2, 1600)
    alone = of_waves.generate("diffusion_ae", tmp_path, data, composed("diffusion_ae.generate.batch_size=1"))
    for name in output:
        one, other = (np.frombuffer(content, "<i2").astype(int) for content in (output[name], alone[name]))
        assert np.abs(one - other).max() <= 1
    soundfile.write(tmp_path / "some.wav", 0.1 * np.random.default_rng(0).standard_normal((5000, 2)), of_waves.RATE)
    done = soundmill("reconstruct", "some.wav", "--checkpoint", "model", "--output", "byhand", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert soundfile.info(tmp_path / "byhand/some.wav").frames == 5000


def test_a_killed_training_ends_like_an_unbroken_one(tmp_path, data, monkeypatch, capfd):
    (data / "inputs").exists() or (data / "inputs").symlink_to(data, target_is_directory=True)
    of_waves.check_resuming("diffusion_ae", tmp_path, data, composed(), monkeypatch, parts="inputs", inputs="inputs")
    assert "resuming at step 2 of 4" in capfd.readouterr().out


def test_latents_are_those_of_the_waves_alone(data):
    """The stage's are the codec's own, without their neighbours; those of training clips have unit deviation."""
    codec = codecs.load(data / "autoencoder")
    rows = [row for path in shards.shard_paths(data / "latents/clips") for row in shards.read_rows(path, manifest.LATENTS)]
    assert {(row["channels"], row["frames"], row["bands"]) for row in rows} == {(3, 64, 1)}
    clips = {row["clip_id"]: row for path in shards.shard_paths(data / "clips") for row in shards.read_rows(path, manifest.CLIPS)}
    assert {row["clip_id"] for row in rows} == set(clips)
    values = np.stack([np.frombuffer(row["posterior"], "<f2").reshape(2, 3, 64) for row in rows]).astype(np.float32)
    for row, of_stage in zip(rows, values, strict=True):
        wave = flac.decode_flac(clips[row["clip_id"]]["audio"]["bytes"])
        padded = torch.from_numpy(np.pad(wave, ((0, 0), (0, 2048 - wave.shape[1]))))[None]
        torch.testing.assert_close(
            torch.from_numpy(of_stage[0]), codec.encode(padded)[0] / codec.scaling_factor, atol=2e-3, rtol=1e-3
        )
    assert codec.scaling_factor == pytest.approx(1, abs=0.1)  # principal components have unit variance


def test_a_killed_autoencoder_ends_like_an_unbroken_one(tmp_path, monkeypatch, capfd):
    homes = [tmp_path / name for name in ("whole", "killed")]
    for home in homes:
        of_waves.write(home, channels=2)
    whole = make_autoencoder(homes[0], composed())
    with monkeypatch.context() as patch:
        die_before(patch, 2)
        with pytest.raises(Killed):
            make_autoencoder(homes[1], composed())
    assert make_autoencoder(homes[1], composed()) == whole
    assert "resuming at step 2 of 4" in capfd.readouterr().out
    for name in ("autoencoder/model.safetensors", "autoencoder/config.json", "ae.csv", "ae.png"):
        assert (homes[0] / name).read_bytes() == (homes[1] / name).read_bytes(), name
    start = f"diffusion_ae.autoencoder.weights.start_from={homes[0] / 'autoencoder'}"
    assert make_autoencoder(homes[1], composed(start))["steps"] == 4
    config = json.loads((homes[1] / "autoencoder/config.json").read_text())
    assert config["source"]["started_from"] == hashing.file_digest(homes[0] / "autoencoder/model.safetensors")
    with pytest.raises(SystemExit, match=r"encoder\.blocks is 1 there and 2 here; make them agree"):
        make_autoencoder(homes[1], composed(start, "diffusion_ae.autoencoder.encoder.blocks=2"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "diffusion_ae.autoencoder.encoder.factor=1",
            r"a latent of 16 samples .* has a frame of 32: make them equal",
        ),
        ("diffusion_ae.autoencoder.latents_at=2", "latents_at 2: the network has levels 0 to 1"),
        ("diffusion_ae.autoencoder.weights.num_samples=1000", "must be a multiple of 32"),
        ("spectrogram.diffusion_ae.peak=0.5", "set its spectrogram's `peak` to null"),
        ("diffusion_ae.autoencoder.weights.num_samples=512", "num_samples 512 must be more than half of n_fft 1024"),
        ("spectrogram.diffusion_ae.sample_rate=22050", "has 16000 Hz, but the autoencoder's mels have 22050; make them agree"),
    ],
)
def test_an_autoencoder_that_does_not_fit_is_refused(tmp_path, change, message):
    of_waves.write(tmp_path, channels=2)
    with pytest.raises(SystemExit, match=message):
        make_autoencoder(tmp_path, composed(change))
    assert not (tmp_path / "autoencoder").exists()


def test_a_net_that_does_not_fit_the_latents_is_refused(tmp_path, data):
    with pytest.raises(SystemExit, match=r"a sound has 64 latents, and diffusion_ae\.train\.network needs a multiple of 48"):
        train(tmp_path / "home", data, composed("diffusion_ae.train.network.factors=[1,48]"))
