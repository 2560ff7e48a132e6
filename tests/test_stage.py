import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from soundmill import shards, stage
from tests.flows.tiny import DVC
from tests.imports import ROOT
from tests.lost_bits import lose_a_bit
from tests.processes import files_below, marked, new_mark, wait_for
from tests.test_code import installed

EXECUTION = "execution: {workers: 2, devices: null, dask: null, lanes: {number: 1, gpus: 0}}\n"

# A real stage, small: copies lines of a text to shards, one line a second where it is told to be slow.
STAGE = '''
import os, signal, sys, time
from pathlib import Path
from pydantic import Field
from soundmill import hashing, shards, stage
from soundmill.errors import UserError
from soundmill.params import StageParams
import pyarrow as pa

SCHEMA = pa.schema([("text", pa.string())])

class Params(StageParams):
    repeat: int = Field(ge=1)

def work(text, repeat, output):
    time.sleep(0.4 if text.startswith("slow") else 0)
    report = shards.Report()
    if "bad" in text:
        report.reject(text, "bad word")
    else:
        shards.write_rows([{"text": text}] * repeat, output, SCHEMA)
        report.count("lines")
    if not output.exists():
        shards.write_rows([], output, SCHEMA)
    return report

def run(
    params: Params, ctx: stage.Context, source: stage.Input, copies: stage.Output, note: stage.Output, picture: stage.Shown
) -> dict:
    """Copy lines."""
    lines = source.read_text().split()
    if not lines:
        raise UserError(f"{source}: is empty; put words in it")
    if "boom" in lines:
        raise RuntimeError("a fault at s3://key:hush@bucket\x1b[2J")
    report = ctx.map_shards(work, [shards.Job(shards.shard_name(i), (t, params.repeat)) for i, t in enumerate(lines)], copies)
    if "forget" not in lines:
        note.write_text("done")
    ctx.show("the picture", lambda: show(lines, note, picture))
    return dict(report.counts)

def show(lines, note, picture):
    if "kill" in lines:
        os.kill(os.getpid(), signal.SIGKILL)
    if "ugly" in lines:
        raise ValueError("x" * 5000 + "\\n is no picture")
    picture.write_text("of " + note.read_text())

if __name__ == "__main__":
    stage.main(run, section="copy")
'''


@pytest.fixture
def project(tmp_path):
    (tmp_path / "copy_stage.py").write_text(STAGE)
    (tmp_path / "params.yaml").write_text(EXECUTION + "copy: {repeat: 2}\n")
    (tmp_path / "words").write_text("one two bad three")
    return tmp_path


def command() -> list[str]:
    arguments = "--source words --copies out/copies --note out/note --metrics out/copy.json --quarantine out/rejected.parquet"
    return [sys.executable, "copy_stage.py", *arguments.split(), "--picture", "out/picture.png"]


