"""The evaluate stage from end to end: small synthetic sounds, a tagger trained here, YAMNet where its weights are."""

import base64
import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from soundmill import manifest, params, shards, stage
from soundmill.audio.flac import write_wav
from soundmill.audio.mel import log_mel
from soundmill.audio.tags import CHANGED, GENERATED, MadeBy
from soundmill.errors import UserError
from soundmill.evaluation import family, folders, pairwise
from soundmill.evaluation.family import Source
from soundmill.evaluation.sets import CatalogClip
from soundmill.training import tagger
from soundmill.training.tagger import AugmentationParams
from stages import evaluate
from tests import prepared, recorded
from tests.mels import spec_with
from tests.prepared import execution
from tests.stages.handling import tree
from tests.training.test_tagger import PARAMS as TAGGER

RATE = 16_000
LABELS = ("beep", "hiss")
MAKERS = {"generated": MadeBy("tiny checkpoint 0123", GENERATED), "codec": MadeBy("tiny checkpoint 0123", CHANGED)}
TERMS = {
    "hours": {"licence": {"<CC-BY>": 0.75, "unknown": 0.25}, "terms for AI": {"refused": 1.0}},
    "marks": ["refused", "unknown"],
}


def sound(label: str, seed: int) -> np.ndarray:
    """1.5 s of a tone or of filtered noise, different for every seed."""
    random = np.random.default_rng(seed)
    time = np.arange(24_000) / RATE
    if label == "beep":
        return (0.3 * np.sin(2 * np.pi * random.uniform(300, 900) * time)).astype(np.float32)
    return (0.2 * np.convolve(random.standard_normal(24_000), np.ones(4) / 4, "same")).astype(np.float32)


def corpus() -> list[dict]:
    """Clips: 16 train, 4 valid, the rest test."""
    rows = []
    for index in range(72):
        whose = {"clip_id": f"clip{index:02d}_0", "recording_id": f"clip{index:02d}", "source": f"{index}.wav", "start": 0.0}
        told = {"captions": [f"a {LABELS[index % 2]}"], "labels": [LABELS[index % 2]]}
        rows.append({**whose, "shard": index % 2, "split": "train" if index < 16 else "valid" if index < 20 else "test", **told})
    return rows


@pytest.fixture(scope="module")
def judge(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("tagger")
    train_tagger(directory)
    return directory


def train_tagger(directory: Path) -> None:
    """A small tagger, really trained on the training clips; about a second."""
    spec = spec_with(win_length=640, hop_length=320, n_mels=32, f_min=50.0, power=2.0, floor=1e-10)
    plain = AugmentationParams(gain_db=0.0, roll=True, masked_bands=0.0, masked_frames=0.0)
    changes = {"patch_seconds": 0.5, "dropout": 0.0, "epochs": 30, "max_steps": 30, "learning_rate": 5e-3, "weight_decay": 0.0}
    settings = TAGGER.model_copy(update=changes | {"augmentation": plain})
    rows = corpus()
    training = [row["clip_id"] for row in rows if row["split"] == "train"]
    waves = {row["clip_id"]: sound(row["labels"][0], index) for index, row in enumerate(rows)}
    mels = {clip_id: log_mel(wave, spec).astype(np.float16) for clip_id, wave in waves.items()}
    targets = tagger.from_names({row["clip_id"]: row["labels"] for row in rows}, training, "labels")
    net, _ = tagger.train_tagger(settings, spec, mels, targets, training, [], lambda *_: None, lambda _: None)
    tagger.save_tagger(net, settings, spec, targets, directory)


@pytest.fixture
def project(tmp_path, monkeypatch, judge):
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(tmp_path / "none"))
    monkeypatch.setattr(pairwise, "MIN_REPLICATES", 1_000)  # of six tests, p may be 0.006
    monkeypatch.chdir(tmp_path)
    fill(tmp_path, judge)
    return tmp_path


def fill(project: Path, judge: Path) -> None:
    """A project with clips, catalog, sounds of a family that does fairly well, and parameters; the tagger judges."""
    data = project / "data"
    rows = corpus()
    sounds = [prepared.sound(wave=sound(row["labels"][0], index), rate=RATE, **row) for index, row in enumerate(rows)]
    prepared.write_sounds(sounds, data / "clips", data / "catalog.parquet")
    for split, folder in (("test", "generated"), ("valid", "codec")):
        for index, row in enumerate(rows):
            if row["split"] == split:
                wave = 0.8 * sound(row["labels"][0], index + 1000 * (split == "test"))
                write_wav(data / folder / f"{row['clip_id']}.wav", wave, RATE, made_by=MAKERS[folder])
    shutil.copytree(judge, data / "tagger")
    (data / "terms.json").write_text(json.dumps(TERMS))
    write_params(project)


