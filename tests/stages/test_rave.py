"""The family `rave`, shrunk: its codec in two phases, the latents of it, the diffusion over them, and sounds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from soundmill import hashing, manifest, params, shards, stage, text
from soundmill.evaluation import family, family_report
from soundmill.models import generation, registry
from soundmill.models.catalog import waves_of
from soundmill.models.components.contracts import read_codec
from soundmill.models.components.rave import codec as codecs
from stages import autoencoder, latents
from stages.encode_text import encode_shard
from tests.commands.running import soundmill
from tests.imports import ROOT
from tests.stages import of_waves, tango_inputs
from tests.training.killing import Killed, die_before

LEVELS = "items: [1, 1], text_attention: [false, false], heads: 2, head_width: 4, groups: 2, modulation: 8"
SHRUNK = [
    "model=rave",
    "rave.autoencoder.network.bands=4",
    "rave.autoencoder.network.channels=4",
    "rave.autoencoder.network.ratios=[4,2]",
    "rave.autoencoder.network.dilations=[[1,3],[1]]",
    "rave.autoencoder.network.latent_channels=6",
    "rave.autoencoder.network.noise={ratios: [4], filters: 3}",
    "rave.autoencoder.weights.steps=6",
    "rave.autoencoder.weights.phase_1_steps=3",
    "rave.autoencoder.weights.batch_size=2",
    "rave.autoencoder.weights.num_samples=1024",
    "rave.autoencoder.weights.scales=[512,128]",
    "rave.autoencoder.weights.discriminator_every=2",
    "rave.autoencoder.weights.discriminators.channels=2",
    "rave.autoencoder.weights.discriminators.layers=2",
    "rave.autoencoder.weights.log_every_steps=1",
    "rave.autoencoder.weights.checkpoint_seconds=0",
    "rave.autoencoder.weights.validate_every_steps=2",
    "rave.autoencoder.hardware={accelerator: cpu, devices: 1, precision: '32', threads: 1}",
    "rave.latents.num_samples=2048",
    f"rave.train.network={{channels: [4, 8], factors: [1, 4], attention: [false, true], {LEVELS}}}",
    "rave.train.steps=4",
    "rave.train.batch_size=2",
    "rave.train.log_every_steps=1",
    "rave.train.checkpoint_seconds=0",
    "rave.train.hardware={accelerator: cpu, devices: 1, precision: '32', threads: 1}",
    "rave.train.grid={columns: 2, rows: 1}",
    "rave.train.sampling.num_steps=2",
    "rave.generate.count=2",
    "rave.generate.codec_count=1",
]
V1 = [
    "rave.autoencoder.network.version=v1",
    "rave.autoencoder.network.noise={ratios: [2, 2], filters: 3}",
    "rave.autoencoder.weights.discriminators.periods=[]",
    "rave.autoencoder.weights.features={weight: 10.0, relative: false, skip: 0}",
]


def composed(*changes: str) -> dict:
    return params.compose(ROOT / "conf", [*SHRUNK, *changes])


def make_codec(home: Path, document: dict) -> dict:
    """Of the clips in `home`."""
    params.write_yaml(document, home / "params.yaml")
    (home / "mels").mkdir(exist_ok=True)  # it takes none
    autoencoder.main(
        [
            "--family", "rave", "--clips", f"{home}/clips", "--mels", f"{home}/mels",
            "--catalog", f"{home}/catalog.parquet", "--autoencoder", f"{home}/autoencoder",
            "--curves", f"{home}/ae.csv", "--grid", f"{home}/ae.png",
            "--metrics", f"{home}/ae.json", "--params", f"{home}/params.yaml",
        ]
    )  # fmt: skip
    return json.loads((home / "ae.json").read_text())


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Stereo clips, of which the codec takes the mean; the codec and latents: what the family trains on."""
    home = tmp_path_factory.mktemp("data")
    of_waves.write(home, channels=2)
    metrics = make_codec(home, composed())
    assert metrics["phase"] == 2
    assert 1 <= metrics["rank_0.8"] <= metrics["rank_0.95"] <= metrics["rank"] == 6
    assert metrics["latent_rate"] == 500
    assert metrics["latent_values_per_second"] == 500 * metrics["rank"]
    assert 0 < metrics["best_valid_loss"] <= metrics["valid_loss"]
    assert (home / "ae.png").read_bytes().startswith(b"\x89PNG")
    arguments = ["--family", "rave", "--audio", f"{home}/clips", "--catalog", f"{home}/catalog.parquet"]
    arguments += ["--autoencoder", f"{home}/autoencoder", "--latents", f"{home}/latents/clips", "--params", f"{home}/params.yaml"]
    stage.main(latents.run, "latents", arguments, code_by_name=latents.code_by_name)
    (home / "inputs").symlink_to(home, target_is_directory=True)
    return home


