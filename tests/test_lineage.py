"""Lineage over the shrunk demo graph; what must be found is read from the tables by other means."""

import json
import shutil

import pandas as pd
import pytest

from soundmill import lineage, manifest, shards
from soundmill.errors import UserError
from soundmill.lineage import Node
from tests.commands.running import refused, works

TRAINED = {"data/models/ddpm_mel", "data/models/tango", "data/tango/autoencoder", "data/tango/vocoder", "data/tagger"}


def nodes(within: list[Node], kind: str) -> list[Node]:
    """All nodes of a kind, at any depth."""
    return [node for top in within for node in ([top] if top.kind == kind else []) + nodes(top.below, kind)]


def names(within: list[Node], kind: str) -> set[str]:
    return {node.name for node in nodes(within, kind)}


@pytest.fixture(scope="session")
def catalog(built_graph) -> pd.DataFrame:
    return pd.read_parquet(built_graph / "data/catalog/default.parquet").set_index("clip_id")


def test_a_recording_downstream(built_graph, catalog):
    mixes = pd.read_parquet(built_graph / "data/mixes").set_index("clip_id")
    first = mixes.iloc[0]["first"]
    recording_id, source = catalog.loc[first, ["recording_id", "source"]]
    clips = set(catalog.index[catalog.recording_id == recording_id])
    found = lineage.trace(built_graph, source)
    assert found.thing.name == recording_id
    variants = {path.name for path in (built_graph / "data/clips").iterdir()}
    assert {node.name for node in found.made_from_it if node.kind == "clips"} == variants
    assert names([node for node in found.made_from_it if node.name == "default"], "clip") == clips
    assert names(found.made_from_it, "mix") == set(mixes.index[mixes["first"].isin(clips) | mixes["second"].isin(clips)])
    training_data = clips | names(found.made_from_it, "mix")
    places = [
        path
        for pattern in ("clips/*", "mixes", "spectrograms/clips/*", "tango/latents/*", "catalog", "segments", "quality")
        for path in (built_graph / "data").glob(pattern)
    ]
    holding = [path for place in places for path in place.glob("*.parquet") if training_data & set(pd.read_parquet(path).clip_id)]
    assert names(found.made_from_it, "shard") == {str(path.relative_to(built_graph)) for path in holding}
    assert names(found.made_from_it, "checkpoint") == TRAINED
    (whole,) = [node for node in found.made_from_it if node.name == "data/models/tango" and "part" not in node.facts]
    assert (whole.facts["clips_of_it"], whole.facts["mixes_of_it"]) == (len(clips), len(names(found.made_from_it, "mix")))
    assert len(nodes([whole], "sound")) == len(list((built_graph / "data/generated/tango").glob("*.wav")))
    (scores,) = nodes([whole], "scores")
    assert scores.facts["kl_tagger"] == json.loads((built_graph / "data/metrics/evaluate/tango.json").read_text())["kl_tagger"]


def test_a_clip_of_the_test_split_was_trained_on_by_nothing(built_graph, catalog):
    clip_id = catalog.index[catalog.split == "test"][0]
    found = lineage.trace(built_graph, f"clip:{clip_id}")
    assert names(found.comes_from, "recording") == {catalog.recording_id[clip_id]}
    assert names(found.made_from_it, "checkpoint") == set()
    assert names(found.made_from_it, "mix") == set()
    assert clip_id in names(found.made_from_it, "clip")
    assert any(clip_id in name for name in names(found.made_from_it, "sound"))
    assert found.thing.facts["start"] == catalog.start[clip_id]


