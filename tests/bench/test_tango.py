"""Measurements of a text-to-sound checkpoint, with random weights on a few real clips: all results are written."""

import json
import sys
from pathlib import Path

from bench import measure, samplers
from bench.samplers import Run
from tests.models.untrained_tango import write_prepared, write_untrained


def bench(monkeypatch, module, results: Path, *arguments: object) -> dict:
    name = module.__name__.rpartition(".")[2]
    monkeypatch.setattr(sys, "argv", [name, "--results", str(results), *map(str, arguments)])
    module.main()
    return json.loads((results / f"{name}.json").read_text())


def test_samplers(tmp_path, monkeypatch, shared):
    """Of a net with random weights scores mean nothing, but each has its interval, and seconds grow with the steps."""
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(shared / "models"))
    monkeypatch.setattr(samplers, "EMBEDDERS", ("yamnet",))  # the tagger is trained by a stage
    monkeypatch.setattr(measure, "WORKERS", 1)
    untrained, prepared = write_untrained(tmp_path / "checkpoint"), write_prepared(tmp_path / "data", shared)
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