WHERE = {"parts": "inputs", "inputs": "inputs"}


def test_trains_generates_and_reconstructs(tmp_path, data):
    metrics = of_waves.train("rave", tmp_path, data, composed(), **WHERE)
    assert (metrics["clips"], metrics["labels"], metrics["steps"]) == (5, 2, 4)
    model = registry.family("rave").load(tmp_path / "model")
    assert (model.num_samples, model.frames, model.channels) == (2048, 64, 1)
    output = of_waves.generate("rave", tmp_path, data, composed())
    assert list(output) == ["clip-6.wav", "clip-7.wav"]
    assert len(list((tmp_path / "codec").glob("*.wav"))) == 1
    info = soundfile.info(tmp_path / "generated/clip-6.wav")
    assert (info.samplerate, info.channels, info.frames) == (of_waves.RATE, 1, 1600)
    alone = of_waves.generate("rave", tmp_path, data, composed("rave.generate.batch_size=1"))
    for name in output:
        one, other = (np.frombuffer(content, "<i2").astype(int) for content in (output[name], alone[name]))
        assert np.abs(one - other).max() <= 1
    soundfile.write(tmp_path / "some.wav", 0.1 * np.random.default_rng(0).standard_normal((5000, 2)), of_waves.RATE)
    done = soundmill("reconstruct", "some.wav", "--checkpoint", "model", "--output", "byhand", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert soundfile.info(tmp_path / "byhand/some.wav").frames == 5000


def test_what_is_left_out_for_its_label_is_transferred_for_the_report(tmp_path, data):
    """Beside its input, and nothing that the catalog lacks for other reasons; and the page plays both, with all other sounds."""
    of_waves.train("rave", tmp_path, data, composed(), **WHERE)
    some = tmp_path / "some"
    some.mkdir()
    (some / "clips").symlink_to(data / "clips", target_is_directory=True)
    missing = ("clip-0", "clip-1")
    rows = [row for row in shards.read_rows(data / "catalog.parquet", manifest.CATALOG) if row["clip_id"] not in missing]
    shards.write_rows(rows, some / "catalog.parquet", manifest.CATALOG.with_metadata({manifest.LEFT_OUT: '["clip-0"]'}))
    of_waves.generate("rave", tmp_path, some, composed("rave.generate.transfer_count=2", "rave.train.sampling.latent=['0=+2']"))
    output = {path.name for path in (tmp_path / "codec/transferred").iterdir()}
    assert output == {"clip-0.wav", "clip-0-input.wav"}
    given, transferred = (soundfile.read(tmp_path / f"codec/transferred/{name}")[0] for name in ("clip-0-input.wav", "clip-0.wav"))
    assert given.shape == transferred.shape == (1600,)
    assert np.abs(given - transferred).max() > 0.01
    source = family.read(some / "catalog.parquet", some / "clips", tmp_path / "generated", tmp_path / "codec")
    section = family_report._transferred(source)
    assert [[sound.role for sound in card.sounds] for card in section.cards] == [["transferred", "real"]]


def test_a_killed_training_ends_like_an_unbroken_one(tmp_path, data, monkeypatch, capfd):
    of_waves.check_resuming("rave", tmp_path, data, composed(), monkeypatch, catalog="two_held_out.parquet", **WHERE)
    assert "resuming at step 2 of 4" in capfd.readouterr().out


def test_latents_are_the_codecs_components(data):
    """The stage's, without their neighbours, are the codec's own means, each of deviation 1."""
    codec = codecs.load(data / "autoencoder")
    rows = [row for path in shards.shard_paths(data / "latents/clips") for row in shards.read_rows(path, manifest.LATENTS)]
    assert {(row["channels"], row["frames"], row["bands"]) for row in rows} == {(codec.rank, 64, 1)}
    values = np.stack([np.frombuffer(row["posterior"], "<f2").reshape(2, codec.rank, 64) for row in rows]).astype(np.float32)
    assert np.isfinite(values).all()
    waves = {clip_id: wave for clip_id, (wave, _) in waves_of(data / "clips", {row["clip_id"] for row in rows})}
    for row, (mean, _) in zip(rows, values, strict=True):
        wave = torch.from_numpy(waves[row["clip_id"]]).mean(0)[None, None]
        alone = codec.encode(torch.nn.functional.pad(wave, (0, 2048 - wave.shape[2])))[0]
        np.testing.assert_allclose(mean, alone.numpy(), atol=0.01, rtol=0.01)
    deviations = values[:, 0].std((0, 2))
    assert ((deviations > 0.3) & (deviations < 3)).all()


def weights_of(home: Path) -> dict[str, torch.Tensor]:
    return codecs.load(home / "autoencoder").net.state_dict()


def test_the_encoder_stands_still_in_phase_2(tmp_path, capfd):
    """Batch norms too, and the noise speaks; and all is told before."""
    of_waves.write(tmp_path)
    short = make_codec(tmp_path, composed(*V1, "rave.autoencoder.weights.steps=3"))
    told = capfd.readouterr().out
    assert short["phase"] == 1
    assert "phase 1 only" in told
    before = weights_of(tmp_path)
    assert make_codec(tmp_path, composed(*V1))["phase"] == 2
    told = capfd.readouterr().out
    sound = "0.0 minutes of sound: 5 crops of 0.06 s an epoch, one of each clip; in 6 steps of 2 each second is used 1.71 times"
    assert sound in told
    assert "phase 2 (encoder frozen, against discriminators) begins at step 3 of 6" in told
    assert told.index("begins at step 3 of 6") < told.index("phase 2 begins at step 3 of 6: the encoder is frozen")
    after = weights_of(tmp_path)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert all(name.startswith("decoder.") for name in moved)
    assert {name for name in moved if "noise" in name}


def test_a_codec_killed_in_both_phases_ends_like_an_unbroken_one(tmp_path, monkeypatch, capfd):
    homes = [tmp_path / name for name in ("whole", "killed")]
    for home in homes:
        of_waves.write(home)
    whole = make_codec(homes[0], composed(*V1))
    for at in (2, 4):
        with monkeypatch.context() as patch:
            die_before(patch, at)
            with pytest.raises(Killed):
                make_codec(homes[1], composed(*V1))
    assert "resuming at step 2 of 6" in capfd.readouterr().out
    assert make_codec(homes[1], composed(*V1)) == whole
    told = capfd.readouterr().out
    assert "resuming at step 4 of 6" in told
    assert "begins at step 3 of 6" in told
    for name in ("autoencoder/model.safetensors", "autoencoder/config.json", "ae.csv", "ae.png"):
        assert (homes[0] / name).read_bytes() == (homes[1] / name).read_bytes(), name


def test_a_codec_starts_from_another(tmp_path):
    home, other = tmp_path / "first", tmp_path / "second"
    for one in (home, other):
        of_waves.write(one)
    make_codec(home, composed())
    start = f"rave.autoencoder.weights.start_from={home / 'autoencoder'}"
    make_codec(other, composed(start, "rave.autoencoder.weights.steps=1", "rave.autoencoder.weights.phase_1_steps=1"))
    config = json.loads((other / "autoencoder/config.json").read_text())
    assert config["source"]["started_from"] == hashing.file_digest(home / "autoencoder/model.safetensors")
    first, second = weights_of(home), weights_of(other)
    assert (
        max((first[name] - second[name]).abs().max() for name in first if name.startswith("decoder.")) < 5e-3
    )  # one step of Adam's, of lengths and of directions
    with pytest.raises(SystemExit, match=r"network\.channels is 4 there and 8 here; make them agree"):
        make_codec(other, composed(start, "rave.autoencoder.network.channels=8"))


def test_a_codec_is_taken_as_it_is_with_no_step(tmp_path, data):
    """Its components and its rank are those of its training, whatever the clips here."""
    of_waves.write(tmp_path)
    first, taken = data / "autoencoder", tmp_path / "autoencoder"
    zero = [f"rave.autoencoder.weights.start_from={first}", "rave.autoencoder.weights.steps=0"]
    metrics = make_codec(tmp_path, composed(*zero))
    assert (metrics["phase"], metrics["rank"], metrics["latent_values_per_second"]) == (2, 6, 3000)
    assert metrics["digest"] == codecs.load(first).digest
    assert read_codec(taken) == read_codec(first)
    assert (taken / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()
    assert (tmp_path / "ae.png").read_bytes().startswith(b"\x89PNG")
    before, now = (shards.read_table(one / manifest.TRAINED_ON_FILE, manifest.TRAINED_ON).to_pylist() for one in (first, taken))
    assert now == [{**row, "earlier": True} for row in before]
    shutil.rmtree(taken)
    with pytest.raises(SystemExit, match=r"start_from: .*autoencoder: fidelity is 1\.0 there and 0\.9 here; make them agree"):
        make_codec(tmp_path, composed(*zero, "rave.autoencoder.fidelity=0.9"))
    with pytest.raises(SystemExit, match=r"0 steps take the weights of start_from, which is null"):
        make_codec(tmp_path, composed("rave.autoencoder.weights.steps=0"))


@pytest.mark.slow(minutes=1)
def test_two_devices_train_one_codec_through_both_phases(tmp_path):
    of_waves.write(tmp_path)
    metrics = make_codec(tmp_path, composed(*V1, "rave.autoencoder.hardware.devices=2"))
    assert metrics["phase"] == 2
    assert metrics["best_valid_loss"] > 0
    assert len((tmp_path / "ae.csv").read_text().splitlines()) > 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("rave.autoencoder.weights.num_samples=1000", "must be a multiple of 32, the samples of a latent"),
        ("rave.autoencoder.weights.scales=[2048]", "must be multiples of 4 from 8 to num_samples 1024"),
        ("rave.autoencoder.weights.phase_1_steps=7", "phase_1_steps 7 must not exceed weights.steps 6"),
        ("rave.autoencoder.fidelity=1.5", "less than or equal to 1"),
        ("rave.autoencoder.weights.scales=[512]", r"at least one must fit into a band's crop, which has 256 samples"),
        ("rave.autoencoder.weights.features.skip=3", "leaves none of a discriminator's 3 maps"),
        (
            "rave.autoencoder.weights.valid_signal_crop=true",
            r"leaves 104 band frames of a crop, fewer than the shortest .* \(128\)",
        ),
        ("rave.autoencoder.weights.optimiser.decay=cosine", "decay cosine reaches zero at the end of phase 1"),
        (
            "rave.autoencoder.weights.ema={kind: diffusers, decay: 0.9, min_decay: 0.0, update_after_step: 0}",
            "weights.ema must be null: an average would keep changing the encoder",
        ),
        ("rave.autoencoder.hardware.devices=3", "batch_size 2 must be a multiple of hardware.devices"),
    ],
)
def test_a_codec_that_does_not_fit_is_refused(tmp_path, change, message):
    of_waves.write(tmp_path)
    with pytest.raises(SystemExit, match=message):
        make_codec(tmp_path, composed(change))
    assert not (tmp_path / "autoencoder").exists()


