"""Measurements of a text-to-sound checkpoint, with random weights on a few real clips: all results are written."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import measure, samplers, steering
from bench.samplers import Run
from soundmill import manifest, params, shards, text
from soundmill.audio import flac
from soundmill.decoding import decode
from soundmill.errors import UserError
from soundmill.models.components import registry
from soundmill.models.components.mel_autoencoder import autoencoder as autoencoders
from soundmill.models.components.mel_autoencoder.autoencoder import Autoencoder, build_autoencoder
from soundmill.models.components.text_states.states import TextConfig
from soundmill.models.tango import model as checkpoint
from soundmill.models.tango.model import Tango, build_net
from soundmill.models.tango.params import TrainParams
from soundmill.shards import shard_name
from tests.imports import ROOT
from tests.models.components.test_mel_autoencoder import SPEC, TINY

FRAMES = 128  # of a log-mel: 1.28 s, a window of YAMNet's and some
SCRATCH = {"width": 16, "layers": 1, "heads": 2, "seed": 0}
CLASSES = {"dog bark": "001 - Dog bark", "rain": "002 - Rain", "rooster": "009 - Rooster"}


@pytest.fixture(scope="module")
def untrained(tmp_path_factory) -> Path:
    """A checkpoint with random weights, as a training would leave it."""
    home = tmp_path_factory.mktemp("checkpoint")
    document = params.compose(
        ROOT / "conf",
        [
            "model=tango", "tango.train.network.widths=[8,16]", "tango.train.network.heads=[2,2]",
            "tango.train.network.text_levels=[1]", "tango.train.network.text_width=16",
            "tango.train.hardware.threads=1", "tango.train.sampling.griffin_lim_iterations=2",
        ],
    )  # fmt: skip
    trained = params.parse(TrainParams, document["tango"]["train"], "tango.train")
    torch.manual_seed(0)
    model = Autoencoder(TINY, SPEC, build_autoencoder(TINY).eval(), mean=-5.0, deviation=3.0, scaling_factor=0.5)
    model.residual = [0.5] * SPEC.n_mels
    autoencoders.save(model, home / "autoencoder", {})
    encoder = text.make_scratch(home / "encoder", **SCRATCH)
    config = TextConfig(**encoder.identity(), max_tokens=64, scratch=SCRATCH)
    net = build_net(trained, model.latent_shape(FRAMES))
    kind, _ = registry.load_latent_codec(home / "autoencoder")
    facts = {"weights": {"last": {"step": 0}}}
    checkpoint.save(Tango(trained, net, kind, model, FRAMES, config), home, home, home / "model", facts)
    return home / "model"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, shared) -> Path:
    """Four real clips of each of three classes, two of them test clips, as the pipeline's data directory has them."""
    home = tmp_path_factory.mktemp("data")
    clips, catalog = [], []
    for label, folder in CLASSES.items():
        for number, path in enumerate(sorted((shared / "data" / "esc10" / folder).glob("*.ogg"))[:24:6]):
            wave = decode.read_mono(path, SPEC.sample_rate, 60.0)[: SPEC.sample_rate * 5 // 4]
            same = {"clip_id": path.stem, "recording_id": path.stem, "source": path.name, "start": 0.0}
            audio = {"bytes": flac.encode_flac(wave, SPEC.sample_rate), "path": f"{path.stem}.flac"}
            clips.append({**same, "audio": audio, "digest": "", "num_samples": len(wave), "quality": None})
            split = "test" if number % 2 else "train"
            more = {"shard": 0, "split": split, "captions": [label], "labels": [label], "corpus": "esc", "weight": 1.0}
            catalog.append({**same, **more})
    shards.write_rows(clips, home / "clips/default" / shard_name(0), manifest.CLIPS)
    shards.write_rows(catalog, home / "catalog/default.parquet", manifest.CATALOG)
    return home


def bench(monkeypatch, module, results: Path, *arguments: object) -> dict:
    name = module.__name__.rpartition(".")[2]
    monkeypatch.setattr(sys, "argv", [name, "--results", str(results), *map(str, arguments)])
    module.main()
    return json.loads((results / f"{name}.json").read_text())


def test_steering(tmp_path, monkeypatch, shared, untrained, prepared):
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(shared / "models"))
    size = ["--sounds", 2, "--steps", 2, "--replicates", 100]
    found = bench(monkeypatch, steering, tmp_path, untrained, "--reference", prepared, *size)
    assert [one["text"] for one in found["prompts"].values()] == ["dog bark", "rain", "rooster"]
    assert all(len(set(one["clips"])) == 2 for one in found["prompts"].values())
    assert set(found["matches"]) == set(found["heard"]) == {"real clips", "through the codec", "guidance 3", "guidance 1"}
    for row in found["matches"].values():
        assert row["shuffled"]["value"] == pytest.approx((1 - row["own"]["value"]) / 2)
        assert row["difference"]["value"] == pytest.approx(row["own"]["value"] - row["shuffled"]["value"])
    assert found["matches"]["real clips"]["own"]["value"] > 0.6
    assert found["heard_above_others"]["real clips"]["value"] > 0.7
    kl = found["kl_yamnet"]
    difference = found["differences"]["kl_yamnet, guidance 1 − guidance 3"]
    assert difference["value"] == pytest.approx(kl["guidance 1"]["value"] - kl["guidance 3"]["value"])
    assert min(one["low"] for one in kl.values()) > 0
    for picture in ("steering.png", "steering_spectrograms.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


def test_a_corpus_of_other_labels_cannot_tell(tmp_path, prepared):
    rows = shards.read_table(prepared / "catalog/default.parquet", manifest.CATALOG).to_pylist()
    shards.write_rows([{**row, "labels": ["violin"]} for row in rows], tmp_path / "catalog/default.parquet", manifest.CATALOG)
    with pytest.raises(UserError, match="test clips of 0 families"):
        steering.prompts(tmp_path, 2)


def test_fewer_clips_than_sounds_serve_in_turn(prepared):
    found = steering.prompts(prepared, 3)
    assert all(one.clips[0] == one.clips[2] != one.clips[1] for one in found.values())
    waves = steering.real_waves(prepared, found)
    np.testing.assert_array_equal(waves["rain"][0], waves["rain"][2])


def test_samplers(tmp_path, monkeypatch, shared, untrained, prepared):
    """Of a net with random weights scores mean nothing, but each has its interval, and seconds grow with the steps."""
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(shared / "models"))
    monkeypatch.setattr(samplers, "EMBEDDERS", ("yamnet",))  # the tagger is trained by a stage
    monkeypatch.setattr(measure, "WORKERS", 1)
    size = ["--prompts", 4, "--bootstrap", 5, "--ddpm", 1, 20, "--ddim", 2, "--dpm++", 2, "--unipc", 2]
    found = bench(monkeypatch, samplers, tmp_path, untrained, "--reference", prepared, *size)
    assert list(found["scores"]) == list(found["seconds"]) == ["ddpm 1", "ddpm 20", "ddim 2", "dpm++ 2", "unipc 2"]
    for row in found["scores"].values():
        assert row["kl_yamnet"]["low"] < row["kl_yamnet"]["high"]
        assert set(row["baselines"]["yamnet"]["kl"]) >= {"codec", "floor", "noise"}
    assert found["scores"]["ddim 2"]["kl_yamnet"] != found["scores"]["dpm++ 2"]["kl_yamnet"]
    assert found["cpu_seconds"]["ddpm 20"][0] > 4 * found["cpu_seconds"]["ddim 2"][0]
    assert found["against"] == "ddpm 20"
    assert "ddpm 20" in found["as_good"]["kl_yamnet"]["all"]
    assert (tmp_path / "samplers.png").read_bytes().startswith(b"\x89PNG")


