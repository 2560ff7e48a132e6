"""`soundmill spectrogram compare`, as a person uses it: on clips of the pipeline, and where it must refuse."""

import json

import pytest

from soundmill import params
from soundmill.evaluation import scorer
from soundmill.models import registry
from tests.commands.running import soundmill
from tests.prepared import prepare
from tests.test_spectrograms import ROWS, wave


@pytest.fixture
def project(tmp_path, root, shared, monkeypatch):
    """A checkout with twelve clips and the default parameters; embeddings need no 50 clips."""
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(shared / "models"))
    monkeypatch.setattr(scorer, "FEWEST_REFERENCE", 12)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "conf").symlink_to(root / "conf")
    params.write_yaml(
        registry.compose(root / "conf", ["ddpm_mel.generate.sampling.griffin_lim_iterations=4"]), tmp_path / "params.yaml"
    )
    tables = prepare(tmp_path / "prepared", ROWS, wave)
    for path, place in ((tables.clips, "clips/default"), (tables.catalog, "catalog/default.parquet")):
        (tmp_path / "data" / place).parent.mkdir(parents=True)
        path.rename(tmp_path / "data" / place)
    return tmp_path


def test_specs_are_compared_in_one_table(project):
    chosen = ["--spec", "64x1024/157", "--spec", "16x1024:400/200", "--json", "result.json", "--cache", "cache", "--workers", "1"]
    done = soundmill("spectrogram", "compare", *chosen, cwd=project)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["ddpm_mel,", "yamnet", "12", "clips;", "ddpm_mel", "has", "64x1024:640/157", "now"]
    rows = [line for line in lines if line[1:2] in (["none"], ["speckle"])]
    assert [(row[0], row[1], row[2], row[3]) for row in rows] == [
        ("64x1024/157", "none", "102", "6,522"),
        ("64x1024/157", "speckle", "102", "6,522"),
        ("16x1024:400/200", "none", "81", "1,280"),
        ("16x1024:400/200", "speckle", "81", "1,280"),
    ]
    result = json.loads((project / "result.json").read_text())
    assert [f"{row['fad']:.3g}" for row in result["spectrograms"]] == [row[4] for row in rows]
    assert [f"{row['label_accuracy']:.1%}" for row in result["spectrograms"]] == [row[6] for row in rows]
    assert {row["mel_spec"]["mel_scale"] for row in result["spectrograms"]} == {"htk"}  # the family's
    assert (result["family"], result["split"], result["counts"]) == ("ddpm_mel", "train, valid", {"clips": 12})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--spec", "400x1024/157"], "--spec 400x1024/157: mel spec: 22 of 400 bands contain no FFT bin"),
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
    done = soundmill("spectrogram", "compare", *arguments, "--cache", "cache", "--workers", "1", cwd=project)
    assert done.returncode == 1
    assert message in done.stderr


def test_a_family_that_params_yaml_lacks_is_taken_from_conf(project):
    chosen = ["--family", "tango", "--spec", "64x1024/320", "--cache", "cache", "--workers", "1"]
    done = soundmill("spectrogram", "compare", *chosen, cwd=project)
    assert done.returncode == 0, done.stderr
    assert "tango has 64x1024:640/160 now" in done.stdout


def test_without_clips_it_says_how_to_make_them(project):
    (project / "data/catalog/default.parquet").unlink()
    done = soundmill("spectrogram", "compare", cwd=project)
    assert done.returncode == 1
    assert "no clips prepared yet; run `dvc repro`" in done.stderr