def start(project: Path, **env: str) -> subprocess.Popen[str]:
    environ = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.Popen(command(), cwd=project, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run(project: Path, **env: str) -> tuple[int, str, str]:
    process = start(project, **env)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_outputs_metrics_and_quarantine_appear_scratch_goes_and_no_link_is_written_through(project):
    code, out, err = run(project)
    assert code == 0, err
    assert json.loads((project / "out/copy.json").read_text()) == {"lines": 3, "quarantined": 1}
    assert pq.read_table(project / "out/rejected.parquet").to_pylist() == [{"path": "bad", "reason": "bad word", "detail": ""}]
    assert "quarantined bad: bad word" in out
    assert len(list((project / "out/copies").glob("*.parquet"))) == 4
    assert (project / "out/note").read_text() == "done"
    assert {p.name for p in (project / "data/.work/copy").iterdir()} == {"lock", "cost.json"}
    cached = project / "cache"  # DVC may hard-link outputs to its cache
    os.link(project / "out/note", cached)
    (project / "params.yaml").write_text(EXECUTION + "copy: {repeat: 1}\n")
    before = cached.stat().st_ino
    run(project)
    assert cached.read_text() == "done"
    assert (project / "out/note").stat().st_ino != before


def test_what_only_shows_is_made_when_all_else_is_published(project):
    """A process that dies of it loses nothing; the next run shows what it can read where it was written."""
    (project / "words").write_text("one kill")
    code, _, _ = run(project)
    assert code == -signal.SIGKILL
    assert (project / "out/note").read_text() == "done"
    assert len(list((project / "out/copies").glob("*.parquet"))) == 2
    assert json.loads((project / "out/copy.json").read_text())["lines"] == 2
    assert not (project / "out/picture.png").exists()

    (project / "words").write_text("one")
    code, _, err = run(project)
    assert (code, err) == (0, "")
    assert (project / "out/picture.png").read_text() == "of done"
    assert not (project / "out/note").is_symlink()
    assert {p.name for p in (project / "data/.work/copy").iterdir()} == {"lock", "cost.json"}


def test_a_picture_that_fails_is_told_in_a_line_and_the_stage_ends_well(project):
    (project / "words").write_text("one ugly")
    code, _, err = run(project)
    assert code == 0
    (line,) = err.splitlines()
    assert re.fullmatch(r"copy: the picture could not be made: ValueError: x+… \(copy_stage\.py, line \d+\)", line)
    assert len(line) < 400
    assert (project / "out/note").read_text() == "done"
    assert (project / "out/picture.png").read_text() == f"out/picture.png was not written.\n{line}\n"


@pytest.mark.parametrize(
    ("words", "params", "said"),
    [
        ("", None, "words: is empty; put words in it"),
        ("one", EXECUTION + "copy: {repeet: 2}\n", "did you mean 'repeat'"),
        ("one", EXECUTION.replace("2", "0") + "copy: {repeat: 2}\n", "execution.workers"),
        ("one", EXECUTION, "section 'copy' is missing"),
        ("boom", None, "RuntimeError: a fault at s3://key@bucket\\x1b[2J"),
        (None, None, "--source words: no such file"),
        ("forget", None, "did not write its output out/note"),
    ],
)
def test_failures_are_messages_without_traceback_and_leave_no_outputs(project, words, params, said):
    if words is None:
        (project / "words").unlink()
    else:
        (project / "words").write_text(words)
    if params:
        (project / "params.yaml").write_text(params)
    code, _, err = run(project)
    assert code == 1
    assert said in err
    assert "Traceback" not in err
    assert not (project / "out/copy.json").exists()
    if words == "boom":  # a fault of ours
        assert "data/.work/copy.traceback.txt" in err
        assert said in (project / "data/.work/copy.traceback.txt").read_text()


def shards_done(project: Path) -> list[Path]:
    return list((project / "data/.work/copy").glob("*/copies/*.report.json"))


@pytest.mark.slow
def test_what_a_killed_run_left_outlives_other_failed_runs_and_goes_when_the_stage_ends_well(project):
    """So an edit that is taken back costs no finished work, and a package that comes along none at all."""
    words = " ".join(f"slow{n}" for n in range(6))
    (project / "words").write_text(words)
    assert run(project)[0] == 0
    unbroken, mark = dict(files_below(project / "out")), new_mark()
    process = start(project, **mark)
    wait_for(lambda: len(shards_done(project)) >= 2, pause=0.05, of=process)
    process.kill()
    process.wait()
    wait_for(lambda: not marked(mark))  # its workers end a moment later
    stamps = {path: path.stat().st_mtime_ns for path in shards_done(project)}
    (project / "words").write_text("boom")
    assert run(project)[0] == 1
    assert {path: path.stat().st_mtime_ns for path in shards_done(project)} == stamps
    (project / "words").write_text(words)
    process = start(project, PYTHONPATH=f"{ROOT}:{installed(project / 'installed', 'unrelated', '9.9', 'unrelated')}")
    wait_for(lambda: len(shards_done(project)) > len(stamps), pause=0.05, of=process)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    assert process.wait() == 0
    assert dict(files_below(project / "out")) == unbroken
    assert {path.name for path in (project / "data/.work/copy").iterdir()} == {"lock", "cost.json"}


@pytest.mark.slow
def test_a_second_run_of_a_living_stage_is_refused_by_name(project):
    (project / "words").write_text(" ".join(f"slow{n}" for n in range(60)))
    first = start(project)
    wait_for(lambda: len(shards_done(project)) >= 1, pause=0.05, of=first)
    code, _, err = run(project)
    first.kill()
    first.communicate()
    assert code == 1
    assert f"already running (process {first.pid})" in err


@pytest.mark.slow
def test_a_kept_shard_with_a_lost_bit_is_not_published_by_dvc_either(project):
    """It is one file with DVC's copy, which DVC would link into the output again in place of the one made anew."""
    keyed = STAGE.replace("(t, params.repeat))", "(t, params.repeat), key=t)")
    keyed = keyed.replace("repeat, output)", "repeat, output, previous=None)")
    (project / "copy_stage.py").write_text(keyed)
    outs = "outs: [out/copies, out/note, out/rejected.parquet]"
    metrics = "metrics: [out/copy.json: {cache: false}]"
    (project / "dvc.yaml").write_text(f"stages: {{copy: {{cmd: {' '.join(command())}, deps: [words], {outs}, {metrics}}}}}")
    (project / ".dvc").mkdir()
    (project / ".dvc/config").write_text("[core]\nno_scm = true\nanalytics = false\n[cache]\ntype = hardlink\n")

    def repro() -> str:
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run([DVC, "repro"], cwd=project, env=environ, text=True, capture_output=True, check=True).stdout

    repro()
    fresh = dict(files_below(project / "out"))
    shard = project / "out/copies" / shards.shard_name(1)
    assert shard.stat().st_nlink == 3  # the output, DVC's cache and what is kept
    lose_a_bit(shard, 0.5)
    assert dict(files_below(project / "out")) != fresh
    (project / "words").write_text("one two bad three ")
    said = repro()
    assert dict(files_below(project / "out")) == fresh
    assert "1 damaged and rebuilt (shard-00001.parquet)" in said


def test_home_of_a_temporary_experiment_is_the_checkout(tmp_path):
    temporary = tmp_path / ".dvc/tmp/exps/tmpabc"
    temporary.mkdir(parents=True)
    assert stage.project_home(temporary) == tmp_path
    assert stage.project_home(tmp_path) == tmp_path


def test_how_far_a_stage_is_is_told_in_lines_where_there_is_no_terminal(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(stage, "time", SimpleNamespace(monotonic=lambda: now[0]))
    context = stage.Context.__new__(stage.Context)  # nothing of it is used
    with context.progress(4, "resample") as tick:
        for _ in range(3):
            now[0] += 31
            tick(1)
        tick(1)
    with context.progress(0, "scan", "file") as tick:
        now[0] += 31
        tick(7)
    assert capsys.readouterr().out.splitlines() == ["resample: 25%", "resample: 50%", "resample: 75%", "scan: 7 files"]
