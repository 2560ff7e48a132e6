"""The flow on a real Prefect server, over a tiny project: tasks, artifacts, the run in MLflow, and what a person reads."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows import dvc, locks, run, scores, terminal
from flows.run import up_to_date
from flows.terminal import LOG, Row
from soundmill import params, tracking
from soundmill.errors import UserError
from tests.checkouts import HARDEST_NAME
from tests.flows.prefect_server import ROOT, ask, environment, proxy
from tests.flows.tiny import dvc_command, git, hold
from tests.mlflow_server import Server
from tests.processes import assert_nothing_is_left, contents, end_process, marked, new_mark, ports, wait_for
from tests.tracking.reading import client


def pipeline(project: Path, tmp_path: Path, server: str | None, *words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.run", *words]
    done = subprocess.run(command, cwd=project, env=environment(tmp_path, server), capture_output=True, text=True, timeout=300)
    assert (done.returncode, "Traceback" in done.stdout + done.stderr) == (status, False), done.stdout + done.stderr
    return done


def started(project: Path, variables: dict[str, str], *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """The flow at work, and all that it says in its output."""
    command, said = [sys.executable, "-m", "flows.run", *arguments], {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=project, env=variables, text=True, **said, **options)


def runs(project: Path) -> list[Any]:
    """Newest first."""
    assert tracking.sync(project)[0] == 0
    return list(client(project).search_runs(["1"]))


@pytest.mark.parametrize("tiny", [HARDEST_NAME], indirect=True)
def test_a_run_and_a_second_one(tiny, tracked, tmp_path, prefect_server, set_param):
    done = pipeline(tiny, tmp_path, prefect_server)
    assert [line.split("  ")[0] for line in done.stdout.splitlines() if "/2]" in line] == ["[1/2] first", "[2/2] evaluate@tiny"]
    assert "working on 2" not in done.stdout
    assert "working on 2" in (tiny / LOG).read_text()
    assert f"Log      {LOG}" in done.stdout
    assert "Sounds   data/generated/tiny (WAV files: 1)" in done.stdout
    assert "make browse" in done.stdout
    (flow_run,) = ask(prefect_server, "flow_runs/filter", sort="START_TIME_DESC", limit=1)
    assert flow_run["state_type"] == "COMPLETED"
    tasks = ask(prefect_server, "task_runs/filter", flow_runs={"id": {"any_": [flow_run["id"]]}})
    assert {(task["name"], task["state_name"]) for task in tasks} == {("first", "Ran"), ("evaluate@tiny", "Ran")}
    logs = ask(prefect_server, "logs/filter", logs={"flow_run_id": {"any_": [flow_run["id"]]}})
    assert "working on 1" in {log["message"] for log in logs}
    artifacts = ask(prefect_server, "artifacts/filter", artifacts={"flow_run_id": {"any_": [flow_run["id"]]}})
    described = {artifact["key"]: artifact["description"] for artifact in artifacts}
    assert {"pipeline-progress", "pipeline-scores", "mlflow"} <= described.keys()
    assert "(http://" in described["mlflow"]
    evaluate, first, parent = runs(tiny)
    assert {run.info.status for run in (evaluate, first, parent)} == {"FINISHED"}
    assert evaluate.data.tags["mlflow.parentRunId"] == first.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.data.tags["prefect_flow_run"] == flow_run["id"]

    done = pipeline(tiny, tmp_path, "http://127.0.0.1:9/api")  # no server is asked where nothing is to be done
    assert "Nothing has changed" in done.stdout
    assert "Sounds   data/generated/tiny (WAV files: 1)" in done.stdout
    assert len(runs(tiny)) == 3

    set_param("first", seconds=0.01)  # its outputs stay as they are, so DVC is not asked about what needs them
    done = pipeline(tiny, tmp_path, prefect_server)
    lines = [line.rstrip() for line in done.stdout.splitlines() if "/2]" in line]
    assert "ran, " in lines[0], lines
    assert lines[1:] == ["[2/2] evaluate@tiny  up to date"], lines
    assert dvc_command(tiny, "status").stdout.strip() == "Data and pipelines are up to date."

    set_param("first", number=7)
    done = pipeline(tiny, tmp_path, prefect_server, "first")
    assert (bool(re.search("first +ran", done.stdout)), "Sounds" in done.stdout) == (True, False)  # those of another model

    (tiny / "conf/model").mkdir(parents=True)
    shutil.copy(ROOT / "dvc.yaml", tiny / "dvc.yaml")
    document = params.read_yaml(ROOT / "params.yaml")
    document["evaluate"]["bootstrab"] = 7
    params.write_yaml(document, tiny / "params.yaml")
    done = pipeline(tiny, tmp_path, prefect_server, status=1)
    assert "params.yaml: evaluate.bootstrab: unknown key; did you mean 'bootstrap'?" in done.stdout
    assert "[1/2]" not in done.stdout


@pytest.mark.slow
def test_a_run_that_fails_and_one_that_finds_its_stages_in_the_cache(tiny, tracked, tmp_path, prefect_server, set_param):
    assert dvc_command(tiny, "repro", SOUNDMILL_TRACKING="off").returncode == 0
    set_param("evaluate", fail=True)
    done = pipeline(tiny, tmp_path, prefect_server, status=1)
    assert "first          up to date" in done.stdout
    assert "stage evaluate@tiny failed; its last lines:" in done.stdout
    assert "evaluate: the number is wrong; give another one" in done.stdout
    failed, parent, *_ = runs(tiny)
    assert (failed.info.status, parent.info.status) == ("FAILED", "FAILED")
    (flow_run,) = ask(prefect_server, "flow_runs/filter", sort="START_TIME_DESC", limit=1)
    artifacts = ask(prefect_server, "artifacts/filter", artifacts={"flow_run_id": {"any_": [flow_run["id"]]}})
    (card,) = (artifact for artifact in artifacts if artifact["key"] == "failed-stage")
    assert card["description"] == "`evaluate@tiny`: evaluate: the number is wrong; give another one"
    assert "the number is wrong" in parent.data.tags["end_reason"]
    assert parent.data.metrics["stages/first/number"] == 1.0
    assert "stages/evaluate/tiny/number" not in parent.data.metrics

    # A parameter put back: the first stage comes from the cache, and what lies below must notice.
    set_param("evaluate", fail=False)
    set_param("first", number=3)
    assert dvc_command(tiny, "repro", SOUNDMILL_TRACKING="off").returncode == 0
    set_param("first", number=1)
    done = pipeline(tiny, tmp_path, prefect_server)
    assert "done before: taken from the cache" in done.stdout
    assert (tiny / "data/generated/tiny/a.wav").read_text() == "2 1 "


@pytest.mark.slow
def test_a_flow_that_fails_sends_its_log_before_its_own_server_ends(tiny, tmp_path, set_param):
    set_param("first", fail=True)
    done = pipeline(tiny, tmp_path, None, "first", status=1)
    assert done.stdout.endswith("Log      data/pipeline.log\n")
    assert done.stderr == ""
    with contextlib.closing(sqlite3.connect(tmp_path / "prefect" / "prefect.db")) as database:
        sent = [message for (message,) in database.execute("SELECT message FROM log ORDER BY timestamp")]
    assert "first: the number is wrong; give another one" in sent
    assert "the number is wrong" in sent[-1]  # of the flow's end


@pytest.mark.slow
def test_an_interrupt_stops_the_stage_and_the_flows_own_server(tiny: Path, tmp_path: Path, set_param: Callable[..., None]) -> None:
    set_param("first", seconds=60.0)
    mark = new_mark()
    variables = environment(tmp_path, None) | mark
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may ignore it
    try:
        flow = started(tiny, variables, "first", start_new_session=True)
    finally:
        signal.signal(signal.SIGINT, before)
    wait_for(lambda: b"working on 1" in read(tiny / LOG), pause=0.1)
    os.killpg(flow.pid, signal.SIGINT)  # as Ctrl-C in a terminal
    said, _ = flow.communicate(timeout=300)
    assert flow.returncode == 130, said
    assert "interrupted; finished stages are kept" in said
    assert "Traceback" not in said
    assert_nothing_is_left(mark, set())


@pytest.mark.slow
def test_a_killed_flow_is_ended_as_crashed_by_the_next_one_and_both_are_offered(tiny, tmp_path, prefect_server, set_param):
    set_param("first", seconds=60.0)
    variables = environment(tmp_path, prefect_server)
    flow = started(tiny, variables, "first")
    wait_for(lambda: b"working" in read(tiny / LOG), pause=0.05)
    flow.kill()
    flow.wait()
    (before,) = ask(prefect_server, "flow_runs/filter", sort="START_TIME_DESC", limit=1)
    assert before["state_type"] == "RUNNING"
    set_param("first", seconds=0.0)
    pipeline(tiny, tmp_path, prefect_server, "first")
    now, before = ask(prefect_server, "flow_runs/filter", sort="START_TIME_DESC", limit=2)
    assert (now["state_type"], before["state_type"], before["state_name"]) == ("COMPLETED", "CRASHED", "Crashed")
    tasks = ask(prefect_server, "task_runs/filter", flow_runs={"id": {"any_": [before["id"]]}})
    assert {task["state_type"] for task in tasks} == {"CRASHED"}

    prefect = Path(sys.executable).parent / "prefect"
    flows = ("pipeline/on-demand", "sweep/on-demand", "bakeoff/on-demand")
    deploy = ["--no-prompt", "deploy", *(word for flow in flows for word in ("--name", flow))]
    for arguments in (["work-pool", "create", "soundmill", "--type", "process"], deploy):
        said = subprocess.run([prefect, *arguments], cwd=ROOT, env=variables, capture_output=True, text=True)
        assert said.returncode == 0, said.stdout + said.stderr
    offered = ask(prefect_server, "deployments/filter", work_pools={"name": {"any_": ["soundmill"]}})
    found = {deployment["entrypoint"] for deployment in offered}
    assert found == {"flows/pipeline.py:pipeline", "flows/sweep.py:sweep", "flows/bakeoff.py:bakeoff"}


@pytest.fixture
def flow(
    tiny: Path, tracked: None, tmp_path: Path, set_param: Callable[..., None]
) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """A flow whose first stage works for a minute, with a server of its own, and the mark of its processes."""
    set_param("first", seconds=60.0)
    mark = new_mark()
    process = started(tiny, environment(tmp_path, None) | mark, "first")
    yield process, mark
    process.kill()
    process.wait()


def kill(flow: subprocess.Popen[str], mark: dict[str, str], project: Path) -> None:
    assert flow.poll() is None, flow.stdout.read()
    before, listened = contents(project / "data"), ports(marked(mark))
    flow.kill()
    flow.wait()
    assert_nothing_is_left(mark, listened)
    assert contents(project / "data") == before


@pytest.mark.attack
def test_a_flow_killed_while_its_server_starts(flow: tuple[subprocess.Popen[str], dict[str, str]], tiny: Path) -> None:
    process, mark = flow
    wait_for(lambda: any("flows.server" in command for command in marked(mark).values()), pause=0.05)
    kill(process, mark, tiny)


@pytest.mark.slow(minutes=0.4)
def test_a_flow_killed_at_work(flow: tuple[subprocess.Popen[str], dict[str, str]], tiny: Path) -> None:
    process, mark = flow
    wait_for(lambda: b"working" in read(tiny / LOG))
    assert ports(pid for pid, command in marked(mark).items() if "flows.server" in command)
    assert locks.holders(tiny)
    kill(process, mark, tiny)
    assert locks.holders(tiny) == []
    wait_for(lambda: {run.info.status for run in runs(tiny)} == {"KILLED"}, seconds=30, pause=0.5)


@pytest.mark.slow(minutes=1)
def test_the_last_lines_say_what_mlflow_does_not_have_yet(tiny, tracked, tmp_path, prefect_server, set_param, monkeypatch):
    hold(tiny, "first")
    set_param("evaluate", seconds=5.0)  # in which the uploader meets the outage
    mlflow = Server(tmp_path)
    mlflow.start()
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow.address)
        with proxy() as (proxies, asked):  # for other machines only
            flow = started(tiny, environment(tmp_path, prefect_server) | proxies)
            wait_for(lambda: b"working on 1" in read(tiny / LOG) and runs(tiny))  # the uploader is at work
        assert asked == []
        mlflow.kill()
        (tiny / "go").touch()
        said = list(flow.stdout)
        assert flow.wait() == 0, said
        assert "Not in MLflow yet: 3 runs (" in said[-1]

        mlflow.start()
        wait_for(lambda: tracking.sync(tiny)[0] == 0, pause=0.1)
        assert {run.info.status for run in runs(tiny)} == {"FINISHED"}
    finally:
        (tiny / "go").touch()
        mlflow.kill()


@pytest.mark.slow
def test_a_schedule_runs_one_at_a_time_waits_for_a_typed_repro_and_pushes(tiny, tmp_path, prefect_server, set_param):
    assert dvc_command(tiny, "remote", "add", "--default", "store", str(tmp_path / "store")).returncode == 0
    set_param("first", seconds=600.0)
    command = [sys.executable, "-m", "flows.serve", "--cron", "0 3 * * *", "--wait-minutes", "5", "--push"]
    log = (tmp_path / "serve.log").open("w")
    server = subprocess.Popen(command, cwd=tiny, env=environment(tmp_path, prefect_server), stdout=log, stderr=log)
    variables = dvc.environment()
    typed = subprocess.Popen([dvc.executable(), "repro"], cwd=tiny, env=variables, stdout=subprocess.DEVNULL)
    try:
        of_ours = {"name": {"any_": ["scheduled"]}}
        (planned,) = wait_for(lambda: ask(prefect_server, "deployments/filter", deployments=of_ours), 200, pause=0.5)
        assert planned["global_concurrency_limit"]["limit"] == 1
        assert planned["concurrency_options"]["collision_strategy"] == "ENQUEUE"
        assert [schedule["schedule"]["cron"] for schedule in planned["schedules"]] == ["0 3 * * *"]
        assert locks.holders(tiny), "the typed repro should still be running"
        flow_run = ask(prefect_server, f"deployments/{planned['id']}/create_flow_run")

        def messages() -> list[str]:
            logs = ask(prefect_server, "logs/filter", logs={"flow_run_id": {"any_": [flow_run["id"]]}}, sort="TIMESTAMP_ASC")
            return [entry["message"] for entry in logs]

        wait_for(lambda: any(message.startswith(f"waiting for process {typed.pid} (") for message in messages()), pause=0.5)
        set_param("first", seconds=0.0)
        typed.kill()
        typed.wait()

        def end() -> str | None:
            (now,) = ask(prefect_server, "flow_runs/filter", flow_runs={"id": {"any_": [flow_run["id"]]}})
            return now["state_type"] if now["end_time"] else None

        assert wait_for(end, 200, pause=0.5) == "COMPLETED", "\n".join(messages())
        git(tiny, "add", "--all")
        git(tiny, "commit", "--quiet", "--message", "results")
        git(tmp_path, "clone", "--quiet", str(tiny), "other")
        assert dvc_command(tmp_path / "other", "pull").returncode == 0
        assert read(tmp_path / "other/data/generated/tiny/a.wav") == read(tiny / "data/generated/tiny/a.wav")
    finally:
        typed.kill()
        end_process(server)
        log.close()
        shutil.rmtree(Path(tempfile.gettempdir()) / "runner_storage", ignore_errors=True)  # Prefect's, which leaves it


def test_serve_says_what_to_do_without_a_server(tiny: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flows.serve"]
    (tmp_path / "prefect").mkdir()
    profile = 'active = "a"\n[profiles.a]\nPREFECT_API_URL = "http://127.0.0.1:9/api"\n'
    (tmp_path / "prefect" / "profiles.toml").write_text(profile)
    variables = environment(tmp_path, None)
    done = subprocess.run(command, cwd=tiny, env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert "no Prefect server at http://127.0.0.1:9/api" in said
    assert "make server" in said
    assert "Traceback" not in said
    command = [sys.executable, "-m", "flows.server", "--port", "70000"]
    assert b"--port 70000: give a number" in subprocess.run(command, cwd=tiny, env=variables, capture_output=True).stderr


@pytest.mark.slow
def test_a_server_that_dies_is_named_and_no_traceback_is_shown(tiny: Path, tmp_path: Path, set_param: Callable[..., None]) -> None:
    set_param("first", seconds=3.0)
    mark = new_mark()
    flow = started(tiny, environment(tmp_path, None) | mark | {"PREFECT_CLIENT_MAX_RETRIES": "0"})  # its patience is of minutes
    wait_for(lambda: b"working" in read(tiny / LOG), seconds=120)
    servers = [pid for pid, command in marked(mark).items() if "flows.server" in command]
    assert servers
    for pid in servers:
        os.kill(pid, signal.SIGKILL)
    said = list(flow.stdout)
    assert flow.wait() == 1, said
    assert "Prefect's server is gone" in "".join(said[-5:]), said  # a failure that was being told of may be told to its end
    assert not any("Traceback" in line for line in said)


@pytest.mark.slow
def test_a_fault_of_the_disk_is_told_in_a_line(tiny: Path, tmp_path: Path, prefect_server: str) -> None:
    """Here, of the flow's own log: in its place is what cannot be written to."""
    (tiny / LOG).mkdir(parents=True)
    done = pipeline(tiny, tmp_path, prefect_server, status=1)
    said = done.stdout + done.stderr
    assert f"pipeline: Is a directory ({tiny / LOG}); fix it and run again: finished stages are kept" in said