TANGO = [
    "model=tango",
    "latents=rave",
    "text.tango.scratch.width=16",
    "tango.latents.num_samples=2048",
    "tango.train.mixed_items=0",
    "tango.train.real_items=2",
    "tango.train.steps=2",
    "tango.train.log_every_steps=1",
    "tango.train.hardware={accelerator: cpu, devices: 1, precision: '32', threads: 1}",
    "tango.train.network.widths=[8,16]",
    "tango.train.network.heads=[2,2]",
    "tango.train.network.text_levels=[1]",
    "tango.train.grid.columns=2",
    "tango.train.sampling.num_steps=2",
    "tango.generate.count=1",
    "tango.generate.codec_count=1",
]


def make_latents(family: str, home: Path, data: Path, document: dict) -> None:
    """Of the clips in `data`, by a copy of its codec in `home`."""
    shutil.copytree(data / "autoencoder", home / "autoencoder")
    params.write_yaml(document, home / "params.yaml")
    arguments = ["--family", family, "--audio", f"{data}/clips", "--catalog", f"{data}/catalog.parquet"]
    arguments += ["--autoencoder", f"{home}/autoencoder", "--latents", f"{home}/latents/clips"]
    arguments += ["--params", f"{home}/params.yaml"]
    stage.main(latents.run, "latents", arguments, code_by_name=latents.code_by_name)


