"""Text states of a corpus: every caption once, the same bytes however they were made, anew when encoder or caption change."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from soundmill import manifest, shards, stage, text
from soundmill.params import write_yaml
from soundmill.shards.run import run_job
from stages import encode_text
from tests.prepared import execution, sound, write_rows
from tests.shards.work import contents

SIZES = {"width": 16, "layers": 1, "heads": 2}
CAPTIONS = [["a dog barks", "a hound is heard"], ["rain falls"], [], ["a dog barks"]]
MIX = "a dog barks and rain falls"


@pytest.fixture
def project(tmp_path, root, monkeypatch) -> Path:
    monkeypatch.chdir(root)
    rows = [sound(f"clip{n}", np.zeros(9), shard=n % 3, captions=texts) for n, texts in enumerate(CAPTIONS)]
    write_rows(rows, tmp_path / "data/catalog.parquet", manifest.CATALOG)
    mix = {"clip_id": "mix_0", "caption": MIX, "labels": []}
    shards.write_rows([mix], tmp_path / "data/mixes" / shards.shard_name(0), manifest.MIXES)
    return tmp_path


def arguments(project: Path, workers: int = 1, **changes) -> list[str]:
    """Write the parameters; the stage's command line."""
    params = {"clips": "default", "encoder": "byt5-scratch", "revision": None, "max_tokens": 24, "scratch": {**SIZES, "seed": 0}}
    write_yaml({"execution": execution(workers), "text": {"mine": params | changes}}, project / "params.yaml")
    paths = {"catalog": "catalog.parquet", "mixes": "mixes", "states": "text/mine", "metrics": "text.json"}
    argv = [word for port, path in paths.items() for word in (f"--{port}", str(project / "data" / path))]
    return [*argv, "--variant", "mine", "--name", "encode_text/mine", "--params", str(project / "params.yaml")]


def make(project: Path, **changes) -> dict:
    stage.main(encode_text.run, "text", arguments(project, **changes))
    return json.loads((project / "data/text.json").read_text())


def states_of(directory: Path) -> dict[str, np.ndarray]:
    rows = [row for path in shards.shard_paths(directory) for row in shards.read_rows(path, manifest.TEXT_STATES)]
    assert len({row["caption"] for row in rows}) == len(rows)
    return {row["caption"]: np.frombuffer(row["states"], "<f2").reshape(row["num_tokens"], row["width"]) for row in rows}


@pytest.mark.slow
def test_every_distinct_caption_once_and_the_null_text(project, capfd):
    metrics = make(project)
    states = states_of(project / "data/text/mine")
    assert set(states) == {"", "a dog barks", "a hound is heard", "rain falls", MIX}
    assert {caption: len(values) for caption, values in states.items()} == {
        "": 1, "a dog barks": 12, "a hound is heard": 17, "rain falls": 11, MIX: 24,
    }  # fmt: skip
    assert "random weights" in capfd.readouterr().out
    assert metrics["encoder"]["name"] == "byt5-scratch"
    assert metrics["encoder"]["pretrained"] is False
    assert (metrics["captions"], metrics["tokens"], metrics["truncated"]) == (5, 65, 1)
    for path in shards.shard_paths(project / "data/text/mine"):
        about = json.loads(pq.read_schema(path).metadata[text.ENCODER_KEY])
        assert about == {**metrics["encoder"], "max_tokens": 24, "scratch": {**SIZES, "seed": 0}}
        for row in shards.read_rows(path, manifest.TEXT_STATES):
            assert path.name == shards.shard_name(shards.shard_of(row["caption"], 3))

    first = contents(project / "data/text/mine")
    shutil.rmtree(project / "data/.work")  # what was kept
    command = [sys.executable, "-m", "stages.encode_text", *arguments(project, workers=2)]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert contents(project / "data/text/mine") == first, "bytes hang on workers, threads or the process"


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """The captions that were really encoded."""
    captions, say = [], text.TextEncoder.__call__
    monkeypatch.setattr(text.TextEncoder, "__call__", lambda self, caption: captions.append(caption) or say(self, caption))
    return captions


def encode(captions: list[str], encoder: text.Encoder, scratch: Path, kept: Path) -> dict[str, bytes]:
    """One shard, as a stage makes it where it needs to."""
    kept.mkdir(exist_ok=True)
    job = shards.Job(shards.shard_name(0), (captions, encoder, {"max_tokens": 24}), key="another")
    run_job(encode_text.encode_shard, job, kept)
    shutil.copytree(kept, scratch)
    return contents(scratch)


def test_only_new_captions_are_computed_and_bytes_are_those_from_scratch(scratch, tmp_path, asked):
    encode(["", "a dog", "rain"], scratch, tmp_path / "before", tmp_path / "kept")
    asked.clear()
    reused = encode(["", "a cat", "a dog", "wind"], scratch, tmp_path / "after", tmp_path / "kept")
    assert asked == ["a cat", "wind"]
    assert reused == encode(["", "a cat", "a dog", "wind"], scratch, tmp_path / "scratch", tmp_path / "none")


def test_another_encoder_in_the_same_directory_is_noticed(tmp_path, asked):
    """Parameters are the same, and there is a kept shard: it must not be used."""
    first = text.make_scratch(tmp_path / "encoder", **SIZES, seed=0)
    before = encode(["", "a dog"], first, tmp_path / "before", tmp_path / "kept")
    second = text.make_scratch(tmp_path / "encoder", **SIZES, seed=1)
    assert encode(["", "a dog"], second, tmp_path / "after", tmp_path / "kept") != before
    assert asked == ["", "a dog", "", "a dog"]
    said = [states_of(tmp_path / name)["a dog"] for name in ("before", "after")]
    assert not np.array_equal(*said)


def test_a_missing_model_fails_with_the_remedies(project):
    with pytest.raises(SystemExit, match=r"\.\./nowhere: no such directory .* into a directory .* byt5-scratch"):
        make(project, encoder="../nowhere")
