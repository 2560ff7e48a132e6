"""The whole graph, run by DVC in a checkout of its own: the real configuration shrunk, on embedded and on real recordings."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import soundfile
from mlflow import MlflowClient

from soundmill import dvc_recovery, manifest, params, tracking
from tests import chromium
from tests.checkouts import BIN, dvc, repro
from tests.commands.running import works
from tests.prepared import edit_params, json_lines
from tests.processes import marked, new_mark, wait_for
from tests.stages.handling import tree
from tests.test_code import installed


def metrics(checkout: Path, name: str) -> dict:
    return json.loads((checkout / "data/metrics" / f"{name}.json").read_text())


# stage, its scratch below data/.work, what lies in it once the stage is at its work, seconds more until it is killed
KILLED = [
    ("resample@default", "resample-default", "kept/*/*/*.report.json", 0.0),
    ("train@ddpm_mel", "train-ddpm_mel", "*/training/previous.ckpt", 0.0),
    ("evaluate@ddpm_mel", "evaluate-ddpm_mel", "*/outputs", 0.5),
]


UNRELATED = ("soundmill/exports/__init__.py", "soundmill/commands/__init__.py", "soundmill/tracking/runs.py", "docs/corpora.md")


def edit(checkout: Path, name: str) -> None:
    with (checkout / name).open("a") as file:
        file.write("\n# another\n")


def run_killed(checkout: Path, stage: str, scratch: str, sign: str, delay: float, packages: Path) -> str:
    """Run a stage from nothing, `kill -9` its `dvc` in the midst of it, edit what it does not run, and run it to its end.

    That end has `packages` on its path; returns what it printed.
    """
    shutil.rmtree(checkout / "data/.work" / scratch, ignore_errors=True)
    command = ["repro", "--single-item", "--force", "--no-run-cache", stage]
    mark, quiet = new_mark(), {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([BIN / "dvc", *command], cwd=checkout, env={**os.environ, **mark}, **quiet)
    wait_for(lambda: list((checkout / "data/.work" / scratch).glob(sign)), pause=0.02, of=process)
    time.sleep(delay)
    assert process.poll() is None, f"{stage} ended before it was killed"
    process.kill()
    process.wait()
    wait_for(lambda: not marked(mark))  # its stage ends a moment later
    for path in Path(tempfile.gettempdir()).glob("soundmill-evaluate-*"):  # what is killed cannot remove its own
        shutil.rmtree(path)
    for path in dvc_recovery.unreadable_locks(checkout):  # docs/orchestration.md
        path.unlink()
    for name in UNRELATED:
        edit(checkout, name)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("PYTHONPATH", str(packages))
        done = dvc(checkout, *command)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow(minutes=1)
def test_a_new_family_reruns_nothing_and_works(graph_copy, tracked):
    """One package, one conf file: a family that only reconstructs, in stereo at another rate."""
    checkout, document = graph_copy, params.read_yaml(graph_copy / "params.yaml")
    package = checkout / "soundmill/models/tiny_codec"
    package.mkdir()
    shutil.copy(checkout / "tests/models/tiny_codec.py", package / "model.py")
    (package / "__init__.py").write_text("from soundmill.models.tiny_codec.model import FAMILY as FAMILY\n")
    shutil.copy(checkout / "tests/models/tiny_codec.yaml", checkout / "conf/model")
    new = params.compose(checkout / "conf", ["model=tiny_codec"])
    families = document["families"] | new["families"]
    params.write_yaml(document | {"families": families, "tiny_codec": new["tiny_codec"]}, checkout / "params.yaml")
    stages = {"train@tiny_codec", "attribution@tiny_codec", "generate@tiny_codec", "evaluate@tiny_codec"}
    assert set(json.loads(dvc(checkout, "status", "--json").stdout)) == stages
    assert repro(checkout) == stages

    output = sorted((checkout / "data/generated/tiny_codec").glob("*.wav"))
    assert len(output) == metrics(checkout, "generate/tiny_codec")["generated"] > 1
    assert [(info.samplerate, info.channels) for info in map(soundfile.info, output)] == [(22_050, 2)] * len(output)
    scores = metrics(checkout, "evaluate/tiny_codec")
    assert scores["kl_tagger"] > -1e-3  # a mean of logarithms with an epsilon
    assert "codec" not in scores["baselines"]["kl_tagger"]
    assert min(scores["lsd"], scores["mrstft"]) > 0
    page = (checkout / "data/report/tiny_codec/index.html").read_text()
    assert "Reconstructed sounds next to real ones" in page
    assert tracking.sync(checkout) == (0, "")
    client = MlflowClient(f"sqlite:///{checkout / 'mlflow.db'}")
    (experiment,) = [found for found in client.search_experiments() if found.name == tracking.EXPERIMENT]
    recorded = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert stages <= {name.replace("/", "@") for name in recorded}
    training = recorded["train/tiny_codec"].info.run_id
    steps = {name: [point.step for point in client.get_metric_history(training, f"loss/{name}")] for name in ("train", "valid")}
    assert steps == {"train": [10, 20, 30], "valid": [10, 20, 30]}
    sounds = [f"0{place}-{what}.wav" for place, what in enumerate(["real", "reconstructed"] * 2, 1)]
    for look in ("step-0000020", "final"):
        assert [Path(file.path).name for file in client.list_artifacts(training, f"samples/{look}")] == sounds
    assert "figures/loss.png" in [file.path for file in client.list_artifacts(training, "figures")]
    assert recorded["evaluate/tiny_codec"].data.metrics["kl_tagger"] == pytest.approx(scores["kl_tagger"])

    command = [sys.executable, "-m", "soundmill"]
    one = next((checkout / "data/audiocaps/audio").rglob("*.wav"))
    done = subprocess.run([*command, "reconstruct", one, "--family", "tiny_codec"], cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    back = soundfile.info(checkout / "reconstructed" / one.name)
    assert (back.samplerate, back.channels, back.duration) == (22_050, 2, pytest.approx(soundfile.info(one).duration, abs=1e-3))
    assert (checkout / "reconstructed/spectrograms.png").is_file()
    done = subprocess.run([*command, "generate", "--family", "tiny_codec"], cwd=checkout, capture_output=True, text=True)
    assert (done.returncode, done.stderr[:61]) == (1, "the family 'tiny_codec' cannot generate; it can reconstruct; ")


def test_embedded_corpus_from_recordings_to_scores(built_graph):
    checkout = built_graph
    clips = pd.read_parquet(checkout / "data/clips/default")
    assert {"clip_id", "audio", "source", "start", "digest"} <= set(clips.columns)
    assert set(clips.audio.iloc[0]) == {"bytes", "path"}
    shard = next((checkout / "data/clips/default").iterdir())
    assert shard.stat().st_nlink == 3  # the output, DVC's cache and what the next run reuses: one file
    catalog = pd.read_parquet(checkout / "data/catalog/default.parquet").set_index("clip_id")
    assert sorted(catalog.index) == sorted(clips.clip_id)
    told = {}
    for split in manifest.SPLITS:
        rows = json_lines(checkout / f"data/audiocaps/{split}.json")
        told |= {Path(row["location"]).stem: row["captions"] for row in rows}
        assert len(rows) == (catalog.split == split).sum() > 0
        for row in rows:
            info = soundfile.info(checkout / row["location"])
            assert (info.samplerate, info.channels, info.format) == (16000, 1, "WAV")
            clip_id = Path(row["location"]).stem
            assert row["captions"] in list(catalog.captions[clip_id])
    given = pd.concat(pd.read_csv(checkout / f"data/corpus/{name}.csv") for name in ("train", "val", "test"))
    captions = {f"{row.youtube_id}_{row.start_time:g}": row.caption for row in given.itertuples()}
    assert told == captions
    assert metrics(checkout, "catalog/default")["missing"] == metrics(checkout, "catalog/default")["orphans"] == 0
    output = {path.stem for path in (checkout / "data/generated/ddpm_mel").glob("*.wav")}
    assert len(output) == metrics(checkout, "generate/ddpm_mel")["generated"] > 1
    assert set(catalog.split[list(output)]) == {"test"}
    scores = metrics(checkout, "evaluate/ddpm_mel")
    assert scores["kl_tagger_low"] <= scores["kl_tagger"] <= scores["kl_tagger_high"]
    assert {"codec", "silence", "noise"} <= set(scores["baselines"]["kl_tagger"])
    assert scores["fad_tagger"] is None  # of so few test clips
    assert "yamnet" in str(scores["embedders"])
    assert "mmd_yamnet" not in scores
    assert (checkout / "data/report/ddpm_mel/index.html").stat().st_size > 10_000
    mixes = metrics(checkout, "latents/mixes_tango")
    trained, output = metrics(checkout, "train/tango"), metrics(checkout, "generate/tango")
    assert metrics(checkout, "latents/clips_tango")["clips"] == len(catalog)
    assert (trained["clips"], trained["mixes"], trained["steps"]) == ((catalog.split == "train").sum(), mixes["clips"], 2)
    assert len(list((checkout / "data/generated/tango").glob("*.wav"))) == output["generated"] > 1
    assert metrics(checkout, "evaluate/tango")["kl_tagger"] > -1e-3
    for table in (checkout / "data/quarantine").rglob("*.parquet"):
        assert pq.read_schema(table).names == ["path", "reason", "detail"]


@pytest.mark.slow(minutes=1)
def test_a_second_repro_runs_nothing_and_a_change_only_what_it_reaches(graph_copy):
    def stale() -> set[str]:
        return set(json.loads(dvc(checkout, "status", "--json").stdout))

    checkout = graph_copy
    again = dvc(checkout, "repro")
    assert "Running stage" not in again.stdout
    assert "up to date" in again.stdout
    assert "kl_tagger" in dvc(checkout, "metrics", "show").stdout
    plots = dvc(checkout, "plots", "show", "--json")
    assert "train_ddpm_mel.csv" in plots.stdout

    # A change of mixup recomputes the mixes and their spectrograms; clips, training and scores stay.
    edit_params(checkout, "mixup", pairing="random")
    for name in UNRELATED:
        edit(checkout, name)
    assert stale() == {"mixup"}
    edit(checkout, "soundmill/decoding/decode.py")
    reruns = {name.split("@")[0] for name in stale()}
    assert {"segment", "resample", "evaluate"} <= reruns
    assert reruns.isdisjoint({"tagger", "train", "autoencoder", "vocoder", "latents_clips", "latents_mixes", "generate"})


@pytest.mark.slow(minutes=1)
def test_killed_stages_and_two_workers_make_the_same_bytes(graph_copy, built_graph, tmp_path):
    """Of a mapping stage, a training and an evaluation; random kills are in tests/test_attack.py, other stages in tests/stages.

    Meanwhile files that they do not run are edited, and a package that they do not import is installed: no finished work is lost.
    """
    edit_params(graph_copy, "execution", workers=2)
    packages = installed(tmp_path / "packages", "unrelated", "9.9", "unrelated")
    said = {stage: run_killed(graph_copy, stage, *killed, packages) for stage, *killed in KILLED}
    assert "resuming at step" in said["train@ddpm_mel"]
    whole, again = tree(built_graph / "data"), tree(graph_copy / "data")  # tables, sounds, models, metrics, reports
    assert [name for name in whole if again.get(name) != whole[name]] == []
    assert set(again) == set(whole)


@pytest.mark.slow
def test_its_pages_in_chromium(built_graph, tmp_path):
    """Players play, pictures and tables are drawn, nothing is asked of the outside; the pictures lie in the test's directory."""
    with chromium.browser() as browser:
        report = chromium.draw(browser, built_graph / "data/report/ddpm_mel/index.html", tmp_path / "report.png")
        quality = chromium.draw(browser, built_graph / "data/quality/default.html", tmp_path / "quality.png")
        works("listen", "ddpm_mel", "tango", "-o", str(tmp_path / "listen.html"), cwd=built_graph)
        listen = chromium.draw(browser, tmp_path / "listen.html", tmp_path / "listen.png")
    assert "KL divergence" in report.text
    assert len(report.seconds) >= 4  # two generated sounds, each beside a real one
    assert "kl_tagger" in listen.text
    for page in (report, quality, listen):
        assert page.title
        assert min(page.tables + page.images + page.seconds) > 0
    assert report.tables
    assert quality.tables
    assert report.images
    assert listen.images


