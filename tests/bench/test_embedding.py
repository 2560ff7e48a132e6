"""The measurement of embedders, shrunken to one net."""

import json
import sys

import numpy as np
import pytest
import soundfile

from bench import embedding, references


@pytest.mark.slow(minutes=1)
def test_embedding(tmp_path, monkeypatch):
    (tmp_path / "audio").mkdir()
    for index in range(2):
        noise = 0.1 * np.random.default_rng(index).standard_normal(22_050)
        soundfile.write(tmp_path / "audio" / f"{index}.ogg", noise, 22_050)
    monkeypatch.setattr(references, "PACKAGES", {"vggish": "torchvggish"})
    arguments = ["--audio", str(tmp_path / "audio"), "--results", str(tmp_path), "--repetitions", "1", "--yamnet_clips", "4"]
    monkeypatch.setattr(sys, "argv", ["bench.embedding", *arguments])
    embedding.main()
    document = json.loads((tmp_path / "embedding.json").read_text())
    assert document["items"] == 2  # though more were asked for: the same sound is embedded once
    assert set(document["seconds"]) == {"soundmill, vggish", "torchvggish, vggish"}
    assert all(values[0] > 0 for values in document["seconds"].values())
    assert set(document["working_cpu_seconds"]) >= set(document["seconds"])
    for name, values in document["working_cpu_seconds"].items():
        assert 0 < values[0] < document["cpu_seconds"].get(name, [1e9])[0]
    assert document["targets"][0]["limit"] == 3
    memory = next(target for target in document["targets"] if "memory" in target["name"])
    assert 0.5 < memory["value"] < 1.25  # of the same two clips
    if "yamnet" in document:
        assert document["targets"][-1]["value"] == 4 / document["yamnet"]["seconds"][0]
