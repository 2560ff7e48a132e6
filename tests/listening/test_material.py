"""What there is to hear: families as the pipeline leaves them, folders of anyone's, and what they were asked for."""

import json
from pathlib import Path

import numpy as np
import pytest

from soundmill.audio.flac import write_wav
from soundmill.audio.tags import GENERATED, MadeBy
from soundmill.errors import UserError
from soundmill.listening import material
from soundmill.listening.material import Model, Request
from tests.prepared import sound, write_sounds

SECONDS = 6.0
MAKER = MadeBy("soft checkpoint 0123abcd", GENERATED)
HERTZ = {"beep/1": 500.0, "beep/2": 700.0, "hiss/1": 1100.0, "hiss/2": 1300.0}


def tone(hertz: float, rate: int, level: float = 0.2, seconds: float = SECONDS) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def write_models(root: Path) -> Path:
    """real; one 20 dB softer, with the tags of its maker; one in stereo at another rate, without `hiss/2`."""
    for name, hertz in HERTZ.items():
        write_wav(root / "real" / f"{name}.wav", tone(hertz, 16_000), 16_000)
        write_wav(root / "soft" / f"{name}.wav", tone(hertz, 16_000, 0.02), 16_000, made_by=MAKER)
        if name != "hiss/2":
            write_wav(root / "wide" / f"{name}.wav", np.stack([tone(hertz, 44_100), tone(hertz, 44_100, 0.1)]), 44_100)
    return root


def write_report(directory: Path, kl: dict[str, float]) -> Path:
    """What `soundmill evaluate --report` leaves that a listening page reads."""
    directory.mkdir(parents=True)
    scores = (
        '{"kl_yamnet": 1.5, "fad_yamnet": 9.0, "baselines": {"kl_yamnet": {}, "fad_yamnet": {}}, "unranked": {"fad_yamnet": "x"}}'
    )
    (directory / "scores.json").write_text(scores, encoding="utf-8")
    rows = "".join(f"{name},{value}\n" for name, value in kl.items())
    (directory / "sounds.csv").write_text(f"id,kl_yamnet\n{rows}", encoding="utf-8")
    return directory


RATE = 16_000


def folder(root, name: str) -> Model:
    return material.read_folder(name, material.open_folder(root / name))


def test_requests_that_most_models_have_come_first_and_labels_in_turn(tmp_path):
    write_models(tmp_path)
    models = [folder(tmp_path, name) for name in ("soft", "wide")]
    asked = material.folder_requests(material.open_folder(tmp_path / "soft"), None)
    gathered = material.gather(models, {}, asked)
    assert gathered.order() == ["beep/1", "hiss/1", "beep/2", "hiss/2"]
    assert asked["beep/1"] == Request(("beep",), "", "")
    with pytest.raises(UserError, match="several models are called soft"):
        material.gather([models[0], models[0]], {}, asked)


def test_a_folders_captions_are_of_a_csv_or_of_what_generate_noted(tmp_path):
    prompt = json.dumps({"prompt": "a dog barks", "seed": 0})
    write_wav(tmp_path / "a" / "dog-0-001.wav", tone(500, RATE), RATE, prompt)
    write_wav(tmp_path / "a" / "other.wav", tone(500, RATE), RATE, "not JSON")
    opened = material.open_folder(tmp_path / "a")
    assert [asked.text for asked in material.folder_requests(opened, None).values()] == ["a dog barks", ""]
    (tmp_path / "texts.csv").write_text("id,caption\ndog-0-001,a cat\nother,rain\n")
    assert [asked.text for asked in material.folder_requests(opened, tmp_path / "texts.csv").values()] == ["a cat", "rain"]


def test_real_clips_and_what_the_catalog_says(tmp_path):
    rows = [
        sound(
            name.replace("/", "_"), tone(hertz, RATE), recording_id=name, source=f"{name}.wav", start=2.5, split="test",
            labels=[name[:4]], captions=["a sound", "another"] if name == "beep/1" else [],
        )
        for name, hertz in HERTZ.items()
    ]  # fmt: skip
    tables = write_sounds(rows, tmp_path / "clips", tmp_path / "catalog.parquet")
    real, asked = material.real_clips(tables, {"beep_1", "hiss_1", "gone_1"})
    assert asked == {
        "beep_1": Request(("beep",), "a sound", "beep/1.wav from 2.5 s"),
        "hiss_1": Request(("hiss",), "", "hiss/1.wav from 2.5 s"),
    }
    wave, rate = real["hiss_1"]()
    assert rate == RATE
    np.testing.assert_allclose(wave[0], tone(1100, RATE), atol=1e-4)


def test_scores_that_rank_models_and_those_of_single_sounds(tmp_path):
    scores, of = material.read_report(write_report(tmp_path / "report", {"beep/1": 0.5}))
    assert scores == {"kl_yamnet": 1.5}  # that of FAD is said to rank nothing
    assert of == {"beep/1": {"kl_yamnet": 0.5}}
    (tmp_path / "report" / "sounds.csv").write_text("id,codec_lsd,kl_yamnet\nbeep/1,3,0.5\nhiss/1,4,\n")
    assert material.read_report(tmp_path / "report")[1] == {"beep/1": {"kl_yamnet": 0.5}, "hiss/1": {}}
    assert material.read_report(tmp_path / "none") == ({}, {})
    with pytest.raises(UserError, match=r"none/scores.json: no such file; score the sounds"):
        material.read_report(tmp_path / "none", required=True)


@pytest.mark.parametrize("line", ["beep/1,much", "beep/1,nan", "beep/1,1,2"])
def test_damaged_scores_are_named(tmp_path, line):
    report = write_report(tmp_path / "report", {})
    (report / "sounds.csv").write_text(f"id,kl_yamnet\n{line}\n")
    with pytest.raises(UserError, match=r"sounds.csv.*score the sounds again"):
        material.read_report(report)


def test_sounds_that_cannot_be_opened_are_all_named(tmp_path):
    write_models(tmp_path)
    (tmp_path / "soft" / "empty.wav").touch()
    (tmp_path / "soft" / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    with pytest.raises(UserError) as error:
        material.open_folder(tmp_path / "soft")
    assert "empty.wav: empty" in str(error.value)
    assert "gone.wav: dangling link" in str(error.value)
