import json
import shlex

import numpy as np
import pytest
import soundfile

from soundmill.audio import flac
from soundmill.commands import scores
from soundmill.errors import UserError
from tests.commands.running import soundmill

PROTOCOL = """name: small
version: 1
label: small-1
description: d
sample_rate: null
resampler: soxr HQ
embedders: {yamnet: {}}
scores: [{metric: mmd, embedder: yamnet}, {metric: kl, embedder: yamnet}]
replicates: 20
seed: 0
parity: [none]
"""


def test_folders_are_scored_and_compared(tmp_path, root, shared, monkeypatch):
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(shared / "models"))
    random = np.random.default_rng(0)
    for folder, level in (("good", 0.05), ("bad", 0.5), ("real", 0.04)):
        for index in range(4):
            tone = 0.3 * np.sin(np.arange(24_000) * (0.05 + 0.02 * index))
            wave = np.clip(tone + level * random.standard_normal(24_000), -1, 1)
            flac.write_wav(tmp_path / folder / "tones" / f"{index}.wav", wave.astype(np.float32), 16_000)
    good, bad, real = (str(tmp_path / folder) for folder in ("good", "bad", "real"))
    (tmp_path / "small.yaml").write_text(PROTOCOL)
    options = ["--protocol", str(tmp_path / "small.yaml"), "--cache", str(tmp_path / "cache"), "--workers", "1"]
    out = ["--json", str(tmp_path / "out.json"), "--report", str(tmp_path / "page"), "--training", bad]
    done = soundmill("evaluate", good, real, *options, *out, "--card", str(tmp_path / "card"), "--candidates", "3", cwd=root)
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "card" / "card.md").read_text(encoding="utf-8")
    again = shlex.join(["soundmill", "evaluate", good, real, "--protocol", str(tmp_path / "small.yaml"), "--training", bad])
    assert f"```sh\n{again} --candidates 3\n```" in card
    assert "| candidates per prompt | 3 |" in card
    assert "mmd_yamnet" in done.stdout
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["protocol"] == "small-1"
    assert isinstance(found["kl_yamnet"], float)
    assert found["counts"]["training"] == 4
    page = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    for text in ("good against real", "Worst", "Nearest of 4 training clips", f"{found['mmd_yamnet']:.3g}"):
        assert text in page
    assert json.loads((tmp_path / "page" / "scores.json").read_text())["mmd_yamnet"] == found["mmd_yamnet"]

    # A page that cannot be written loses no score, and a sound that is none is named.
    (tmp_path / "none" / "index.html").mkdir(parents=True)
    lost = soundmill("evaluate", good, real, *options, *out, "--report", str(tmp_path / "none"), cwd=root)
    assert lost.returncode == 1
    assert f"{tmp_path / 'none'}: the page could not be written (IsADirectoryError" in lost.stderr
    assert json.loads((tmp_path / "none" / "scores.json").read_text())["mmd_yamnet"] == found["mmd_yamnet"]
    soundfile.write(tmp_path / "good" / "nan.wav", np.full(20_000, np.nan), 16_000, subtype="FLOAT")
    refused = soundmill("evaluate", good, real, *options, "--unpaired", cwd=root)
    assert f"{good}/nan.wav: cannot be scored: nan non-finite samples" in refused.stderr
    (tmp_path / "good" / "nan.wav").unlink()

    paired = soundmill("evaluate", good, real, *options, "--paired", "--json", str(tmp_path / "paired.json"), cwd=root)
    assert paired.returncode == 0, paired.stderr
    assert 0 < json.loads((tmp_path / "paired.json").read_text())["lsd"] < 40
    assert "lsd" in paired.stdout
    both = soundmill("evaluate", good, real, "--paired", "--unpaired", cwd=root)
    assert "--paired and --unpaired" in both.stderr
    done = soundmill("compare", good, bad, real, *options, "--json", str(tmp_path / "compared.json"), cwd=root)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "compared.json").read_text())["comparison"]["mmd_yamnet"]["difference"] < 0
    wrong = soundmill("evaluate", good, real, "--protocol", "audioldm_eval", cwd=root)
    assert wrong.returncode == 1
    assert "did you mean 'audioldm_eval-16k'" in wrong.stderr
    both = soundmill("evaluate", good, real, "--protocol", "project", "--embedder", "yamnet", cwd=root)
    assert "give one of them" in both.stderr


def test_the_metrics_of_the_ladder():
    assert scores._metrics(["fad", "mmd"]) == ["fad", "mmd"]
    assert scores._metrics(["none"]) == []
    with pytest.raises(UserError, match="--ladder: unknown metric 'fadd'; did you mean 'fad'"):
        scores._metrics(["fadd"])
