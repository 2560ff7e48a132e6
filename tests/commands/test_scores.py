import json
import shlex

import numpy as np
import pytest
import soundfile

from soundmill import params
from soundmill.audio import flac
from soundmill.evaluation import scorer
from soundmill.models import registry
from tests.commands.running import refused, soundmill, works
from tests.prepared import prepare
from tests.test_spectrograms import ROWS, wave

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
    done = works("evaluate", good, real, *options, *out, "--card", str(tmp_path / "card"), "--candidates", "3", cwd=root)
    card = (tmp_path / "card" / "card.md").read_text(encoding="utf-8")
    again = shlex.join(["soundmill", "evaluate", good, real, "--protocol", str(tmp_path / "small.yaml"), "--training", bad])
    assert f"```sh\n{again} --candidates 3\n```" in card
    assert "| candidates per prompt | 3 |" in card
    assert "mmd_yamnet" in done.stdout
    assert done.stdout.splitlines()[-2:] == [str(tmp_path / "page/index.html"), str(tmp_path / "card/card.md")]
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
    assert f"{tmp_path / 'none'}: the page could not be written (IsADirectoryError" in refused(
        "evaluate", good, real, *options, *out, "--report", str(tmp_path / "none"), cwd=root
    )
    assert json.loads((tmp_path / "none" / "scores.json").read_text())["mmd_yamnet"] == found["mmd_yamnet"]
    soundfile.write(tmp_path / "good" / "nan.wav", np.full(20_000, np.nan), 16_000, subtype="FLOAT")
    said = refused("evaluate", good, real, *options, "--unpaired", cwd=root)
    assert f"{good}/nan.wav: cannot be scored: nan (non-finite samples)" in said
    (tmp_path / "good" / "nan.wav").unlink()

    paired = works("evaluate", good, real, *options, "--paired", "--json", str(tmp_path / "paired.json"), cwd=root)
    assert 0 < json.loads((tmp_path / "paired.json").read_text())["lsd"] < 40
    assert "lsd" in paired.stdout
    both = soundmill("evaluate", good, real, "--paired", "--unpaired", cwd=root)
    assert "--paired and --unpaired" in both.stderr
    done = works("compare", good, bad, real, *options, "--json", str(tmp_path / "compared.json"), cwd=root)
    assert json.loads((tmp_path / "compared.json").read_text())["comparison"]["mmd_yamnet"]["difference"] < 0
    assert "did you mean 'audioldm_eval-16k'" in refused("evaluate", good, real, "--protocol", "audioldm_eval", cwd=root)
    assert "--ladder 'fadd'; did you mean 'fad'" in refused("evaluate", good, real, "--ladder", "fadd", cwd=root)
    both = soundmill("evaluate", good, real, "--protocol", "project", "--embedder", "yamnet", cwd=root)
    assert "give one of them" in both.stderr


# `soundmill spectrogram compare`


@pytest.fixture
def project(tmp_path, root, shared, monkeypatch):
    """A checkout with twelve clips and the default parameters; embeddings need no 50 clips."""
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(shared / "models"))
    monkeypatch.setattr(scorer, "FEWEST_REFERENCE", 12)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "conf").symlink_to(root / "conf")
    document = registry.compose(root / "conf", ["audio_dit.generate.sampling.griffin_lim_iterations=4"])
    params.write_yaml(document, tmp_path / "params.yaml")
    tables = prepare(tmp_path / "prepared", ROWS, wave)
    for path, place in ((tables.clips, "clips/default"), (tables.catalog, "catalog/default.parquet")):
        (tmp_path / "data" / place).parent.mkdir(parents=True)
        path.rename(tmp_path / "data" / place)
    return tmp_path


def test_specs_are_compared_in_one_table(project):
    chosen = ["--spec", "64x1024/157", "--spec", "16x1024:400/200", "--json", "result.json", "--cache", "cache", "--workers", "1"]
    done = works("spectrogram", "compare", *chosen, cwd=project)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["audio_dit,", "yamnet", "12", "clips;", "audio_dit", "has", "64x1024:640/160", "now"]
    rows = [line for line in lines if line[1:2] in (["none"], ["speckle"])]
    specs = ("64x1024/157", "102", "6,522"), ("16x1024:400/200", "81", "1,280")
    assert [row[:4] for row in rows] == [[name, grain, *sizes] for name, *sizes in specs for grain in ("none", "speckle")]
    result = json.loads((project / "result.json").read_text())
    assert [f"{row['fad']:.3g}" for row in result["spectrograms"]] == [row[4] for row in rows]
    assert [f"{row['label_accuracy']:.1%}" for row in result["spectrograms"]] == [row[6] for row in rows]
    assert {row["mel_spec"]["mel_scale"] for row in result["spectrograms"]} == {"slaney"}  # the family's
    assert (result["family"], result["split"], result["counts"]) == ("audio_dit", "train, valid", {"clips": 12})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--spec", "400x1024/157"], "--spec 400x1024/157: mel spec: 5 of 400 bands contain no FFT bin"),
        (["--spec", "64x1024/600"], "--spec 64x1024/600: mel spec: hop_length 600 must be at most half of win_length 1024"),
        (["--family", "rave"], "--family rave: it makes no log-mels; choose audio_dit or ddpm_mel or projected_gan or tango"),
        (["--family", "tanga"], "no model family 'tanga'; did you mean 'tango'"),
        (["--embedder", "vggish"], "run `soundmill weights fetch vggish`"),
        (["--embedder", "tagger"], "tagger: no data/tagger here"),
        (["--number", "11"], "a Fréchet distance needs 12 clips, but the splits 'train' and 'valid' have 12 and --number is 11"),
        (["--split", "test"], "split 'test' has 0"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_the_remedy(project, monkeypatch, arguments, message):
    monkeypatch.setattr("soundmill.spectrograms.resynthesise", None)
    assert message in refused("spectrogram", "compare", *arguments, "--cache", "cache", "--workers", "1", cwd=project)


def test_a_family_that_params_yaml_lacks_is_taken_from_conf(project):
    chosen = ["--family", "tango", "--spec", "64x1024/320", "--cache", "cache", "--workers", "1"]
    done = works("spectrogram", "compare", *chosen, cwd=project)
    assert "tango has 64x1024:640/160 now" in done.stdout


def test_without_clips_it_says_how_to_make_them(project):
    (project / "data/catalog/default.parquet").unlink()
    assert "no clips prepared yet; run `dvc repro`" in refused("spectrogram", "compare", cwd=project)
