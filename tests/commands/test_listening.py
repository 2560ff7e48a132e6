"""The commands to judge models by ear: what they take for models, and what they say of mistakes."""

import json
import re

import pytest

from soundmill import hashing
from soundmill.audio.flac import write_wav
from soundmill.listening import answers
from tests.commands.running import refused, soundmill, works
from tests.listening.test_material import HERTZ, tone, write_models, write_report
from tests.prepared import sound, write_sounds


@pytest.fixture
def folders(tmp_path):
    return write_models(tmp_path / "sounds")


@pytest.fixture
def project(tmp_path):
    """A checkout with one family's sounds, codec and scores, and the clips of its variant."""
    root = tmp_path / "project"
    data = root / "data"
    rows = []
    for name, hertz in HERTZ.items():
        clip_id = name.replace("/", "_")
        write_wav(data / "generated" / "tiny" / f"{clip_id}.wav", tone(hertz, 16_000, 0.05), 16_000)
        told = {"source": f"{name}.ogg", "split": "test", "labels": [name[:4]], "captions": [f"a {name[:4]} & more"]}
        rows.append(sound(clip_id, tone(500, 16_000), 16_000, **told))
    write_wav(data / "codec" / "tiny" / "beep_1.wav", tone(500, 16_000, 0.1), 16_000)
    write_sounds(rows, data / "clips" / "drums", data / "catalog" / "drums.parquet")
    write_report(data / "report" / "tiny", {"beep_1": 0.25})
    (root / "dvc.yaml").write_text("stages: {}\n")
    (root / "params.yaml").write_text("families: {tiny: {clips: drums}}\nclips: {drums: {sample_rate: 16000}}\n")
    return root


def columns(text: str) -> list[list[str]]:
    """What stands above each sound, row by row."""
    return [re.findall(r"<figcaption>([^<]*)", row) for row in re.findall(r"<article.*?</article>", text, re.S)]


def test_listen_to_a_family_and_a_folder(project, folders, tmp_path):
    for path in sorted((folders / "soft").rglob("*.wav")):
        write_wav(tmp_path / "mine" / f"{path.parent.name}_{path.stem}.wav", tone(500, 16_000), 16_000)
    works("listen", "tiny", f"other={tmp_path / 'mine'}", cwd=project)
    text = (project / "listen.html").read_text(encoding="utf-8")
    assert columns(text) == [["real", "tiny codec", "tiny", "other"]] + [["real", "–", "tiny", "other"]] * 3
    for shown in ("a beep &amp; more · beep/1.ogg from 0 s", "kl_yamnet 0.25"):
        assert shown in text
    facts = [json.loads(found) for found in re.findall(r"data-facts='([^']*)'", text)]
    assert [one["scores"] for one in facts] == [{"kl_yamnet tiny": 0.25}, {}, {}, {}]
    (project / "data/catalog/drums.parquet").unlink()
    works("listen", "tiny", cwd=project)  # without real sounds
    (project / "params.yaml").write_text("families: [tiny]\n")
    assert "params.yaml: families.tiny: expected a section" in refused("listen", "tiny", cwd=project)


def test_a_test_of_a_family_knows_its_checkpoint_and_its_scores(project):
    checkpoint = project / "data" / "models" / "tiny"
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights").write_bytes(b"weights")
    done = works("listening-test", "new", "tiny", "--questions", "quality,relevance", "--per-model", "4", cwd=project)
    assert "listening-test/key.json  for you alone" in done.stdout
    key = answers.read_key(project / "listening-test" / "key.json")
    tiny = key.models["tiny"]
    assert (tiny.family, tiny.weights) == ("tiny", hashing.model_digest(checkpoint))
    assert (tiny.scores, tiny.of) == ({"kl_yamnet": 1.5}, {"beep_1": {"kl_yamnet": 0.25}})
    assert "a beep \\u0026 more" in (project / "listening-test" / "test.html").read_text(encoding="utf-8")


def test_listen_to_folders_without_a_checkout(folders, tmp_path):
    report = write_report(tmp_path / "report", {"beep/1": 0.5})
    (folders / "soft").rename(folders / "lr=0.1")
    arguments = ["lr=0.1", "stereo=wide", "--reference", "real", "--scores", f"stereo={report}", "-o", "out/page.html"]
    done = works("listen", *arguments, cwd=folders)
    assert done.stdout == "out/page.html\n"
    assert columns((folders / "out" / "page.html").read_text(encoding="utf-8"))[0] == ["real", "lr=0.1", "stereo"]
    small = soundmill("listen", "lr=0.1", "-o", "small.html", "--megabytes", "0.1", cwd=folders)
    assert "requests did not fit in 0.1 MB: the page names them" in small.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone"], "gone: neither a folder nor a family with sounds here (there are: tiny)"),
        (["=x"], "a model '=x': expected NAME=DIR"),
        (["a=../sounds/soft", "--scores", "b=x"], "--scores: no folder is named b"),
        (["a=../sounds/soft", "--scores", "a=x"], "x/scores.json: no such file"),
        (["a=../sounds/soft", "a=../sounds/wide"], "several models are called a"),
        (["a=../sounds/soft", "--reference", "nowhere"], "nowhere: no such folder"),
        (["a=../sounds/soft", "--captions", "nowhere.csv"], "nowhere.csv: cannot be read"),
        (["tiny", "--captions", "nowhere.csv"], "--captions: only for folders of sounds"),
    ],
)
def test_mistakes_are_named(project, folders, arguments, message):
    assert message in refused("listen", *arguments, cwd=project)
    assert not (project / "listen.html").exists()
