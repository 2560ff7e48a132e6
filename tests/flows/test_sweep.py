"""Sweeps on a real Prefect server, DVC and MLflow over a tiny project; and what the project's own sweep files compose to."""

import copy
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from prefect.logging import disable_run_logger

from flows import locks, sweep, trials
from flows.terminal import LOG
from soundmill import ledger, tracking
from soundmill.errors import UserError
from tests.checkouts import copy_project
from tests.flows.prefect_server import ROOT, ask, environment
from tests.flows.test_pipeline import runs
from tests.flows.tiny import DOG, PARAMS, git
from tests.graph import SHRUNK
from tests.processes import wait_for
from tests.tracking.reading import files

FILE = """
title: Numbers
overrides: [first.seconds=0.0]
points:
  two: [evaluate.number=2]
  five: [evaluate.number=5, evaluate.seconds=3.0]
  broken: [evaluate.number=9, evaluate.fail=true]
subsets: null
seeds: {keys: [first.number], values: [1]}
paper:
  source: a paper, table 4
  protocol: another
  files: null
  rows: {two: {fad: 1.5}}
"""
PLAIN = 'return {"number": params.number, "nested": {"share": 0.25}}'
SCORED = """value = params.number + float(read.read_text().split()[0]) / 10
    return {
        "protocol": "tiny", "embedders": {"tagger": {}},
        "files": {"reference": "a"}, "counts": {"generated": 4}, "baselines": {"fad_tagger": {"floor": 0.5}},
        "fad_tagger": value, "fad_tagger_low": value - 1, "fad_tagger_high": value + 1,
    }"""


@pytest.fixture
def project(tiny: Path) -> Path:
    """The tiny project with Hydra, a sweep of three points, and an evaluation that scores."""
    (tiny / "conf" / "sweep").mkdir(parents=True)
    (tiny / "conf" / "config.yaml").write_text(PARAMS)
    (tiny / "conf" / "sweep" / "numbers.yaml").write_text(FILE)
    code = (tiny / "evaluate.py").read_text()
    (tiny / "evaluate.py").write_text(code.replace(PLAIN, SCORED))
    (tiny / ".gitignore").write_text((tiny / ".gitignore").read_text() + "/sweeps/\n")
    git(tiny, "add", "-A")
    git(tiny, "commit", "-q", "-m", "Sweeps")
    return tiny


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "soundmill", "sweep", "numbers", *arguments]


