from __future__ import annotations

import base64
import io
import json
import re
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


# name → rate and amplitude of a generated sound; nine are all on a page, as best, middling and worst
EXTREMES = {
    "a": (100, 1e-38), "b": (3_000, 0.9), "c": (8_000, 10.0), "d": (44_100, 1e30), "e": (192_000, 1e-38), "f": (384_000, 0.5),
    "g": (768_000, 10.0), "h": (100, 1e30), "i": (768_000, 1e-38),
}  # fmt: skip


def test_sounds_of_any_rate_and_level_are_scored_seen_and_heard(tmp_path, root, shared, monkeypatch):
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(shared / "models"))
    random = np.random.default_rng(0)
    for name, (rate, level) in EXTREMES.items():
        for folder, factor in (("made", level), ("real", 0.5)):
            path = tmp_path / "[" / "b]" / folder / f"{name}.wav"  # text like markup, in a warning
            path.parent.mkdir(parents=True, exist_ok=True)
            wave = factor * random.uniform(-1, 1, int(1.1 * rate))
            soundfile.write(path, wave.astype(np.float32), rate, subtype="FLOAT")
    output, real = (tmp_path / "[" / "b]" / folder for folder in ("made", "real"))
    (real / "about.json").write_text("{}")
    folders = [str(output), str(real)]
    (tmp_path / "small.yaml").write_text(PROTOCOL)
    options = ["--protocol", str(tmp_path / "small.yaml"), "--cache", str(tmp_path / "cache"), "--workers", "1"]
    options += ["--report", str(tmp_path / "page"), "--card", str(tmp_path / "card"), "--candidates", "3"]
    done = soundmill("evaluate", *folders, *options, cwd=root)
    assert done.returncode == 0, done.stderr
    again = shlex.join(["soundmill", "evaluate", *folders, "--protocol", str(tmp_path / "small.yaml"), "--candidates", "3"])
    card = (tmp_path / "card" / "card.md").read_text(encoding="utf-8")
    assert f"```sh\n{again}\n```" in card
    assert "| candidates per prompt | 3 |" in card
    assert done.stderr == ""
    assert f"· {real}: " in done.stdout
    assert sorted(path.name for path in (tmp_path / "page").iterdir()) == [
        "index.html", "scores.csv", "scores.json", "scores.md", "scores.png", "scores.tex", "sounds.csv",
    ]  # fmt: skip
    page = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert set(re.findall(r"<code>([^<]*)</code>", page)) == set(EXTREMES)
    assert len(re.findall(r'<img [^>]*src="data:image/png;base64,', page)) == 2 * len(EXTREMES)
    players = re.findall(r'<audio [^>]*src="data:audio/flac;base64,([^"]+)"', page)
    assert len(players) == 2 * len(EXTREMES)
    for player in players:
        info = soundfile.info(io.BytesIO(base64.b64decode(player)))
        assert 8_000 <= info.samplerate <= 96_000
        assert info.duration == pytest.approx(1.1, abs=0.001)
    assert page.count("of full scale: below 16 bits, silent in the player") == 3
    assert page.count("of full scale: clipped in the player") == 4
    assert page.count("played at 96000 Hz instead of 768000") == 4
    scores = json.loads((tmp_path / "page" / "scores.json").read_text())
    assert (scores["silent_share"], scores["clipped_share"]) == (pytest.approx(3 / 9, rel=1e-5), pytest.approx(4 / 9, rel=1e-5))
    assert any(text.endswith("of the generated sounds are clipped, which no score shows.") for text in scores["warnings"])

    # A page that cannot be written loses no score, and neither does a sound that is none.
    (tmp_path / "none" / "index.html").mkdir(parents=True)
    written = ["--report", str(tmp_path / "none"), "--json", str(tmp_path / "out.json")]
    done = soundmill("evaluate", *folders, *options, *written, cwd=root)
    assert done.returncode == 1
    assert f"{tmp_path / 'none'}: the page could not be written (IsADirectoryError" in done.stderr
    assert "Traceback" not in done.stderr
    assert "mmd_yamnet" in done.stdout
    assert json.loads((tmp_path / "out.json").read_text())["mmd_yamnet"] == scores["mmd_yamnet"]
    assert json.loads((tmp_path / "none" / "scores.json").read_text())["mmd_yamnet"] == scores["mmd_yamnet"]
    for name, value in (("nan", np.nan), ("inf", np.inf)):
        soundfile.write(output / f"{name}.wav", np.full(20_000, value), 16_000, subtype="FLOAT")
        soundfile.write(real / f"{name}.wav", np.zeros(20_000), 16_000)
    done = soundmill("evaluate", *folders, *options, cwd=root)
    assert done.returncode == 1
    for name in ("nan", "inf"):
        assert f"{output}/{name}.wav: cannot be scored: nan non-finite samples" in done.stderr


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
    done = soundmill("evaluate", good, real, *options, *out, cwd=root)
    assert done.returncode == 0, done.stderr
    assert "mmd_yamnet" in done.stdout
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["protocol"] == "small-1"
    assert isinstance(found["kl_yamnet"], float)
    assert found["counts"]["training"] == 4
    page = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    for text in ("good against real", "Worst", "Nearest of 4 training clips", f"{found['mmd_yamnet']:.3g}"):
        assert text in page
    assert json.loads((tmp_path / "page" / "scores.json").read_text())["mmd_yamnet"] == found["mmd_yamnet"]

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