def test_a_copied_checkpoint_tells_its_recordings_where_data_is_gone(built_graph, catalog, tmp_path):
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(built_graph / name, tmp_path / name)
    shutil.copytree(built_graph / "data/models/tango", tmp_path / "kept")
    trained = catalog[catalog.split == "train"]
    found = lineage.trace(tmp_path, str(tmp_path / "kept"))
    for part in ("this checkpoint", "autoencoder", "vocoder"):
        expected = "training data of", part
        (training_data,) = [node for node in found.comes_from if (node.kind, node.name) == expected]
        assert {node.name for node in training_data.below} == set(trained.recording_id)
        assert {clip for node in training_data.below for clip in node.facts["clips"]} == set(trained.index)
        assert all(node.facts["gone"] for node in training_data.below)
    assert any("data/corpus is missing" in sentence for sentence in found.gone)
    assert any("MLflow" in sentence for sentence in found.gone)
    (tmp_path / "data/models").mkdir(parents=True)
    (tmp_path / "kept").rename(tmp_path / "data/models/tango")
    back = lineage.trace(tmp_path, f"recording:{trained.recording_id.iloc[0]}")
    assert back.thing.facts["gone"]
    assert "data/models/tango" in names(back.made_from_it, "checkpoint")


def test_a_generated_sound_leads_to_its_checkpoint_and_recordings(built_graph, catalog, tmp_path):
    works("generate", "--family", "ddpm_mel", "--output", str(tmp_path / "made"), cwd=built_graph)
    sound = min((tmp_path / "made").glob("*.wav"))
    done = works("lineage", str(sound), "--json", str(tmp_path / "it.json"), cwd=built_graph)
    assert "data/models/ddpm_mel" in done.stdout
    document = json.loads((tmp_path / "it.json").read_text())
    assert document["thing"]["family"] == "ddpm_mel"
    (checkpoint,) = document["comes_from"]
    (training_data,) = [node for node in checkpoint["below"] if node["kind"] == "training data of"]
    assert {node["name"] for node in training_data["below"]} == set(catalog.recording_id[catalog.split == "train"])
    (training,) = [node for node in checkpoint["below"] if node["kind"] == "training"]
    assert training["parameters"]["steps"] == 24

    of_graph = next((built_graph / "data/generated/ddpm_mel").glob("*.wav"))
    found = lineage.trace(built_graph, str(of_graph))
    assert names(found.comes_from, "clip") == {of_graph.stem}
    assert "data/models/ddpm_mel" in names(found.comes_from, "checkpoint")
    kept = shutil.copytree(of_graph.parent, tmp_path / "bakeoff/runs/ddpm_mel-0/generated")  # as a bake-off keeps them
    assert lineage.trace(built_graph, str(kept / of_graph.name)).comes_from == found.comes_from

    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(built_graph / name, tmp_path / name)
    lost = lineage.trace(tmp_path, str(sound))
    assert lost.comes_from == []
    assert any("neither below data/ nor a registered model" in sentence for sentence in lost.gone)


@pytest.mark.parametrize("listed", [True, False])
def test_what_a_checkpoint_was_trained_on_earlier_is_listed_or_reported_missing(tmp_path, listed):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/config.json").write_text('{"family": "tiny", "started_from": "a digest"}')
    row = {"clip_id": "dog_5", "recording_id": "dog", "source": "dog.wav", "start": 5.0, "seconds": 5.0, "digest": "d"}
    rows = [row | {"earlier": earlier} for earlier in (False, True)[: 1 + listed]]
    shards.write_rows(rows, tmp_path / "kept" / manifest.TRAINED_ON_FILE, manifest.TRAINED_ON)
    found = lineage.trace(tmp_path, str(tmp_path / "kept"))
    assert [node.name for node in found.comes_from if node.kind == "training data of"] == [
        "this checkpoint",
        "this checkpoint, in an earlier training",
    ][: len(rows)]
    unknown = [sentence for sentence in found.gone if "what the checkpoint that it started from was trained on" in sentence]
    assert bool(unknown) != listed


def test_what_is_not_there_is_named(built_graph, catalog, tmp_path):
    clip_id = catalog.index[0]
    assert f"did you mean {clip_id!r}" in refused("lineage", f"clip:{clip_id}x", cwd=built_graph)
    with pytest.raises(UserError, match="not a checkpoint"):
        lineage.trace(built_graph, str(tmp_path))
