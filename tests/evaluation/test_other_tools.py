"""The protocol of another tool from end to end, with random weights in the published files' format."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from bench import references
from soundmill.audio.resample import resample
from soundmill.evaluation import embedders, evaluator, folder_report, protocols
from soundmill.evaluation.embedders import openl3, passt
from soundmill.metrics.divergence import reverse

RATE = 44_100


def sounds(directory, seed: int):
    """Four stereo sounds, one of them short and one quiet."""
    directory.mkdir()
    random = np.random.default_rng(seed)
    waves = {}
    for name, seconds, level in (("a", 2.0, 0.3), ("b", 0.4, 0.3), ("c", 1.0, 0.01), ("d", 1.6, 0.2)):
        waves[name] = (level * random.uniform(-1, 1, (round(seconds * RATE), 2))).astype(np.float32)
        soundfile.write(directory / f"{name}.wav", waves[name], RATE, subtype="FLOAT")
    return waves


@pytest.mark.slow(minutes=1)
def test_stable_audio_metrics(tmp_path, monkeypatch, in_this_process, capsys):
    weights = tmp_path / "weights"
    weights.mkdir()
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(weights))
    net = references.passt()
    for module, name, state in ((openl3, "openl3_env", references.openl3().state_dict()), (passt, "passt", net.net.state_dict())):
        published = embedders.published()[name]
        path = weights / published.file
        torch.save(state, path)
        made = replace(published, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), git_blob=None, num_bytes=None)
        monkeypatch.setitem(module.EMBEDDERS, name, replace(embedders.find(name), weights=made))
    chosen = protocols.load("stable-audio-metrics")
    without_texts = {
        "embedders": {name: options for name, options in chosen.embedders.items() if name != "clap_music_speech"},
        "scores": [score for score in chosen.scores if score.embedder != "clap_music_speech"],
        "replicates": 20,
    }
    generated, real = sounds(tmp_path / "generated", 0), sounds(tmp_path / "real", 1)
    setup = evaluator.Setup(chosen.model_copy(update=without_texts), tmp_path / "cache", 1)
    result = evaluator.evaluate(setup, tmp_path / "generated", tmp_path / "real")

    def logits(wave: np.ndarray) -> np.ndarray:
        """By hear21passt, of its input in stable-audio-metrics: all of these have one window."""
        mono = wave.mean(axis=1)
        heard = resample(mono * np.float32(10 ** (-1 / 20) / np.abs(mono).max()), RATE, passt.SAMPLE_RATE)
        (window,) = passt.overlapping(heard)
        with torch.no_grad():
            return net(torch.from_numpy(window)[None])[0, :527].numpy()

    expected = {name: reverse(logits(real[name]), logits(generated[name])) for name in real}
    assert result.of["reverse_kl_passt"] == pytest.approx(expected, rel=1e-3)
    assert result.metrics["fd_openl3_env"] is None
    assert "at least 50 reference sounds" in result.metrics["left_out"]["fd_openl3_env"]
    assert result.metrics["embedders"]["openl3_env"] | {"weights": ""} == {
        "weights": "",
        "hop": 0.5,
        "channels": 2,
        "embeddings": {"generated": 4 + 1 + 2 + 4, "reference": 11},
    }
    assert (result.metrics["protocol"], result.metrics["level"]) == ("stable-audio-metrics-1", "peak")
    folder_report.show(result.metrics)
    printed = capsys.readouterr().out
    assert "= fd_openl3_env: FD-OpenL3 of stable-audio-metrics" in printed
    assert "= reverse_kl_passt: KL-PaSST of stable-audio-metrics, not that of av-benchmark" in printed