def read(path: str | Path) -> bytes:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return file.read()
    return b""


def test_an_error_that_nobody_expects_is_told_too(monkeypatch, capsys):
    from prefect.states import Failed

    from flows import pipeline as flow

    monkeypatch.setattr(flow.server, "address", lambda: "there")
    monkeypatch.setattr(flow.server, "use", lambda url: contextlib.nullcontext())
    states = Failed(data=KeyError("mel_families")), Failed(message="it was told")
    assert [flow.run_to_end("pipeline", "stages", lambda state=state: state) for state in states] == [1, 1]
    assert capsys.readouterr().out.splitlines()[1:] == [
        "pipeline: KeyError: 'mel_families'; finished stages are kept",
        "Prefect server there",
    ]


def test_choosing_stages_takes_what_they_need() -> None:
    from flows import pipeline as module

    needs = {"a": set(), "b@x": {"a"}, "b@y": {"a"}, "c": set()}
    graph = [dvc.Stage(name, frozenset(needed)) for name, needed in needs.items()]
    assert [stage.name for stage in module.select(graph, ["b"])] == ["a", "b@x", "b@y"]
    assert [stage.name for stage in module.select(graph, ["b@y"])] == ["a", "b@y"]
    assert module.select(graph, []) == graph
    with pytest.raises(UserError, match=r"no stage 'b@z'; did you mean 'b@"):
        module.select(graph, ["b@z"])


