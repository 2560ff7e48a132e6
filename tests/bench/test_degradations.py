"""Scores follow damage: on real sounds, by the real YAMNet."""

from __future__ import annotations

import pytest

from bench import degradations
from soundmill.evaluation import features


@pytest.mark.slow
def test_scores_grow_with_noise_low_pass_and_clipping(shared, monkeypatch):
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(shared / "models"))
    # A fifth of the recordings: too few to tell the least damage from none.
    found = degradations.score(shared / "data" / "esc10", features.EmbedderConfig("yamnet"), every=5)
    whole = found["unchanged"]
    for kind in ("noise", "low-pass", "clipping"):
        steps = [found[f"{kind} {step}"] for step in degradations.DAMAGES[kind]]
        for key in ("fad_yamnet", "mmd_yamnet", "kl_yamnet"):
            values = [step[key] for step in steps]
            assert values == sorted(values), (kind, key)
            assert values[-1] > whole[key], (kind, key)
    for name in ("silence", "white noise"):
        assert found[name]["fad_yamnet"] > 3 * whole["fad_yamnet"]
    assert abs(whole["kl_yamnet"]) < 0.01  # of the sounds to themselves
    assert degradations.rows(found).splitlines()[2].startswith("| unchanged | ")