@pytest.mark.slow(minutes=1)
def test_real_recordings_with_damage_by_an_experiment(checkout, shared, tmp_path):
    """Of ESC-10, to the named clips: `dvc exp run -S corpus=esc -S corpus.path=…`."""
    corpus = tmp_path / "my recordings; touch injected"
    for folder in sorted((shared / "data/esc10").iterdir()):
        if folder.is_dir() and folder.name[:3] in ("001", "002", "005"):
            for fold in "123":
                for path in sorted(folder.glob(f"{fold}-*.ogg"))[:3]:
                    (corpus / folder.name).mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, corpus / folder.name / path.name)
    bad = corpus / "001 - Dog bark"
    (bad / "1-1-A.wav").touch()
    (bad / "1-2-A.mp3").write_text("#EXTM3U\n#EXTINF:10,\n/etc/hostname\n")
    (bad / "1-3-A.ogg").symlink_to(tmp_path / "nowhere.ogg")
    os.mkfifo(bad / "1-4-A.ogg")
    whole = next(bad.glob("1-1*-A.ogg")).read_bytes()
    (bad / "1-5-A.ogg").write_bytes(whole[: len(whole) // 2])
    (bad / "1-6-A\n\xff.ogg".encode("latin-1").decode("utf-8", "surrogateescape")).write_bytes(whole)

    overrides = ["model=ddpm_mel", "corpus=esc", f"corpus.path='{corpus}'", "corpus.shards=3"]
    done = dvc(checkout, "exp", "run", "rename", *(word for override in overrides for word in ("-S", override)))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert not list(tmp_path.rglob("injected"))
    rejected = pd.concat(pd.read_parquet(path) for path in (checkout / "data/quarantine").rglob("*.parquet"))
    reasons = {Path(row.path).name: row.reason for row in rejected.itertuples()}
    named = {"1-1-A.wav": "empty", "1-2-A.mp3": "playlist", "1-3-A.ogg": "dangling link", "1-4-A.ogg": "not a regular file"}
    assert reasons == named | {"1-5-A.ogg": "truncated"}
    catalog = pd.read_parquet(checkout / "data/catalog/default.parquet")
    assert set(catalog.source) >= {"001 - Dog bark/1-6-A\\x0a\\xff.ogg"}
    assert len(catalog) == 28
    assert {label for labels in catalog.labels for label in labels} == {"dog bark", "rain", "clock tick"}
    assert all(row.source.split("/")[1].startswith("3") for row in catalog[catalog.split == "test"].itertuples())
    _, head = json.loads(dvc(checkout, "exp", "show", "--json").stdout)
    assert len(head["experiments"]) == 1