def test_tango_diffuses_its_latents_and_needs_no_vocoder(tmp_path, data):
    """By caption: sounds of the codec's rate and length, and its codec line."""
    home, document = tmp_path / "tango", params.compose(ROOT / "conf", TANGO)
    make_latents("tango", home, data, document)
    encoder = text.make_scratch(tmp_path / "encoder", **tango_inputs.SCRATCH)
    (home / "text").mkdir()
    config = {**encoder.identity(), "max_tokens": 64, "scratch": tango_inputs.SCRATCH}
    captions = ["", *(f"a {label} rings" for label in of_waves.LABELS)]
    encode_shard(captions, encoder, config, home / "text" / shards.shard_name(0))
    (data / "tango").symlink_to(home, target_is_directory=True)
    metrics = of_waves.train("tango", tmp_path / "trained", data, document, parts="tango", inputs="tango")
    assert (metrics["clips"], metrics["mixes"], metrics["steps"]) == (5, 0, 2)
    model = registry.family("tango").load(tmp_path / "trained/model")
    assert model.latent_shape == (codecs.load(home / "autoencoder").rank, 64, 1)
    assert (model.num_samples, model.sample_rate, model.vocoder) == (2048, of_waves.RATE, None)
    assert list(of_waves.generate("tango", tmp_path / "trained", data, document)) == ["clip-6.wav"]
    assert len(list((tmp_path / "trained/codec").glob("*.wav"))) == 1
    soundfile.write(tmp_path / "some.wav", 0.1 * np.random.default_rng(0).standard_normal(3000), of_waves.RATE)
    done = soundmill("transfer", "some.wav", "--checkpoint", "trained/model", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    other = [*TANGO, "vocoder=hifigan_laptop", "tango.train.sampling.vocoder=trained"]
    with pytest.raises(SystemExit, match="latents of waves need no vocoder: leave `vocoder=` out"):
        of_waves.train("tango", tmp_path / "wrong", data, params.compose(ROOT / "conf", other), parts="tango", inputs="tango")


AUDIO_DIT = [
    "model=audio_dit",
    "codec@audio_dit.autoencoder=rave_laptop",
    "audio_dit.latents.num_samples=2048",
    "audio_dit.train.condition=label",
    "audio_dit.train.steps=2",
    "audio_dit.train.batch_size=2",
    "audio_dit.train.log_every_steps=1",
    "audio_dit.train.hardware={accelerator: cpu, devices: 1, precision: '32', threads: 1}",
    "audio_dit.train.network={layers: 1, heads: 2, head_width: 8, key_heads: 1, condition_width: 8}",
    "audio_dit.train.grid.columns=2",
    "audio_dit.train.sampling.num_steps=2",
    "audio_dit.generate.count=1",
    "audio_dit.generate.codec_count=1",
]


def test_audio_dit_makes_longer_sounds_of_its_latents(tmp_path, data):
    home, document = tmp_path / "dit", params.compose(ROOT / "conf", AUDIO_DIT)
    make_latents("audio_dit", home, data, document)
    (data / "dit").symlink_to(home, target_is_directory=True)
    metrics = of_waves.train("audio_dit", tmp_path / "trained", data, document, parts="dit", inputs="dit")
    assert (metrics["clips"], metrics["labels"], metrics["steps"]) == (5, 2, 2)
    model = registry.family("audio_dit").load(tmp_path / "trained/model")
    assert (model.sample_rate, model.latent_frames, model.vocoder) == (of_waves.RATE, 64, None)
    assert list(of_waves.generate("audio_dit", tmp_path / "trained", data, document)) == ["clip-6.wav"]
    longer = [f"seconds={2.5 * model.num_samples / of_waves.RATE}"]
    (path,) = generation.generate_sounds(tmp_path / "trained/model", ["rain"], 1, 0, tmp_path / "sounds", tmp_path, longer)
    assert soundfile.info(path).frames == round(2.5 * model.num_samples)


def test_a_corpus_of_silence_trains(tmp_path):
    """Nothing varies, and all stays finite; principal components it has none."""
    of_waves.write(tmp_path)
    silent = [
        {
            **row,
            "audio": {
                **row["audio"],
                "bytes": of_waves.flac.encode_flac(np.zeros((1, row["num_samples"]), np.float32), of_waves.RATE),
            },
        }
        for row in shards.read_rows(tmp_path / "clips" / shards.shard_name(0), manifest.CLIPS)
    ]
    (tmp_path / "clips" / shards.shard_name(0)).unlink()
    shards.write_rows(silent, tmp_path / "clips" / shards.shard_name(0), manifest.CLIPS)
    with pytest.raises(SystemExit, match=r"autoencoder\.network\.pca: all training clips are silent"):
        make_codec(tmp_path, composed(*V1))
    metrics = make_codec(tmp_path, composed(*V1, "rave.autoencoder.network.pca=false"))
    assert np.isfinite(metrics["valid_loss"])
    assert all(torch.isfinite(value).all() for value in weights_of(tmp_path).values())