def test_scores_stand_beside_their_baselines() -> None:
    metrics = {"fad_tagger": 12.345, "kl_tagger": 1.5, "embedders": {"tagger": {}}}
    metrics["baselines"] = {"fad_tagger": {"silence": 99.0, "floor": 2.0, "codec": 5.0}}
    table = {"ddpm_mel": metrics}
    head, *rows = scores.rows(table)
    assert head == ["family", "score", "value", "floor", "codec", "silence"]
    assert rows == [["ddpm_mel", "fad_tagger", "12.3", "2", "5", "99"]]
    assert "| ddpm_mel | fad_tagger | 12.3  | 2     | 5     | 99      |" in scores.markdown(table)
    place = "FAD (tagger, 20 sounds) 12.1: between pieces of 200 ms (4.4) and random phases (20.6)"
    table["ddpm_mel"]["ladder"] = {"sentences": {"fad_tagger": place, "mmd_tagger": "MMD"}}
    for count, line in ((1, f"  {place}"), (2, f"  ddpm_mel: {place}")):
        families = dict(list({**table, "rave": {}}.items())[:count])
        lines = scores.closing_lines(ROOT, families)
        assert line in lines
        assert not any("MMD" in text for text in lines)
    assert scores.markdown({"x": {"fad": 1.0}}) == "No scores with baselines in data/metrics/evaluate."
    assert scores.markdown_table([["parameter"], ["{a|b}\nc"]]).splitlines()[2:] == [r"| {a\|b} c  |"]