@pytest.mark.slow(minutes=1)
def test_a_sweep_that_is_killed_goes_on_and_names_the_point_that_fails(
    project: Path, tracked: None, tmp_path: Path, prefect_server: str
) -> None:
    variables = environment(tmp_path, prefect_server)
    quiet = variables | {tracking.SWITCH: "off"}
    killed = subprocess.Popen(command(), cwd=project, env=quiet, stdout=subprocess.DEVNULL)
    log = project / "workspaces" / "sweep-numbers" / LOG
    wait_for(lambda: log.exists() and "working on 5" in log.read_text(), seconds=120)
    killed.kill()
    killed.wait()
    wait_for(lambda: not locks.holders(project / "workspaces" / "sweep-numbers"), 60)  # its stage dies a moment later

    ledger.add(project, [DOG])
    done = subprocess.run(command(), cwd=project, env=variables, capture_output=True, text=True, timeout=900)
    assert done.returncode == 1, done.stdout + done.stderr
    assert ledger.read(project / "workspaces/sweep-numbers" / ledger.FILE) == [DOG]
    said = done.stdout
    assert "== two, seed 1: done" in said
    assert "== five, seed 1: done" in said
    two, five = said.split("== numbers 2/3")[0], said.split("== numbers 2/3")[1].split("== numbers 3/3")[0]
    assert ("  ran," in two, "  ran," in five) == (False, True)
    assert "== broken, seed 1: failed: stage evaluate@tiny failed: evaluate: the number is wrong; give another one" in said
    assert "1 of 3 rows failed: broken, seed 1" in said

    results = project / "sweeps" / "numbers"
    table = json.loads((results / "table.json").read_text())
    two, five, broken = table["rows"]
    assert two["scores"]["fad_tagger"]["total"] == {"value": 2.1, "low": 1.1, "high": 3.1}
    assert five["scores"]["fad_tagger"]["difference"]["value"] == pytest.approx(3.0)
    assert "the number is wrong" in broken["failures"]["1"]
    assert "FAD 1.5 (other data)" in (results / "table.md").read_text()
    assert (results / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert not (project / "data" / "generated").exists()  # the project's own parameters and outputs are not touched

    flow_runs = ask(prefect_server, "flow_runs/filter", sort="START_TIME_DESC", limit=4)
    outcome = [run["name"] for run in flow_runs]
    assert outcome == ["numbers: broken, seed 1", "numbers: five, seed 1", "numbers: two, seed 1", "sweep numbers"]
    assert [run["state_type"] for run in flow_runs] == ["FAILED", "COMPLETED", "COMPLETED", "FAILED"]
    artifacts = ask(prefect_server, "artifacts/filter", artifacts={"flow_run_id": {"any_": [flow_runs[-1]["id"]]}})
    found: dict[str, Any] = {artifact["key"]: artifact for artifact in artifacts}
    assert found["sweep-numbers"]["type"] == "table"
    assert json.loads(found["sweep-numbers"]["data"])[0] == {
        "": "two", "fad_tagger": "2.1 (1.1 … 3.1)", "clips": "4", "paper": "FAD 1.5 (other data)", "failed": "",
    }  # fmt: skip
    assert "(data:image/png;base64," in found["sweep-numbers-figure"]["data"]

    recorded = runs(project)
    ours = next(run for run in recorded if run.info.run_name == "sweep/numbers")
    assert (ours.info.status, ours.data.tags["kind"]) == ("FAILED", "sweep")
    assert ours.data.metrics["five.fad_tagger"] == 5.1
    assert {"table.md", "table.csv", "table.json", "figures/figure.png"} <= set(files(project, ours.info.run_id))
    below = [run for run in recorded if run.data.tags.get("mlflow.parentRunId") == ours.info.run_id]
    assert [run.info.run_name for run in below] == [f"numbers: {point}, seed 1" for point in ("broken", "five", "two")]
    state = tracking.read_state(project, below[1].info.run_id)  # a point can be brought back, not only its sweep
    assert b"number: 5" in state.files["params.yaml"]


@pytest.mark.slow(minutes=1)
def test_two_points_at_a_time_each_have_a_workspace_and_run_a_common_stage_once(project, tmp_path, prefect_server):
    variables = environment(tmp_path, prefect_server) | {tracking.SWITCH: "off"}
    arguments = ["--points", "two,five", "execution.lanes.number=2", "evaluate.seconds=3.0"]
    file = project / "conf" / "sweep" / "numbers.yaml"
    file.write_text(FILE.replace(", evaluate.seconds=3.0", ""))
    done = subprocess.run(command(*arguments), cwd=project, env=variables, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in (project / "workspaces").iterdir()} == {"sweep-numbers", "sweep-numbers.lane2"}
    first = [line for line in done.stdout.splitlines() if "[1/2] first " in line]
    ends = sorted(line.partition("  ")[2].strip().partition(",")[0] for line in first)
    assert ends == ["done before: taken from the cache", "ran"]
    assert {line.partition(": [")[0] for line in first} == {"numbers: two, seed 1", "numbers: five, seed 1"}
    runs = ask(prefect_server, "flow_runs/filter", sort="START_TIME_DESC", flows={"name": {"any_": ["pipeline"]}}, limit=2)
    assert max(run["start_time"] for run in runs) < min(run["end_time"] for run in runs)
    rows = json.loads((project / "sweeps" / "numbers" / "table.json").read_text())["rows"]
    assert {row["name"]: row["scores"]["fad_tagger"]["total"]["value"] for row in rows} == {"two": 2.1, "five": 5.1}


# The files

SEEDS = {"steps": [3, 4], "guidance": [3, 4]}  # of sweeps whose points are all of one training; of the others one seed


@cache
def base_of(family: str) -> list[str]:
    """Overrides that name the base of a fine-tune, which is not there."""
    return [f"{family}.train.start_from=../base", f"{family}.autoencoder.weights.start_from=../base/autoencoder"]


@pytest.fixture
def without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps are planned without looking at their weights."""
    check = trials.registry.check
    monkeypatch.setattr(trials.registry, "check", lambda document, _: check(document))


def planned(name: str) -> list[sweep.Run]:
    """The runs of a sweep of the project, with these seeds."""
    own = [] if name == "tango_full" else ["corpus=esc"]  # its points have their own
    if name == "finetune":
        own += base_of("tango")
    return sweep.plan(ROOT, sweep.read(ROOT, name), [*own, "corpus.path=../somewhere"], [], SEEDS.get(name, [3]))


@pytest.mark.parametrize("name", sorted(trials.files(ROOT / "conf/sweep")))
@pytest.mark.slow(minutes=0.3)
@pytest.mark.usefixtures("without_weights")
def test_the_projects_sweeps_compose_and_their_points_differ(name: str) -> None:
    definition, runs = sweep.read(ROOT, name), planned(name)
    assert [(run.name, run.seed) for run in runs] == [(point, seed) for seed in SEEDS.get(name, [3]) for point in definition.points]
    assert definition.seeds.keys
    groups = {"events": {"one event", "several events"}, "labels": {"1 label"}, "categories": {"animals"}}
    ours = groups.get(definition.subsets, set()) if definition.subsets else set(definition.points)
    assert definition.paper is None or ours & set(definition.paper.rows)  # the paper's rows are called as ours are
    documents = [json.dumps(run.document, sort_keys=True) for run in runs]
    assert len(set(documents)) == len(runs)
    for run in runs:
        assert run.document["corpus"]["path"] == str((ROOT / "../somewhere").resolve())
        assert run.document["evaluate"]["subsets"] == ([definition.subsets] if definition.subsets else [])


@pytest.mark.slow
def test_points_of_one_training_differ_in_sampling_alone() -> None:
    for name in SEEDS:
        documents = [copy.deepcopy(run.document) for run in planned(name)]
        for document in documents:
            document["tango"].pop("generate")
        assert all(document == documents[0] for document in documents)


def test_a_mistake_is_named_before_anything_runs(project: Path) -> None:
    definition = sweep.read(project, "numbers")
    with pytest.raises(UserError, match=r"no sweep 'numbrs'; did you mean 'numbers'\?"):
        sweep.read(project, "numbrs")
    with pytest.raises(UserError, match=r"point 'two': .*first\.numbre"):
        sweep.plan(project, definition, ["first.numbre=3"], [], [])
    with pytest.raises(UserError, match="no point 'tow'; did you mean 'two'"):
        sweep.plan(project, definition, [], ["tow"], [])
    with pytest.raises(UserError, match=r"evaluate\.number=7: the points differ"):
        sweep.plan(project, definition, ["evaluate.number=7"], [], [])
    (project / "conf/sweep/numbers.yaml").write_text(FILE.replace("title:", "titel:"))
    with pytest.raises(UserError, match=r"numbers.yaml.titel: unknown key; did you mean 'title'\?"):
        sweep.read(project, "numbers")
    (project / "conf/sweep/numbers.yaml").write_text(FILE.replace("keys: [first.number]", "keys: []"))
    with pytest.raises(UserError, match=r"seeds\.keys: empty"):
        sweep.plan(project, sweep.read(project, "numbers"), [], [], [0, 1])


def test_a_fault_costs_only_its_point(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    definition = sweep.read(project, "numbers")
    points = sweep.Points(project, "sweep/numbers", project / "sweeps", sweep.plan(project, definition, [], [], []), definition)
    monkeypatch.setattr(sweep, "run_pipeline", lambda *arguments: 1 / 0)
    with disable_run_logger():
        (outcome,) = points.run(0, project)
    assert outcome.failure.startswith("ZeroDivisionError: division by zero")


def test_a_seed_goes_into_every_family_of_a_point(project: Path) -> None:
    definition = sweep.read(ROOT, "table4")
    keys = definition.seeds.model_copy(update={"keys": ["{family}.train.seed", "mixup.seed"]})
    (run,) = sweep.plan(ROOT, definition.model_copy(update={"seeds": keys}), ["model=[ddpm_mel,tango]"], ["random"], [5])
    assert run.overrides[-3:] == ["ddpm_mel.train.seed=5", "tango.train.seed=5", "mixup.seed=5"]


@pytest.mark.parametrize("family", ["tango", "audio_dit"])
@pytest.mark.usefixtures("without_weights")
def test_fine_tuning_is_swept_for_a_chosen_family(family: str) -> None:
    definition = sweep.read(ROOT, "finetune")
    extra = [f"model={family}", *base_of(family), f"{family}.train.lora.dropout=0.1"]  # of a group that the sweep adds
    runs = sweep.plan(ROOT, definition, extra, ["rank 2 - 100 steps", "rank 8 - 400 steps"], [])
    for run, (rank, steps) in zip(runs, [(2, 100), (8, 400)], strict=True):
        assert list(run.document["families"]) == [family]
        section = run.document[family]
        lora, start = section["train"]["lora"], section["autoencoder"]["weights"]["steps"]
        assert (lora["rank"], lora["alpha"], lora["dropout"], section["train"]["steps"], start) == (rank, 2 * rank, 0.1, steps, 0)
        assert section["generate"]["count"] is None
        stopping = [section["train"][key] for key in ("validate_every_steps", "patience", "use")]
        assert (stopping, section["generate"]["use"]) == ([25, 4, "best"], "best")
    with pytest.raises(UserError, match=rf"{family}\.train\.lora\.rank=4: the points differ"):
        sweep.plan(ROOT, definition, [f"model={family}", f"{family}.train.lora.rank=4"], [], [])


@pytest.mark.attack
def test_tango_full_is_one_sweep_of_two_trainings(tmp_path: Path, prefect_server: str) -> None:
    """The project's own sweep, shrunk, over the embedded corpus: the second training starts from the weights of the first."""
    home = copy_project(ROOT, tmp_path / "project")
    file = home / "conf/sweep/tango_full.yaml"
    text = re.sub("corpus=(union|audiocaps)", "corpus=synthetic", file.read_text()).replace("steps=200000", "steps=2")
    file.write_text(text.replace("steps=57000", "steps=3").replace("real_items=4", "real_items=1"))
    varied = ("tango.train.steps", "tango.train.real_items")
    shrunk = [one for one in SHRUNK if one.startswith(("tango.", "tagger.", "evaluate.", "corpus.")) and not one.startswith(varied)]
    command = [sys.executable, "-m", "soundmill", "sweep", "tango_full", "scale=laptop", "vocoder=griffin_lim", *shrunk]
    variables = environment(tmp_path, prefect_server) | {tracking.SWITCH: "off"}
    done = subprocess.run(command, cwd=home, env=variables, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (kept,) = (home / "sweeps/tango_full/models").glob("*/*")
    model = json.loads((home / "workspaces/sweep-tango_full/data/models/tango/config.json").read_text())
    assert (model["params"]["start_from"], model["params"]["steps"]) == (str(kept), 3)
    assert model["started_from"]["checkpoint"].startswith(kept.name.split()[1])
    rows = json.loads((home / "sweeps/tango_full/table.json").read_text())["rows"]
    assert {row["name"] for row in rows if row["scores"]} == {"full", "full-FT-AudioCaps", "base"}  # that is `full` on AudioCaps


def test_what_a_training_starts_from_is_an_earlier_point_of_the_same_run() -> None:
    definition = sweep.read(ROOT, "tango_full")
    with pytest.raises(UserError, match="'full-FT-AudioCaps' starts from the model of 'full'; choose that too"):
        sweep.plan(ROOT, definition, [], ["full-FT-AudioCaps"], [])
    with pytest.raises(UserError, match=r"execution\.lanes\.number: must be 1"):
        sweep.plan(ROOT, definition, ["execution.lanes.number=2"], [], [])
    with pytest.raises(ValueError, match="'full' must be a point, and 'later' one before it"):
        sweep.Sweep.model_validate(definition.model_dump() | {"start_from": {"full": "later"}})