def test_the_fastest_sampler_that_is_as_good():
    """Known answer: a score is as good within DDPM's interval and below it (for a share of hits: above)."""
    scores = {
        Run("ddpm", 200): {
            "fad_yamnet": {"value": 10.0, "low": 9.0, "high": 12.0},
            "label_accuracy_yamnet": {"value": 0.7, "low": 0.6, "high": 0.8},
        },
        Run("dpm++", 10): {
            "fad_yamnet": {"value": 12.1, "low": 9.0, "high": 14.0},
            "label_accuracy_yamnet": {"value": 0.9, "low": 0.8, "high": 1.0},
        },
        Run("dpm++", 20): {
            "fad_yamnet": {"value": 8.0, "low": 7.0, "high": 9.0},
            "label_accuracy_yamnet": {"value": 0.5, "low": 0.4, "high": 0.6},
        },
    }
    seconds = {run: {"wall": run.steps / 10, "cpu": run.steps / 5} for run in scores}
    found = samplers.fastest(scores, seconds, "cpu", "fad_yamnet", Run("ddpm", 200))
    assert found == {"run": "dpm++ 20", "steps": 20, "times_faster": {"wall": 10, "cpu": 10}, "all": ["ddpm 200", "dpm++ 20"]}
    assert samplers.fastest(scores, seconds, "cpu", "label_accuracy_yamnet", Run("ddpm", 200))["run"] == "dpm++ 10"