def test_the_page_counts_the_recordings_that_a_scan_found(tmp_path: Path) -> None:
    params.write_yaml({"corpus": {"path": "/sounds", "external": ["auto"]}}, tmp_path / "params.yaml")
    for name, facts in {"train/x": {"clips": 3}, "corpus": {"recordings": 60}, "scan": {"recordings": 7}}.items():
        (path := tmp_path / f"data/metrics/{name}.json").parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(facts))
    assert "Trained on **sounds** (7 recordings): 3 clips" in scores.summary(tmp_path, {"x": {"baselines": {}}})


def test_only_what_dvc_finds_unchanged_needs_no_pipeline(tiny: Path, set_param: Callable[..., None]) -> None:
    assert not up_to_date(tiny, [])
    assert dvc_command(tiny, "repro").returncode == 0
    assert up_to_date(tiny, [])
    assert not up_to_date(tiny, ["no such stage"])  # the pipeline says so
    set_param("evaluate", number=7)
    assert not up_to_date(tiny, [])
    assert up_to_date(tiny, ["first"])
    set_param("evaluate", number=2)
    kept = (tiny / "data/metrics/first.json").rename(tiny / "kept.json")
    assert not up_to_date(tiny, [])
    kept.rename(tiny / "data/metrics/first.json")
    assert up_to_date(tiny, [])
    graph = (tiny / "dvc.yaml").read_text()
    (tiny / "dvc.yaml").write_text(graph.replace("    deps: [first.py]", "    deps: [first.py]\n    always_changed: true"))
    assert not up_to_date(tiny, [])  # as a scan of recordings that lie elsewhere