def write_params(project: Path, workers: int = 1, **changes) -> None:
    section = {"embedders": ["tagger"], "protocols": ["project"], "reference": "test", "bootstrap": 30, "probe_clips": 100}
    section |= {"training_clips": 0, "subsets": [], "ladder": [], "examples": 4, "seed": 0}
    document = {"execution": execution(workers), "ddpm_mel": {}, "evaluate": section | changes}
    params.write_yaml(document, project / "params.yaml")


def evaluate_arguments(report: str = "report") -> list[str]:
    ports = {name: f"data/{name}" for name in ("generated", "codec", "clips", "tagger")} | {"catalog": "data/catalog.parquet"}
    argv = [word for name, path in ports.items() for word in (f"--{name}", path)]
    argv += ["--terms", "data/terms.json"]
    return [*argv, "--family", "ddpm_mel", "--report", f"data/{report}", "--metrics", f"data/{report}.json"]


def evaluate_in(project: Path, report: str = "report") -> dict:
    stage.main(evaluate.run, section="evaluate", argv=evaluate_arguments(report))
    return json.loads((project / "data" / f"{report}.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_another_protocol_is_a_block_of_scores_and_is_refused_without_its_weights(project, monkeypatch, request, capsys):
    write_params(project, protocols=["project", "audioldm_eval-16k"])
    with pytest.raises(SystemExit, match=r"audioldm_eval-16k needs vggish: .*`soundmill weights fetch vggish`"):
        evaluate_in(project)
    (project / "none").mkdir(exist_ok=True)
    for name in ("vggish", "panns_cnn14_16k"):
        request.addfinalizer(recorded.publish(name, project / "none", monkeypatch).unlink)  # 290 and 330 MB, random
    found = evaluate_in(project)
    block = found["protocols"]["audioldm_eval-16k"]
    assert (found["protocol"], block["protocol"]) == ("soundmill-3", "audioldm_eval-16k-1")
    assert block["sample_rate"] == 16_000
    for key in ("fad_vggish", "fd_panns_cnn14_16k", "kl_panns_cnn14_16k"):
        assert block["baselines"][key].keys() >= {"floor", "codec", "silence", "noise"} - ({"floor"} if key[:2] == "kl" else set())
        assert block[f"{key}_low"] <= block[key] <= block[f"{key}_high"]
        assert key not in found
    report = project / "data/report"
    rows = {row["score"]: row for row in csv.DictReader((report / "scores.csv").open())}
    assert float(rows["fd_panns_cnn14_16k@audioldm_eval-16k"]["value"]) == block["fd_panns_cnn14_16k"]
    assert rows["fad_vggish@audioldm_eval-16k"]["protocol"] == "audioldm_eval-16k-1"
    for name in ("index.html", "card.md", "scores.tex"):
        assert "vggish" in (report / name).read_text(encoding="utf-8")
    write_params(project)
    without = evaluate_in(project)
    assert without == {key: value for key, value in found.items() if key != "protocols"}


@pytest.mark.slow
def test_scores_have_baselines_and_bytes_do_not_depend_on_workers(project):
    write_params(project, workers=2, ladder=["mmd"])
    found = evaluate_in(project)
    baselines = found["baselines"]["fad_tagger"]
    assert set(baselines) == {"floor", "codec", "codec_floor", "silence", "noise"}
    assert found["fad_tagger"] < baselines["silence"]
    assert found["fad_tagger_low"] < found["fad_tagger"] < found["fad_tagger_high"]
    assert found["kl_tagger"] < found["baselines"]["kl_tagger"]["silence"]
    assert found["label_accuracy_tagger"] == 1
    assert found["baselines"]["label_accuracy_tagger"].keys() == {"real", "chance", "codec"}
    assert found["counts"]["generated"] == 52
    assert found["counts"]["floor"] == 16
    assert found["protocol"] == "soundmill-3"
    assert {"precision_tagger", "mmd_tagger", "is_tagger", "fad_inf_tagger"} < set(found)
    assert 0 < found["codec_lsd"] < -20 * np.log10(0.8)  # the codec's sounds are the clips, softer; bins under the floor are alike
    assert found["baselines"]["codec_lsd"].keys() == {"silence", "noise"}
    assert found["silent_share"] == found["duplicate_share"] == 0
    page = (project / "data/report/index.html").read_text(encoding="utf-8")
    assert '<td>&lt;CC-BY&gt;</td><td>0.75</td><td><meter value="0.75" max="1.0"></meter></td>' in page
    players = [base64.b64decode(found) for found in re.findall(r'src="data:audio/flac;base64,([^"]+)"', page)]
    kinds = {kind: sum(maker.words.encode() in player for player in players) for kind, maker in MAKERS.items()}
    assert kinds == {"generated": 13, "codec": 4}  # 4 examples, 9 from best to worst
    assert len(players) == 2 * (13 + 4)
    assert page.count("Some of its training material is <b") == 2
    assert found["ladder"]["clips"] == 16
    assert found["ladder"]["scores"].keys() == found["ladder"]["sentences"].keys() == {"mmd_tagger"}
    rungs = found["ladder"]["scores"]["mmd_tagger"]
    assert rungs["real"] < rungs["noise_0db"]
    scores = {f"scores.{kind}" for kind in ("png", "csv", "json", "md", "tex")}
    assert set(tree(project / "data" / "report")) == {"card.md", "index.html", "ladder.png", "ladder.tex", "sounds.csv", *scores}

    write_params(project, workers=1, ladder=["mmd"])
    evaluate_in(project, "again")
    assert tree(project / "data" / "again") == tree(project / "data" / "report")
    assert (project / "data" / "again.json").read_bytes() == (project / "data" / "report.json").read_bytes()


def test_labels_and_captions_may_be_any_text_and_what_cannot_be_drawn_is_told(project, capfd, no_picture):
    strange = {"beep": "$x^$ <b> 🐶", "hiss": "_^}{%#& " * 1250}
    told = [{"labels": [strange[row["labels"][0]]], "split": row["split"].replace("test", "valid")} for row in corpus()]
    rows = [{**row, **about, "captions": about["labels"]} for row, about in zip(corpus(), told, strict=True)]
    shards.write_rows(rows, project / "data" / "catalog.parquet", manifest.CATALOG)
    write_params(project, bootstrap=0)
    found = evaluate_in(project)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("report/index.html: no chart: MemoryError: no picture (conftest.py, line")
    page = (project / "data" / "report" / "index.html").read_text(encoding="utf-8")
    assert ("no chart: MemoryError: no picture" in page, "the sounds are compared with valid clips" in page) == (True, True)
    assert "<h3>$x^$ &lt;b&gt; 🐶</h3>" in page
    assert max(map(len, re.findall(r"<h3>(.*?)</h3>", page))) < 300
    assert page.count("<img") == page.count("<audio") > 12
    assert "<audio controls loop " not in page
    assert json.loads((project / "data" / "report" / "scores.json").read_text())["fad_tagger"] == found["fad_tagger"]


def test_a_family_that_only_reconstructs_is_scored_by_that_and_has_no_codec_line(project):
    for path in (project / "data" / "codec").iterdir():
        path.unlink()
    about = {"family": "ddpm_mel", "made_by": "reconstruct", "trained_against": ["tagger"], "weights": "best weights (step 7)"}
    about |= {"loops": True, "chosen_by": ["tagger"]}
    (project / "data" / "generated" / manifest.ABOUT_SOUNDS).write_text(json.dumps(about))
    metrics = evaluate_in(project)
    assert "codec" not in metrics["baselines"]["kl_tagger"]
    assert metrics["lsd_low"] < metrics["lsd"] < metrics["lsd_high"]
    assert metrics["mrstft"] > 0
    assert "codec_lsd" not in metrics
    assert set(metrics["unranked"].values()) == {"the model was trained against tagger"}
    assert metrics["trained_against"] == metrics["chosen_by"] == ["tagger"]
    page = (project / "data" / "report" / "index.html").read_text(encoding="utf-8")
    assert page.count("<audio controls loop ") == page.count("<audio ") > 12
    assert "Reconstructed sounds next to real ones" in page
    assert "best weights (step 7)" in page
    assert metrics["weights"] == "best weights (step 7)"
    assert "through the family" not in page


def test_unknown_embedder_and_typos_are_named(project):
    for change, message in (
        ({"embedders": ["vggishh"]}, r"evaluate\.embedders\.0: .*unknown embedder 'vggishh'; did you mean 'vggish'"),
        ({"embedders": ["tagger", "tagger"]}, "a name twice"),
        ({"protocols": ["project", "audioldm_eval"]}, r"evaluate\.protocols: .*'audioldm_eval'; did you mean 'audioldm_eval-16k'"),
        ({"protocols": ["google-fad"]}, r"evaluate\.protocols: .*must begin with project"),
        ({"bootstraps": 3}, "did you mean 'bootstrap'"),
    ):
        write_params(project, **change)
        with pytest.raises(SystemExit, match=message):
            evaluate_in(project)


def test_missing_weights_are_said_and_no_embedder_at_all_is_an_error(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(tmp_path))
    names, unavailable = evaluate.usable_embedders(["tagger", "yamnet"])
    assert names == ["tagger"]
    assert unavailable == {"yamnet": "yamnet.tflite is not in the directory $SOUNDMILL_WEIGHTS"}
    assert f"yamnet.tflite is not in the directory $SOUNDMILL_WEIGHTS, {tmp_path}" in capsys.readouterr().out
    with pytest.raises(UserError, match="add `tagger`"):
        evaluate.usable_embedders(["yamnet"])


def test_examples_take_turns_between_labels():
    clips = [CatalogClip(row["clip_id"], row["recording_id"], 0, "test", tuple(row["labels"]), ()) for row in corpus()]
    source = Source(clips, Path(), {}, {}, folders.About())
    labels = {clip.clip_id: clip.labels[0] for clip in clips}
    order = sorted(labels, key=lambda clip_id: labels[clip_id])  # all beeps first
    shown = family.choose_examples(order, source, 6)
    assert sorted(labels[clip_id] for clip_id in shown) == ["beep"] * 3 + ["hiss"] * 3
    assert family.choose_examples(order, source, 0) == []


def write_base(project: Path, label_of: dict[str, str]) -> None:
    """Sounds of a base: for the same requests, of labels by the requested one; and both models' for four of its own prompts."""
    codec = project / "data" / "codec"
    for index, row in enumerate(corpus()):
        if row["split"] == "test":
            write_wav(codec / manifest.BASE / f"{row['clip_id']}.wav", 0.8 * sound(label_of[row["labels"][0]], index + 2000), RATE)
    for number in range(4):
        for name, label, seed in (("base", "beep", 0), ("again", "beep", 100), ("tuned", "hiss", 200)):
            write_wav(codec / manifest.OWN / name / f"{number:03d}.wav", sound(label, seed + number), RATE)


@pytest.mark.slow(minutes=0.3)
def test_a_base_is_a_column_beside_the_tuned_model_and_the_difference_is_tested(project, capfd):
    write_base(project, {"beep": "hiss", "hiss": "beep"})
    write_params(project, training_clips=100, embedders=["tagger", "texture"])
    metrics = evaluate_in(project)
    base = metrics["base"]
    assert metrics["baselines"]["kl_tagger"]["base"] > 5 * metrics["kl_tagger"]
    assert {one["embedder"] for one in base["differences"]} == {"tagger", "texture"}
    kl = next(one for one in base["differences"] if one["metric"] == "kl")
    assert (kl["embedder"], kl["a"], kl["b"], kl["better"]) == ("tagger", "tuned", "base", "tuned")
    assert kl["value"] == pytest.approx(metrics["kl_tagger"] - metrics["baselines"]["kl_tagger"]["base"], rel=1e-3)
    assert kl["p"] < 0.01
    assert base["memorised_tagger"] >= 0  # copies of training clips among the base's sounds
    forgotten = base["forgetting"]
    assert forgotten["tuned"]["kl_tagger"] > 5 * forgotten["again"]["kl_tagger"]  # hiss instead of beep
    assert "prompts" not in forgotten  # those of the base
    printed = capfd.readouterr().out
    assert re.search(r"Tuned − base: .*KL \(tagger\) −?\S+ \(.*; p 0\.00\d*\).*: (it got better|better by)", printed)
    page = (project / "data" / "report" / "index.html").read_text(encoding="utf-8")
    assert "the model that this one was fine-tuned from" in page


@pytest.mark.slow(minutes=0.3)
def test_prompts_that_are_not_the_base_s_are_named(project, capfd):
    write_base(project, {"beep": "beep", "hiss": "hiss"})
    (project / "data" / "codec" / manifest.OWN / manifest.OWN_PROMPTS).write_text(json.dumps({"prompts": ["a dog barks", "rain"]}))
    assert evaluate_in(project)["base"]["forgetting"]["prompts"] == ["a dog barks", "rain"]
    sentence = "what was forgotten is measured with these: a dog barks, rain"
    printed = capfd.readouterr().out
    assert sentence in printed
    assert sentence in (project / "data" / "report" / "index.html").read_text(encoding="utf-8")
    assert "not beyond chance. 16 training clips and 52 requests are too few to tell that it got better" in printed


@pytest.mark.parametrize(
    ("better", "told"),
    [
        ("tuned tuned", ": it got better, beyond chance."),
        ("base neither", ": it got worse by FAD (tagger) alone, beyond chance."),
        ("tuned base", ": better by FAD (tagger) and worse by KL (yamnet), beyond chance."),
        ("neither neither", ": not beyond chance. 30 training clips"),
    ],
)
def test_the_sentence_names_the_scores_that_are_better(better, told):
    first, second = better.split()
    ends = {"low": -2.0, "high": -1.0, "p": 0.01}
    differences = [
        {"embedder": "tagger", "metric": "fad", "value": -1.5, "better": first, **ends},
        {"embedder": "yamnet", "metric": "kl", "value": -1.5, "better": second, **ends},
    ]
    assert told in pairwise.whether_better(differences, 30, 60)
