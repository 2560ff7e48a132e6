"""The protocol of another tool from end to end, with random weights in the published files' format."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from soundmill.evaluation import evaluator, folder_report, protocols
from tests import recorded
from tests.recorded import sound

RATE = 44_100


def waves_of(kind: str) -> dict[str, np.ndarray]:
    """Four stereo sounds, one of them short and one quiet."""
    lengths = {"a": (1.2, 1.0), "b": (0.4, 1.0), "c": (1.0, 0.03), "d": (1.4, 0.7)}
    return {name: np.outer(sound(kind, seconds, RATE), [level, level / 2]) for name, (seconds, level) in lengths.items()}


def write(directory: Path, kind: str) -> Path:
    directory.mkdir()
    for name, wave in waves_of(kind).items():
        soundfile.write(directory / f"{name}.wav", wave, RATE, subtype="FLOAT")
    return directory


@pytest.mark.slow(minutes=0.4)
def test_stable_audio_metrics(tmp_path, monkeypatch, in_this_process, capsys):
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(tmp_path))
    for name in ("openl3_env", "passt"):
        recorded.publish(name, tmp_path, monkeypatch)
    chosen = protocols.load("stable-audio-metrics")
    without_texts = {
        "embedders": {name: options for name, options in chosen.embedders.items() if name != "clap_music_speech"},
        "scores": [score for score in chosen.scores if score.embedder != "clap_music_speech"],
        "replicates": 20,
    }
    setup = evaluator.Setup(chosen.model_copy(update=without_texts), tmp_path / "cache", 1)
    result = evaluator.evaluate(setup, write(tmp_path / "generated", "noise"), write(tmp_path / "real", "hum"))
    expected = dict(zip("abcd", recorded.said("stable_audio_metrics")["reverse_kl"], strict=True))
    assert result.of["reverse_kl_passt"] == pytest.approx(expected, rel=1e-3)
    assert result.metrics["fd_openl3_env"] is None
    assert "at least 50 reference sounds" in result.metrics["left_out"]["fd_openl3_env"]
    assert result.metrics["embedders"]["openl3_env"] | {"weights": ""} == {
        "weights": "",
        "hop": 0.5,
        "channels": 2,
        "embeddings": {"generated": 3 + 1 + 2 + 3, "reference": 9},
    }
    assert (result.metrics["protocol"], result.metrics["level"]) == ("stable-audio-metrics-1", "peak")
    folder_report.show(result.metrics)
    printed = capsys.readouterr().out
    assert "= fd_openl3_env: FD-OpenL3 of stable-audio-metrics" in printed
    assert "= reverse_kl_passt: KL-PaSST of stable-audio-metrics, not that of av-benchmark" in printed