def test_mistakes_are_told_before_prefect_starts(tiny: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    (tiny / "params.yaml").write_text("evaluate: {number: [2}\n")
    done = pipeline(tiny, tmp_path, None, status=1)
    assert not re.search("Prefect|Traceback", done.stdout + done.stderr)
    assert "params.yaml: not readable as YAML" in done.stdout
    (tiny / "params.yaml").write_text("families: {tiny: {}}\n")
    monkeypatch.chdir(tiny)
    monkeypatch.setattr(run, "up_to_date", lambda *_: pytest.fail("went on"))
    assert run.main(["first.number=5"]) == 1
    assert "soundmill params KEY=VALUE" in capsys.readouterr().out
    (tiny / "params.yaml").unlink()
    (tiny / "params.yaml").mkdir()
    assert run.main([]) == 1
    assert "pipeline: Is a directory" in capsys.readouterr().out


def test_a_stage_is_one_line_and_all_it_says_is_in_the_log(capsys, monkeypatch):
    monkeypatch.setattr("flows.terminal.time.monotonic", iter([100.0, 121.4]).__next__)  # it begins; it has made three steps
    row = Row(log := io.StringIO(), "[1/2] train@x")
    row.line("train/x: resuming at step 2 of 300")
    first = {"remark": "resuming at step 2 of 300"}, {"done": 0.01, "left": 240}
    for facts in (*first, {"warning": "splits: warning: no clip is in test"}, {"done": 0.03, "left": 230}):
        row.note(facts)
    row.ended("ran, 4 min 22 s")
    assert capsys.readouterr().out == (
        "[1/2] train@x  resuming at step 2 of 300 …  takes about 4 min 21 s …  \nsplits: warning: no clip is in test\n"
        "ran, 4 min 22 s\n"
    )
    assert "    train/x: resuming at step 2 of 300\n" in log.getvalue()


def test_stages_at_the_same_time_have_a_whole_line_each_when_they_end(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (Row(io.StringIO(), head, several=True) for head in ("[1/2] train@x", "[2/2] tagger "))
    first.note({"done": 0.01, "left": 240})
    second.note({"done": 0.21})
    second.ended("ran, 5 s")
    first.ended("ran, 4 min 22 s")
    lines = ["[1/2] train@x  takes about 4 min 00 s", "[2/2] tagger   ran, 5 s", "[1/2] train@x  ran, 4 min 22 s"]
    assert capsys.readouterr().out.splitlines() == lines


def test_bars_of_stages_at_the_same_time_share_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rich allows one live display; it ends with the last stage."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    first, second = (Row(io.StringIO(), head, several=True) for head in ("first", "second"))
    bars = terminal._bars
    assert [task.description for task in bars.tasks] == ["first", "second"]
    second.note({"done": 0.21})
    first.ended("ran")
    assert [(task.description, task.completed) for task in terminal._bars.tasks] == [("second", 0.21)]
    second.close()
    assert terminal._bars is None
