"""Clips of noise in small, what the stages make of them, and the stages `train` and `generate` of a family over them."""

import json
from collections.abc import Sequence
from functools import reduce
from pathlib import Path

import numpy as np
import soundfile
import torch
from ruamel.yaml import YAML

import stages.generate
import stages.train
from soundmill import manifest, params, shards, stage
from soundmill.audio import flac
from soundmill.audio.log_mels import SPEC_KEY
from soundmill.audio.mel import MelSpec, SpectrogramParams, log_mel
from soundmill.models import registry
from soundmill.training import tagger as taggers
from soundmill.training.tagger import Targets
from stages import encode_text, latents
from tests import prepared
from tests.imports import ROOT

RATE = 16_000
LABELS = ("bell", "rain")
SPLITS = ("train", "train", "train", "train", "train", "valid", "test", "test")  # of each clip; the fifth is short
ONE = "{accelerator: cpu, devices: 1, precision: '32', threads: 1}"  # hardware


def write(home: Path, rate: int = RATE, channels: int = 1, seconds: float = 0.1, short: float = 0.05, level: float = 0.1) -> None:
    """Clips of noise, and their catalogs."""
    rng = np.random.default_rng(0)
    lengths = [round(rate * (short if number == 4 else seconds)) for number in range(len(SPLITS))]
    write_waves(home, rate, [level * rng.standard_normal((channels, length)).astype(np.float32) for length in lengths])


def write_waves(home: Path, rate: int, waves: list[np.ndarray]) -> None:
    """Clips, and their catalog; others without labels, with two clips held out, and with a new label."""
    rows = []
    for number, (wave, split) in enumerate(zip(waves, SPLITS, strict=True)):
        label = LABELS[number % 2]
        told = {"labels": [label], "captions": [f"a {label} rings"], "split": split, "seconds": wave.shape[1] / rate}
        whose = {"recording_id": f"r{number}", "source": "r.wav", "digest": str(number)}
        rows.append(prepared.sound(f"clip-{number}", wave, rate, **whose, **told))
    prepared.write_rows(rows, home / "clips" / shards.shard_name(0), manifest.CLIPS)
    write_catalogs(rows, home)


def composed(overrides: Sequence[str], section: str, changes: Sequence[str]) -> dict:
    """The real configuration with these overrides, and changes; those below `section` begin with a dot, and are quick."""
    document = registry.compose(ROOT / "conf", [*overrides, *(one for one in changes if not one.startswith("."))])
    for one in changes:
        if one.startswith("."):
            path, _, value = f"{section}{one}".partition("=")
            *parents, key = path.split(".")
            place = reduce(lambda found, parent: found[parent], parents, document)
            place[key] = YAML(typ="safe").load(value)
    return document


def write_catalogs(rows: list[dict], home: Path) -> None:
    plain = [{**row, "labels": [], "captions": []} for row in rows]
    held_out = [{**row, "split": "valid" if number == 3 else row["split"]} for number, row in enumerate(rows)]
    more = [{**row, "labels": ["kick", *row["labels"]] if number == 0 else row["labels"]} for number, row in enumerate(rows)]
    for name, of_name in (("catalog", rows), ("unlabelled", plain), ("two_held_out", held_out), ("more", more)):
        prepared.write_rows(of_name, home / f"{name}.parquet", manifest.CATALOG)


def clips_of(home: Path) -> list[dict]:
    return list(shards.read_rows(home / "clips" / shards.shard_name(0), manifest.CLIPS))


def write_mels(home: Path, spec: MelSpec, directory: str = "mels") -> None:
    """Log-mels of the mono clips in `home`."""
    rows = []
    for row in clips_of(home):
        values = log_mel(flac.decode_mono(row["audio"]["bytes"]), spec).astype("<f2")
        size = {"num_mels": spec.n_mels, "num_frames": values.shape[1], "digest": row["digest"]}
        rows.append({"clip_id": row["clip_id"], "log_mel": values.tobytes(), **size})
    write_spec(home, spec, directory, rows)


def write_spec(home: Path, spec: MelSpec, directory: str = "mels", rows: list[dict] | None = None) -> None:
    schema = manifest.SPECTROGRAMS.with_metadata({SPEC_KEY: spec.model_dump_json().encode()})
    shards.write_rows(rows or [], home / directory / shards.shard_name(0), schema)


def spec_of(document: dict, name: str) -> MelSpec:
    return SpectrogramParams(**document["spectrogram"][name]).spec


def make_latents(family: str, home: Path, document: dict) -> dict:
    """Of the clips in `home`, by the codec in its `inputs`; returns the metrics."""
    params.write_yaml(document, home / "params.yaml")
    arguments = ["--family", family, "--audio", f"{home}/clips", "--catalog", f"{home}/catalog.parquet"]
    arguments += ["--autoencoder", f"{home}/inputs/autoencoder", "--latents", f"{home}/inputs/latents/clips"]
    arguments += ["--metrics", f"{home}/latents.json", "--params", f"{home}/params.yaml"]
    stage.main(latents.run, "latents", arguments, code_by_name=latents.code_by_name)
    return json.loads((home / "latents.json").read_text())


def make_texts(family: str, home: Path, document: dict, states: str = "inputs/text") -> None:
    """States of the captions in `home`."""
    params.write_yaml(document, home / "params.yaml")
    shards.write_rows([], home / "mixes" / shards.shard_name(0), manifest.MIXES)
    arguments = ["--variant", family, "--catalog", f"{home}/catalog.parquet", "--mixes", f"{home}/mixes"]
    arguments += ["--name", f"encode_text/{family}", "--metrics", f"{home}/text.json", "--params", f"{home}/params.yaml"]
    stage.main(encode_text.run, "text", [*arguments, "--states", f"{home / states}"])


def write_tagger(directory: Path) -> None:
    document = params.compose(ROOT / "conf", [])
    spec = spec_of(document, "tagger")
    settings = params.parse(taggers.TaggerParams, {**document["tagger"], "width": 4, "embedding_size": 8}, "tagger")
    torch.manual_seed(0)
    net = taggers.Tagger(spec, len(LABELS), settings.width, settings.embedding_size, settings.patch_seconds, settings.dropout)
    taggers.save_tagger(net, settings, spec, Targets("labels", list(LABELS), {}), directory)


def train(family: str, home: Path, data: Path, document: dict, catalog: str = "catalog.parquet") -> dict:
    """Train in `home`, on what `data` holds; returns the metrics."""
    home.mkdir(exist_ok=True)
    params.write_yaml(document, home / "params.yaml")
    stages.train.main(train_arguments(family, home, data, catalog))
    return json.loads((home / "train.json").read_text())


def train_arguments(family: str, home: Path, data: Path, catalog: str = "catalog.parquet") -> list[str]:
    """Its inputs are the clips where `data` has no others, and its parts lie among them, or beside them."""
    (data / "tagger").mkdir(exist_ok=True)  # a stage takes no path that is not there
    inputs = data / "inputs" if (data / "inputs").exists() else data / "clips"
    parts = data / "parts" if (data / "parts").exists() else inputs
    return [
        "--family", family, "--inputs", f"{inputs}", "--parts", f"{parts}", "--tagger", f"{data}/tagger",
        "--clips", f"{data}/clips", "--catalog", f"{data / catalog}",
        "--model", f"{home}/model", "--curves", f"{home}/curve.csv", "--grid", f"{home}/grid.png",
        "--metrics", f"{home}/train.json", "--params", f"{home}/params.yaml",
    ]  # fmt: skip


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


def config_of(directory: Path) -> dict:
    return json.loads((directory / "config.json").read_text())
