"""Clips of noise, and the stages `train` and `generate` of a family over them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import stages.generate
import stages.train
from soundmill import manifest, params, shards
from soundmill.audio import flac
from soundmill.audio.mel import SpectrogramParams
from soundmill.training import tagger as taggers
from soundmill.training.tagger_targets import Targets
from tests.imports import ROOT
from tests.training.killing import Killed, die_before

RATE, SECONDS, SHORT = 16_000, 0.1, 0.05
LABELS = ("bell", "rain")
SPLITS = ("train", "train", "train", "train", "train", "valid", "test", "test")  # of each clip; the fifth is short


def write(home: Path, rate: int = RATE, channels: int = 1, seconds: float = SECONDS, short: float = SHORT) -> None:
    """Clips, and their catalog; another one without labels, and one with two clips held out."""
    rng, clips, catalog = np.random.default_rng(0), [], []
    for number, split in enumerate(SPLITS):
        wave = 0.1 * rng.standard_normal((channels, round(rate * (short if number == 4 else seconds)))).astype(np.float32)
        common = {"clip_id": f"clip-{number}", "recording_id": f"r{number}", "source": "r.wav", "start": 0.0}
        audio = {"bytes": flac.encode_flac(wave, rate), "path": f"clip-{number}.flac"}
        clips.append({**common, "audio": audio, "num_samples": wave.shape[1], "digest": str(number), "quality": None})
        label = LABELS[number % 2]
        fields = {"labels": [label], "captions": [f"a {label} rings"], "corpus": "test", "weight": 1.0}
        catalog.append({**common, **fields, "shard": 0, "split": split})
    shards.write_rows(clips, home / "clips" / shards.shard_name(0), manifest.CLIPS)
    shards.write_rows(catalog, home / "catalog.parquet", manifest.CATALOG)
    plain = [{**row, "labels": [], "captions": []} for row in catalog]
    shards.write_rows(plain, home / "unlabelled.parquet", manifest.CATALOG)
    more = [{**row, "split": "valid" if number == 3 else row["split"]} for number, row in enumerate(catalog)]
    shards.write_rows(more, home / "two_held_out.parquet", manifest.CATALOG)


def silence(home: Path) -> None:
    """Replace the mono clips that `write` wrote by digital silence."""
    path = home / "clips" / shards.shard_name(0)
    rows = shards.read_table(path, manifest.CLIPS).to_pylist()
    for row in rows:
        silent = flac.encode_flac(np.zeros((1, row["num_samples"]), np.float32), RATE)
        row["audio"] = {**row["audio"], "bytes": silent}
    path.unlink()
    shards.write_rows(rows, path, manifest.CLIPS)


def write_tagger(directory: Path) -> None:
    """A tagger with random weights."""
    document = params.compose(ROOT / "conf", [])
    spec = params.parse(SpectrogramParams, document["spectrogram"]["tagger"], "spectrogram.tagger").spec
    settings = params.parse(taggers.TaggerParams, {**document["tagger"], "width": 4, "embedding_size": 8}, "tagger")
    torch.manual_seed(0)
    net = taggers.Tagger(spec, len(LABELS), settings.width, settings.embedding_size, settings.patch_seconds, settings.dropout)
    taggers.save_tagger(net, settings, spec, Targets("labels", list(LABELS), {}), directory)


def train(
    family: str,
    home: Path,
    data: Path,
    document: dict,
    catalog: str = "catalog.parquet",
    parts: str = "clips",
    inputs: str = "clips",
    tagger: str = "clips",
) -> dict:
    home.mkdir(exist_ok=True)
    params.write_yaml(document, home / "params.yaml")
    arguments = [
        "--family", family, "--inputs", f"{data}/{inputs}", "--parts", f"{data}/{parts}", "--tagger", f"{data / tagger}",
        "--clips", f"{data}/clips", "--catalog", f"{data / catalog}",
        "--model", f"{home}/model", "--curves", f"{home}/curve.csv", "--grid", f"{home}/grid.png",
        "--metrics", f"{home}/train.json", "--params", f"{home}/params.yaml",
    ]  # fmt: skip
    stages.train.main(arguments)
    return json.loads((home / "train.json").read_text())


def check_resuming(family: str, home: Path, data: Path, document: dict, monkeypatch: Any, batch: int = 2, **where: str) -> None:
    """A training of four steps, scored twice, that dies before that batch, counted from 0, ends like one that is not killed.

    Scores change no weight: the last are those of a training without them.
    """
    unscored = train(family, home / "unscored", data, document, **where)
    write_tagger(home / "tagger")
    where["tagger"] = str(home / "tagger") if where.get("tagger") is None else where["tagger"]
    settings = {**document[family]["train"], "score_every_steps": 2, "score_requests": 3, "score_share": None}
    document = {**document, family: {**document[family], "train": settings}}
    whole = train(family, home / "whole", data, document, **where)
    with monkeypatch.context() as patch:
        die_before(patch, batch)
        with pytest.raises(Killed):
            train(family, home / "killed", data, document, **where)
    assert train(family, home / "killed", data, document, **where) == whole
    assert whole.items() > unscored.items()
    assert whole["best_fad_step"] in (2, 4)
    assert 0 < whole["best_fad"] <= whole["score_fad_tagger"]
    last = [path.name for path in (home / "whole/model").glob("*.safetensors") if path.name != "best_fad.safetensors"]
    for name in last:
        assert (home / "whole/model" / name).read_bytes() == (home / "unscored/model" / name).read_bytes(), name
    files = [path.relative_to(home / "whole") for path in (home / "whole/model").rglob("*") if path.is_file()]
    assert len(files) >= 3
    for name in [*files, Path("curve.csv"), Path("grid.png")]:
        assert (home / "killed" / name).read_bytes() == (home / "whole" / name).read_bytes(), name


def generate(family: str, home: Path, data: Path, document: dict) -> dict[str, bytes]:
    """The sounds [T, C] in 16 bits, as bytes, by name; their tags name the checkpoint."""
    params.write_yaml(document, home / "params.yaml")
    arguments = [
        "--family", family, "--model", f"{home}/model", "--clips", f"{data}/clips", "--catalog", f"{data}/catalog.parquet",
        "--generated", f"{home}/generated", "--codec", f"{home}/codec",
        "--metrics", f"{home}/generate.json", "--params", f"{home}/params.yaml",
    ]  # fmt: skip
    stages.generate.main(arguments)
    return sounds(home / "generated")


def sounds(directory: Path) -> dict[str, bytes]:
    """The samples of each WAV by name."""
    return {path.name: soundfile.read(path, dtype="int16")[0].tobytes() for path in sorted(directory.glob("*.wav"))}
