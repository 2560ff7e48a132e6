"""What every codec and vocoder keeps, one row a kind: killed or not it ends the same, it starts from another, it is refused before
a training where it does not fit."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from soundmill import hashing, manifest, shards
from soundmill.audio import flac
from soundmill.errors import UserError
from soundmill.models.components import registry
from soundmill.models.components.contracts import read_codec
from soundmill.training import checkpoint
from tests.models.components.test_mel_autoencoder import SPEC
from tests.stages import of_waves
from tests.stages.components import CODECS, PUBLISHED, REFUSALS, ROWS, VOCODERS, Components
from tests.stages.handling import tree
from tests.training.doubling import Killed, die_before

STILL = ".weights.optimiser.learning_rate=1e-9"


def weights(home: Path, name: str) -> dict[str, torch.Tensor]:
    return checkpoint.read_weights(home / "inputs" / ROWS[name].part / "model.safetensors")


def trained_on(home: Path, part: str) -> list[dict]:
    return shards.read_table(home / "inputs" / part / manifest.TRAINED_ON_FILE, manifest.TRAINED_ON).to_pylist()


def outputs(home: Path) -> list:
    return [tree(home / "inputs"), *((home / one).read_bytes() for one in ("curve.csv", "grid.png"))]


SLOW = {name: pytest.mark.slow(minutes=0.3) for name in ("hifigan", "melgan", "oobleck", "vocos")}


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW.get(name, ())) for name in ROWS])
def test_a_killed_training_ends_like_an_unbroken_one(tmp_path, components: Components, name, monkeypatch, capfd):
    row, whole, data = ROWS[name], components.made(name), components.data(name)
    metrics = components.metrics[name]
    assert metrics.items() >= {"steps": row.steps, **row.told}.items()
    assert 0 < metrics["best_valid_loss"] <= metrics["valid_loss"]
    assert (whole / "grid.png").read_bytes().startswith(b"\x89PNG")
    assert (whole / "curve.csv").read_text().startswith("step,loss/train,loss/valid,learning_rate\n")
    for at in row.killed:
        with monkeypatch.context() as patch, pytest.raises(Killed):
            die_before(patch, at)
            row.make(tmp_path, data, row.composed())
    assert row.make(tmp_path, data, row.composed()) == metrics
    said = capfd.readouterr().out
    assert all(f"resuming at step {at} of {row.steps}" in said for at in row.killed)
    assert outputs(tmp_path) == outputs(whole)


@pytest.mark.parametrize("name", ROWS)
def test_it_starts_from_another(tmp_path, components: Components, name, capfd):
    row, first, data = ROWS[name], components.made(name), components.data(name)
    before = first / "inputs" / row.part
    start = f".weights.start_from={before}"
    short = [".weights.steps=1", *([".weights.phase_1_steps=1"] if row.family == "rave" else [])]
    row.make(tmp_path, data, row.composed(start, STILL, *short))
    assert f"starts from {before}" in capfd.readouterr().out
    for key, value in weights(first, name).items():
        if name != "rave_v1":  # into whose weights go norms that have seen one batch
            torch.testing.assert_close(weights(tmp_path, name)[key], value, atol=5e-3, rtol=2e-2)
    digests = of_waves.config_of(first / "inputs" / row.part).get("digest"), hashing.file_digest(before / "model.safetensors")
    assert of_waves.config_of(tmp_path / "inputs" / row.part)["source"]["started_from"] in digests
    rows = trained_on(first, row.part)
    assert len(rows) == 5
    assert trained_on(tmp_path, row.part) == [*rows, *({**one, "earlier": True} for one in rows)]
    change, message = row.other
    with pytest.raises(SystemExit, match=rf"start_from: .*{row.part}: {message}; make them agree"):
        row.make(tmp_path / "more", data, row.composed(start, change))
    assert not (tmp_path / "more/inputs" / row.part).exists()


@pytest.mark.parametrize("name", ["mel_autoencoder", "rave_v1", "rave_v2", "oobleck"])
def test_it_is_taken_as_it_is_with_no_step(tmp_path, components: Components, name):
    row, first = CODECS[name], components.made(name)
    before, taken = (home / "inputs/autoencoder" for home in (first, tmp_path))
    zero = [".weights.steps=0", f".weights.start_from={before}"]
    metrics = row.make(tmp_path, components.data(name), row.composed(*zero))
    assert metrics.items() >= row.told.items()
    assert metrics["digest"] == read_codec(before).digest
    assert "steps" not in metrics
    assert read_codec(taken) == read_codec(before)
    assert (taken / "model.safetensors").read_bytes() == (before / "model.safetensors").read_bytes()
    assert trained_on(tmp_path, "autoencoder") == [{**one, "earlier": True} for one in trained_on(first, "autoencoder")]
    shutil.rmtree(taken)
    for changes, message in (([*zero, row.other[0]], f"start_from: .*{row.other[1]}"), (zero[:1], "0 steps take the weights of")):
        with pytest.raises(SystemExit, match=message):
            row.make(tmp_path, components.data(name), row.composed(*changes))


@pytest.mark.parametrize("name", CODECS)
def test_a_codec_encodes_each_wave_by_itself(components: Components, name):
    """The same each time it is loaded, and whatever stands beside it."""
    row, place = CODECS[name], components.made(name) / "inputs/autoencoder"
    codec, again = (registry.load_codec(place) for _ in range(2))
    assert (codec.sample_rate, codec.channels) == (row.rate, 1 if row.family == "rave" else row.channels)
    rng = np.random.default_rng(0)
    waves = [0.1 * rng.standard_normal((codec.channels, length)).astype(np.float32) for length in (3200, 2000)]
    found = codec.posterior(waves, 3200)
    assert found.shape[:2] == (2, 2)
    assert found.isfinite().all()
    assert torch.equal(again.posterior(waves, 3200), found)
    torch.testing.assert_close(codec.posterior(waves[1:], 3200), found[1:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", VOCODERS)
def test_a_vocoder_makes_the_same_of_the_same_log_mels(components: Components, name):
    place, log_mels = components.made(name) / "inputs/vocoder", torch.randn(2, SPEC.n_mels, 12) - 5
    one, again = (registry.load_vocoder(place, SPEC) for _ in range(2))
    waves = one.vocode(log_mels)
    assert one.spec == SPEC
    assert waves.shape == (2, 1, 12 * SPEC.hop_length)
    assert 0 < waves.abs().max() <= 1
    assert torch.equal(again.vocode(log_mels), waves)
    torch.testing.assert_close(one.vocode(log_mels[:1]), waves[:1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", VOCODERS)
def test_a_vocoder_for_other_spectrograms_is_refused(components: Components, name):
    other_specs = [
        ({"hop_length": 200}, "hop_length 160, not 200"),
        ({"sample_rate": 22_050}, "sample_rate 16000, not 22050"),
        ({"f_max": 7000.0}, r"f_max 8000\.0, not 7000\.0"),
        ({"floor": 1e-10}, "floor 1e-05, not 1e-10"),
        ({"peak": None, "power": 2.0}, r"power 1\.0, not 2\.0; peak 0\.5, not None"),
    ]
    for change, said in other_specs:
        with pytest.raises(UserError, match=f"for other spectrograms than these .*{said}"):
            registry.load_vocoder(components.made(name) / "inputs/vocoder", SPEC.model_copy(update=change))


@pytest.mark.parametrize("name", ROWS)
def test_what_cannot_be_read_is_refused(tmp_path, components: Components, name):
    part = ROWS[name].part
    place = Path(shutil.copytree(components.made(name) / "inputs" / part, tmp_path / "one"))
    tensors, file, about = weights(components.made(name), name), place / "model.safetensors", place / "config.json"

    def refused(message: str, where: Path = place) -> None:
        with pytest.raises(UserError, match=message):
            registry.load_codec(where) if part == "autoencoder" else registry.load_vocoder(where, SPEC)

    largest = max(tensors, key=lambda key: tensors[key].numel())
    save_file({**tensors, largest: tensors[largest].flatten()[1:].clone()}, file)
    refused("the weights do not fit the architecture")
    file.write_bytes(b"\0" * 100)
    refused("cannot be read")
    for content in ("{", "[" * 100_000):
        about.write_text(content)
        refused(r"config\.json: not readable as JSON")
    refused(rf"no {part} here \(config.json", tmp_path)


@pytest.mark.parametrize("name", PUBLISHED)
def test_one_that_others_trained_is_taken(tmp_path, name, capfd):
    published = PUBLISHED[name]
    row = published.row
    row.write(tmp_path)
    published.publish(tmp_path / "published")
    metrics = row.make(tmp_path, tmp_path, row.loading(*published.choices))
    assert metrics.items() >= published.told.items()
    assert not metrics.keys() & {"steps", "loss"}
    said = capfd.readouterr().out
    assert "licence" in said.lower() or "CC BY" in said
    assert (tmp_path / "curve.csv").read_text() == "step,loss/train\n"
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")
    assert of_waves.config_of(tmp_path / "inputs" / row.part)["source"]["name"].endswith("published")
    assert not (tmp_path / "inputs" / row.part / manifest.TRAINED_ON_FILE).exists()
    change, message = row.other
    with pytest.raises(SystemExit, match=message if name == "encodec" else None):
        row.make(tmp_path / "other", tmp_path, row.loading(*published.choices, change))


def lack(weights: Path) -> None:
    tensors = load_file(weights)
    tensors.pop(min(tensors))
    save_file(tensors, weights, {"format": "pt"})


HARMS = [
    (lack, "lack what config.json says"),
    (lambda weights: weights.write_bytes(b"\0" * 100), "cannot be read"),
    (lambda weights: weights.rename(weights.with_suffix(".bin")), r"has no .*\.safetensors .*in other formats can run code"),
    (lambda weights: weights.with_name("config.json").write_text("{"), "not readable as JSON"),
    (lambda weights: weights.with_name("config.json").write_text("[" * 100_000), "not readable as JSON"),
    (lambda weights: shutil.rmtree(weights.parents[weights.parent.name != "published"]), "no such directory"),
]


@pytest.mark.parametrize(("harm", "message"), HARMS, ids=["lacking", "torn", "pickled", "half", "deep", "nowhere"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_files_of_others_that_do_not_belong_together_are_refused(tmp_path, name, harm, message):
    published = PUBLISHED[name]
    published.row.write(tmp_path)
    published.publish(tmp_path / "published")
    (weights,) = (tmp_path / "published").rglob("*.safetensors")
    harm(weights)
    with pytest.raises(SystemExit, match=message) as refused:
        published.row.make(tmp_path, tmp_path, published.row.loading(*published.choices))
    assert "dvc repro" not in str(refused.value)  # which made none of them
    assert not (tmp_path / "inputs" / published.row.part).exists()


@pytest.mark.parametrize(
    ("name", "at", "changes"),
    [
        ("mel_autoencoder", "network", []),
        ("unet1d", "encoder", [".encoder.pca=false"]),
        ("rave_v1", "network", [".network.pca=false", ".weights.phase_1_steps=1"]),
    ],
)
def test_a_codec_saved_before_there_were_components_loads(tmp_path, components: Components, name, at, changes):
    CODECS[name].make(tmp_path, components.data(name), CODECS[name].composed(*changes, ".weights.steps=1"))
    place, found = tmp_path / "inputs/autoencoder", of_waves.config_of(tmp_path / "inputs/autoencoder")
    del found.get("params", found)[at]["pca"]
    codec = registry.load_codec(place)
    wave = 0.1 * np.random.default_rng(0).standard_normal((codec.channels, 3200)).astype(np.float32)
    (place / "config.json").write_text(json.dumps(found))
    assert torch.equal(registry.load_codec(place).posterior([wave], 3200), codec.posterior([wave], 3200))


def test_a_codec_that_was_trained_here_is_loaded_like_others(tmp_path, components: Components):
    row, first = CODECS["oobleck"], components.made("oobleck")
    document = row.loading()
    document["audio_dit"]["autoencoder"]["weights"]["name"] = f"{first}/inputs/autoencoder"
    row.make(tmp_path, components.data("oobleck"), document)
    assert read_codec(tmp_path / "inputs/autoencoder") == read_codec(first / "inputs/autoencoder")
    assert trained_on(tmp_path, "autoencoder") == [{**one, "earlier": True} for one in trained_on(first, "autoencoder")]


@pytest.mark.parametrize("name", ["mel_autoencoder", "hifigan"])
def test_a_picture_that_fails_loses_nothing(tmp_path, components: Components, name, no_picture, capfd):
    row = ROWS[name]
    assert row.make(tmp_path, components.data(name), row.composed(".weights.steps=1"))["steps"] == 1
    assert weights(tmp_path, name)
    said = capfd.readouterr().err
    assert f"{row.part}/tango: the picture (grid.png) could not be made: MemoryError: no picture" in said


@pytest.mark.parametrize("name", REFUSALS["silent"])
def test_silence_is_refused_where_nothing_can_be_measured_of_it(tmp_path, name):
    row, (changes, message) = ROWS[name], REFUSALS["silent"][name]
    row.write(tmp_path, level=0.0)
    with pytest.raises(SystemExit, match=message):
        row.make(tmp_path, tmp_path, row.composed(*changes))
    assert not (tmp_path / "inputs" / row.part).exists()
    if name == "rave_v1":  # without components it trains, and all stays finite
        assert np.isfinite(row.make(tmp_path, tmp_path, row.composed(".network.pca=false"))["valid_loss"])
        assert all(value.isfinite().all() for value in weights(tmp_path, name).values())


@pytest.mark.parametrize(("name", "change", "message"), REFUSALS["components"])
def test_what_does_not_fit_is_refused_before_a_training(tmp_path, components: Components, name, change, message):
    row, data = ROWS[name], components.data(name)
    document = row.composed(change)
    if change.startswith("spectrogram."):
        shutil.copytree(data, data := tmp_path / "data")
        shutil.rmtree(data / "mels")
        of_waves.write_spec(data, of_waves.spec_of(document, row.spec))
    with pytest.raises(SystemExit, match=message):
        row.make(tmp_path, data, document)
    assert not (tmp_path / "inputs" / row.part).exists()


def test_the_weights_of_a_kept_step_are_published(tmp_path, components: Components):
    """Of a training of four steps those of the second."""
    row, data = VOCODERS["hifigan"], components.data("hifigan")
    row.make(tmp_path, data, row.composed(".weights.keep_every_steps=2", ".weights.use=2"))
    last, kept = weights(components.made("hifigan"), "hifigan"), weights(tmp_path, "hifigan")
    assert any(not torch.equal(last[key], value) for key, value in kept.items())
    source = of_waves.config_of(tmp_path / "inputs/vocoder")["source"]
    assert (source["use"], source["weights"]["2"]["step"]) == (2, 2)


@pytest.mark.slow(minutes=0.5)
@pytest.mark.parametrize(("name", "rate"), [("hifigan", 0.01), ("melgan", 0.001)])  # a higher one makes rounding errors grow
def test_two_processes_train_what_one_does(tmp_path, components: Components, name, rate):
    """Discriminators and all; their losses are means over the batch."""
    row, data = ROWS[name], components.data(name)
    changes = f".weights.optimiser.learning_rate={rate}", ".weights.steps=2"
    one, two = (row.make(tmp_path / devices, data, row.composed(*changes, f".hardware.devices={devices}")) for devices in "12")
    for key in ("loss", "valid_loss", "best_valid_loss", "valid_l1_db"):
        assert two[key] == pytest.approx(one[key], rel=1e-4)


@pytest.mark.slow(minutes=1)
def test_two_processes_train_one_codec_through_both_phases(tmp_path, components: Components):
    row = CODECS["rave_v1"]
    metrics = row.make(tmp_path, components.data("rave_v1"), row.composed(".hardware.devices=2"))
    assert metrics["phase"] == 2
    assert metrics["best_valid_loss"] > 0
    assert len((tmp_path / "curve.csv").read_text().splitlines()) > 2


@pytest.mark.parametrize("name", ["unet1d", "rave_v2", "oobleck"])
def test_latents_are_those_of_the_waves_alone(tmp_path, components: Components, name):
    """The stage's are the codec's own of each padded wave, without its neighbours."""
    row, data = CODECS[name], tmp_path / "data"
    shutil.copytree(components.data(name), data)
    shutil.copytree(components.made(name) / "inputs/autoencoder", data / "inputs/autoencoder")
    length = 8832 if name == "oobleck" else 4096
    of_waves.make_latents(row.family, data, row.composed(f"{row.family}.latents.num_samples={length}"))
    codec = registry.load_codec(data / "inputs/autoencoder")
    rows = [one for path in shards.shard_paths(data / "inputs/latents/clips") for one in shards.read_rows(path, manifest.LATENTS)]
    waves = {clip["clip_id"]: flac.decode_flac(clip["audio"]["bytes"]) for clip in of_waves.clips_of(data)}
    assert {one["clip_id"] for one in rows} == set(waves)
    means = []
    for one in rows:
        shape = one["channels"], one["frames"], one["bands"]
        values = np.frombuffer(one["posterior"], "<f2").reshape(2, *shape).astype(np.float32)
        wave = waves[one["clip_id"]]
        alone = codec.posterior([wave.mean(0, keepdims=True) if row.family == "rave" else wave], length)[0]
        np.testing.assert_allclose(values, alone.numpy(), atol=0.01, rtol=0.01)
        means.append(values[0])
    deviations = np.stack(means).std((0, 2, 3))
    assert np.isfinite(deviations).all()
    if name != "oobleck":  # principal components have unit variance
        assert ((deviations > 0.3) & (deviations < 3)).all()
    if name == "unet1d":
        assert read_codec(data / "inputs/autoencoder").scaling_factor == pytest.approx(1, abs=0.1)
