from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from soundmill import cli, clips, manifest, shards
from soundmill.audio import flac
from soundmill.errors import UserError
from soundmill.models import registry

PROTOCOL = """name: small
version: 1
label: small-1
description: d
sample_rate: null
resampler: soxr HQ
embedders: {yamnet: {}}
scores: [{metric: fad, embedder: yamnet}, {metric: kl, embedder: yamnet}]
replicates: 20
seed: 0
parity: [none]
"""


def soundmill(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "soundmill.cli", *arguments], cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.fixture
def project(tmp_path, root, monkeypatch):
    """A project with five clips, as the stages leave them."""
    monkeypatch.setenv("PYTHONPATH", str(root))
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "params.yaml").write_text("resample: {sample_rate: 16000}\n")
    ids = ["-abcdefghij_0", "dog_5", "rain_0", "rain_5", "siren_0"]
    waves = {name: np.sin(np.arange(800 * (n + 1)) / 9).astype(np.float32) * 0.5 for n, name in enumerate(ids)}
    audio, catalog = [], []
    for n, name in enumerate(ids):
        where = {"clip_id": name, "source": f"folder/{name}.ogg", "start": float(n), "recording_id": name.rpartition("_")[0]}
        data = flac.encode_flac(waves[name], 16000)
        audio.append(
            {**where, "audio": {"bytes": data, "path": f"{name}.flac"}, "digest": f"d{n}", "num_samples": len(waves[name])}
        )
        label = name.split("_")[0] if not name.startswith("-") else "cat"
        split = manifest.SPLITS[n % 3]
        catalog.append({**where, "shard": n % 2, "split": split, "captions": [f"a {label} is heard"], "labels": [label]})
    for shard in range(2):
        rows = [row for n, row in enumerate(audio) if n % 2 == shard]
        shards.write_rows(rows, tmp_path / "data/clips" / shards.shard_name(shard), manifest.CLIPS)
    shards.write_rows(catalog, tmp_path / "data/catalog.parquet", manifest.CATALOG)
    return tmp_path, waves


def test_help_teaches(root):
    done = soundmill("--help", cwd=root)
    assert done.returncode == 0
    for command in ("doctor", "families", "generate", "evaluate", "compare", "run", "reproduce", "clips", "params"):
        assert command in done.stdout


def test_list_filters_and_says_how_many(project):
    root, _ = project
    done = soundmill("clips", "list", "--label", "rain", cwd=root)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["rain_0", "rain_5"]
    assert "2 of 2 clips" in done.stderr
    assert soundmill("clips", "list", "--text", "SIREN", "--split", "valid", cwd=root).stdout.startswith("siren_0")
    wrong = soundmill("clips", "list", "--label", "rian", cwd=root)
    assert wrong.returncode == 1
    assert "did you mean 'rain'" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_show_traces_a_clip_to_its_recording(project):
    root, _ = project
    done = soundmill("clips", "show", "rain_5", cwd=root)
    assert "folder/rain_5.ogg" in done.stdout
    assert "3 s" in done.stdout
    assert "a rain is heard" in done.stdout
    assert "0.500" in done.stdout
    dashed = soundmill("clips", "show", "--", "-abcdefghij_0", cwd=root)
    assert dashed.returncode == 0
    assert "export -- -abcdefghij_0" in dashed.stdout
    assert "did you mean 'rain_5'" in soundmill("clips", "show", "rain_6", cwd=root).stderr


def test_export_writes_what_was_stored(project):
    root, waves = project
    done = soundmill("clips", "export", "dog_5", "siren_0", "--output", "out", cwd=root)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (root / "out").iterdir()) == ["dog_5.wav", "siren_0.wav"]
    wave, rate = soundfile.read(root / "out/dog_5.wav", dtype="float32")
    assert rate == 16000
    assert np.abs(wave - waves["dog_5"]).max() <= 2**-15
    assert len(list((root / "out").iterdir())) == 2
    inside = soundmill("clips", "export", "dog_5", "--output", "data/mine", cwd=root)
    assert (inside.returncode, (root / "data/mine").exists()) == (1, False)
    assert "which the pipeline reads or writes" in inside.stderr
    soundmill("clips", "export", "--split", "train", "--output", "train", cwd=root)
    assert len(list((root / "train").iterdir())) == 2


def test_outside_a_checkout_the_remedy_is_named(tmp_path):
    done = soundmill("clips", "list", cwd=tmp_path)
    assert done.returncode == 1
    assert "not inside a Soundmill checkout" in done.stderr


def test_before_the_pipeline_ran(tmp_path):
    with pytest.raises(UserError, match="dvc repro rename"):
        clips.find(clips.Tables(tmp_path / "clips", tmp_path / "catalog.parquet"))


def test_generate_without_a_checkpoint_says_what_to_run(project):
    root, _ = project
    done = soundmill("generate", "--label", "dog", cwd=root)
    assert done.returncode == 1
    assert "no checkpoint; train one with `dvc repro`" in done.stderr


def test_params_prints_a_composition(root):
    done = soundmill("params", "--print", "segment.clip_seconds=7.5", cwd=root)
    assert "clip_seconds: 7.5" in done.stdout
    assert "segmnt" in soundmill("params", "--print", "segmnt.x=1", cwd=root).stderr


def test_a_value_that_a_late_stage_would_refuse_is_refused_at_once(root):
    done = soundmill("params", "--print", "model=tango", "tango.generate.sampling.sampler=euler", cwd=root)
    assert done.returncode == 1
    assert "tango.generate.sampling.sampler: Input should be" in done.stderr
    assert "'euler'" in done.stderr
    assert "ddpm_mel.train.steps" in soundmill("params", "--print", "ddpm_mel.train.steps=abc", cwd=root).stderr


