import numpy as np
import pytest
import soundfile

from soundmill import manifest
from tests.commands.running import refused, soundmill, works
from tests.prepared import sound, write_sounds


@pytest.fixture
def project(tmp_path):
    """A project with five clips, as the stages leave them."""
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "params.yaml").write_text("clips: {default: {sample_rate: 16000}}\n")
    ids = ["-abcdefghij_0", "dog_5", "rain_0", "rain_5", "siren_0"]
    waves = {name: np.sin(np.arange(800 * (n + 1)) / 9).astype(np.float32) * 0.5 for n, name in enumerate(ids)}
    rows = []
    for n, name in enumerate(ids):
        label = name.split("_")[0] if not name.startswith("-") else "cat"
        told = {"split": manifest.SPLITS[n % 3], "captions": [f"a {label} is heard"], "labels": [label], "shard": n % 2}
        where = {"source": f"folder/{name}.ogg", "start": float(n), "recording_id": name.rpartition("_")[0], "digest": f"d{n}"}
        rows.append(sound(name, waves[name], 16000, **where, **told))
    write_sounds(rows, tmp_path / "data/clips/default", tmp_path / "data/catalog/default.parquet")
    return tmp_path, waves


def test_list_filters_and_says_how_many(project):
    root, _ = project
    done = soundmill("clips", "list", "--label", "rain", cwd=root)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["rain_0", "rain_5"]
    assert done.stderr == "2 of 2 clips\n"
    assert soundmill("clips", "list", "--text", "SIREN", "--split", "valid", cwd=root).stdout.startswith("siren_0")
    for command in ("list", "export"):
        assert "no clip matches" in refused("clips", command, "--text", "no such words", cwd=root)
    assert "did you mean 'rain'" in refused("clips", "list", "--label", "rian", cwd=root)


def test_show_traces_a_clip_to_its_recording(project):
    root, _ = project
    done = soundmill("clips", "show", "rain_5", cwd=root)
    assert "folder/rain_5.ogg" in done.stdout
    assert "starts at  3 s\nlength     0.2 s at 16000 Hz, mono\n" in done.stdout
    assert "a rain is heard" in done.stdout
    assert "0.500" in done.stdout
    dashed = works("clips", "show", "-abcdefghij_0", cwd=root)
    assert "export -abcdefghij_0" in dashed.stdout
    assert "did you mean 'rain_5'" in soundmill("clips", "show", "rain_6", cwd=root).stderr


def test_export_writes_what_was_stored(project):
    root, waves = project
    works("clips", "export", "dog_5", "siren_0", "--output", "out", cwd=root)
    assert sorted(path.name for path in (root / "out").iterdir()) == ["dog_5.wav", "siren_0.wav"]
    wave, rate = soundfile.read(root / "out/dog_5.wav", dtype="float32")
    assert rate == 16000
    assert np.abs(wave - waves["dog_5"]).max() <= 2**-15
    works("clips", "export", "dog_5", "--output", "out", cwd=root)
    (root / "out/dog_5.wav").write_bytes(b"another's")
    assert "is not this clip; choose another" in refused("clips", "export", "dog_5", "--output", "out", cwd=root)
    inside = soundmill("clips", "export", "dog_5", "--output", "data/mine", cwd=root)
    assert (inside.returncode, (root / "data/mine").exists()) == (1, False)
    assert "which the pipeline reads or writes" in inside.stderr
    said = refused("clips", "export", "dog_5", "--split", "trian", "--text", "dog", "--output", "train", cwd=root)
    assert "leave out --split, --text" in said
    assert "no clip 'dog_6'; did you mean 'dog_5'" in refused("clips", "export", "rain_0", "dog_6", cwd=root)
    soundmill("clips", "export", "--split", "train", "--output", "train", cwd=root)
    assert len(list((root / "train").iterdir())) == 2


def test_outside_a_checkout_the_remedy_is_named(tmp_path):
    assert "not inside a Soundmill checkout" in refused("clips", "list", cwd=tmp_path)