def test_families_are_told_with_their_sizes_and_written(root, tmp_path):
    done = soundmill("families", "--json", str(tmp_path / "families.json"), cwd=root)
    assert done.returncode == 0, done.stderr
    assert "23,331,457" in done.stdout
    assert "arXiv:2006.11239" in done.stdout
    described = json.loads((tmp_path / "families.json").read_text())
    assert list(described) == sorted(registry.FAMILIES)
    assert described["ddpm_mel"]["paper"] == {"unet": 23_331_457}
    assert described["ddpm_mel"]["laptop"]["unet"] > 0


def test_a_file_that_cannot_be_written_is_refused_before_the_work(root, tmp_path):
    (tmp_path / "file").write_text("")
    for arguments in (["families"], ["evaluate", "a", "b"], ["compare", "a", "b", "c"], ["corpus", "duplicates", "a"]):
        for wrong, said in ((tmp_path / "file" / "out.json", "can be written"), (tmp_path, "a directory")):
            done = CliRunner().invoke(cli.app, [*arguments, "--json", str(wrong)])
            assert done.exit_code == 2
            assert said in " ".join(done.output.replace("│", " ").split())


def test_a_half_file_of_weights_is_not_listed_as_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(tmp_path))
    (tmp_path / "yamnet.tflite").write_bytes(b"half")
    assert "!!  yamnet" in CliRunner().invoke(cli.app, ["weights", "list"]).output


def test_a_full_disk_is_told_in_a_line(monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "out.wav")

    monkeypatch.setattr(cli, "project_root", full)
    done = CliRunner().invoke(cli.app, ["families"])
    assert done.exit_code == 1
    assert done.output == "[Errno 28] No space left on device: 'out.wav'\n"


def test_doctor_names_the_remedy_for_what_is_missing(root, tmp_path, monkeypatch):
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    done = soundmill("doctor", cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"none in {tmp_path}" in done.stdout
    assert "soundmill weights fetch vggish" in done.stdout
    assert "http://127.0.0.1:9 is unreachable" in done.stdout
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "none"))
    monkeypatch.setenv("PATH", str(tmp_path))
    lacking = soundmill("doctor", cwd=root)
    assert lacking.returncode == 1
    assert "!!  ffmpeg" in lacking.stdout


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
    made, real = (tmp_path / "[" / "b]" / folder for folder in ("made", "real"))
    (real / "about.json").write_text("{}")
    folders = [str(made), str(real)]
    (tmp_path / "small.yaml").write_text(PROTOCOL)
    options = ["--protocol", str(tmp_path / "small.yaml"), "--cache", str(tmp_path / "cache"), "--workers", "1"]
    done = soundmill("evaluate", *folders, *options, "--report", str(tmp_path / "page"), cwd=root)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert f"· {real}: " in done.stdout
    assert sorted(path.name for path in (tmp_path / "page").iterdir()) == [
        "index.html", "ruler.png", "scores.csv", "scores.json", "scores.md", "scores.tex",
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
    assert page.count("played at 96000 Hz, of 768000") == 4
    scores = json.loads((tmp_path / "page" / "scores.json").read_text())
    assert (scores["silent_share"], scores["clipped_share"]) == (pytest.approx(3 / 9, rel=1e-5), pytest.approx(4 / 9, rel=1e-5))
    assert any(text.endswith("of the generated sounds are clipped; no score says so.") for text in scores["warnings"])

    # A page that cannot be written loses no score, and neither does a sound that is none.
    (tmp_path / "none" / "index.html").mkdir(parents=True)
    written = ["--report", str(tmp_path / "none"), "--json", str(tmp_path / "out.json")]
    done = soundmill("evaluate", *folders, *options, *written, cwd=root)
    assert done.returncode == 1
    assert f"{tmp_path / 'none'}: the page could not be written (IsADirectoryError" in done.stderr
    assert "Traceback" not in done.stderr
    assert "fad_yamnet" in done.stdout
    assert json.loads((tmp_path / "out.json").read_text())["fad_yamnet"] == scores["fad_yamnet"]
    assert json.loads((tmp_path / "none" / "scores.json").read_text())["fad_yamnet"] == scores["fad_yamnet"]
    for name, value in (("nan", np.nan), ("inf", np.inf)):
        soundfile.write(made / f"{name}.wav", np.full(20_000, value), 16_000, subtype="FLOAT")
        soundfile.write(real / f"{name}.wav", np.zeros(20_000), 16_000)
    done = soundmill("evaluate", *folders, *options, cwd=root)
    assert done.returncode == 1
    for name in ("nan", "inf"):
        assert f"{made}/{name}.wav: cannot be scored: nan samples that are no numbers" in done.stderr


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
    assert "fad_yamnet" in done.stdout
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["protocol"] == "small-1"
    assert isinstance(found["kl_yamnet"], float)
    assert found["counts"]["training"] == 4
    page = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    for text in ("good against real", "Worst", "Nearest of 4 training clips", f"{found['fad_yamnet']:.3g}"):
        assert text in page
    assert json.loads((tmp_path / "page" / "scores.json").read_text())["fad_yamnet"] == found["fad_yamnet"]

    done = soundmill("compare", good, bad, real, *options, "--json", str(tmp_path / "compared.json"), cwd=root)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "compared.json").read_text())["comparison"]["fad_yamnet"]["difference"] < 0
    wrong = soundmill("evaluate", good, real, "--protocol", "audioldm_eval", cwd=root)
    assert wrong.returncode == 1
    assert "did you mean 'audioldm_eval-16k'" in wrong.stderr
    both = soundmill("evaluate", good, real, "--protocol", "project", "--embedder", "yamnet", cwd=root)
    assert "give one of them" in both.stderr
