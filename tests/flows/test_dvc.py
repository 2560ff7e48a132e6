"""The graph's order, a stage's own words, DVC's locks and its lock file: with the real `dvc` in a tiny project."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flows import dvc
from soundmill.commands import doctor
from soundmill.errors import UserError
from tests.flows.tiny import dvc_command

GOOD = """schema: '2.0'
stages:
  first:
    cmd: python first.py
    deps:
    - {path: first.py, hash: md5, md5: 0123456789abcdef0123456789abcdef, size: 3}
    outs:
    - {path: data/first, hash: md5, md5: 0123456789abcdef0123456789abcdef.dir, size: 3, nfiles: 1}
"""


def test_stages_come_after_all_they_need(tiny: Path) -> None:
    assert dvc.stages(tiny) == [
        dvc.Stage("first", frozenset()),
        dvc.Stage("evaluate@tiny", frozenset({"first"})),
    ]


def test_the_order_does_not_depend_on_how_the_graph_lists_it() -> None:
    names = ["evaluate", "train", "mels", "clips"]
    above = {"evaluate": {"train", "clips"}, "train": {"mels"}, "mels": {"clips"}}
    ordered = dvc._sorted(names, above)
    assert [stage.name for stage in ordered] == ["clips", "mels", "train", "evaluate"]
    assert ordered[-1].needs == {"clips", "mels", "train"}


def test_a_graph_that_dvc_refuses_is_told_in_its_words(tiny: Path) -> None:
    (tiny / "dvc.yaml").write_text("stages:\n  first:\n    cmd: [1\n")
    with pytest.raises(UserError, match=r"`dvc dag --dot` failed.*"):
        dvc.stages(tiny)


@pytest.mark.slow
def test_a_stage_runs_once_with_this_python_and_says_its_lines(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # the environment is not activated
    monkeypatch.setenv("SOUNDMILL_TRACKING", "off")
    lines: list[str] = []
    assert set(dvc.changed(tiny)) == {"first", "evaluate@tiny"}
    assert dvc.repro(tiny, "first", lines.append) == "ran"
    assert lines == ["working on 1"]
    assert set(dvc.changed(tiny)) == {"evaluate@tiny"}
    assert dvc.repro(tiny, "first", lines.append) == "unchanged"
    (tiny / "data" / "first.txt").unlink()
    assert dvc.repro(tiny, "first", lines.append) == "cached"
    assert dvc.repro(tiny, "first", lines.append, force=True) == "ran"
    assert dvc.metrics_of(tiny, {"first", "evaluate@tiny"}) == [tiny / "data/metrics/first.json"]
    assert dvc.outputs_of(tiny, "first") == ["data/first.txt", "data/metrics/first.json"]


@pytest.mark.slow
def test_a_failing_stage_shows_its_own_last_lines(
    tiny: Path, set_param: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOUNDMILL_TRACKING", "off")
    set_param("first", fail=True)
    with pytest.raises(dvc.StageFailed) as caught:
        dvc.repro(tiny, "first", lambda line: None)
    assert caught.value.lines == ["working on 1", "first: the number is wrong; give another one"]
    assert not caught.value.passing  # another try would say the same
    set_param("first", fail="perhaps")
    with pytest.raises(dvc.StageFailed, match=r"first\.fail: Input should be a valid boolean"):
        dvc.repro(tiny, "first", lambda line: None)


def test_a_killed_stage_may_pass_another_time() -> None:
    lines = ["Running stage 'first':", "> python first.py", "working on 1"]
    failed = dvc._failure(
        "first", [*lines, "ERROR: failed to reproduce 'first': failed to run: python first.py, exited with -9"], 255
    )
    assert failed.passing
    assert failed.lines[0] == "working on 1"
    assert "SIGKILL" in failed.lines[-1]
    busy = dvc._failure("first", ["ERROR: 'data/first.txt' is busy, it is being blocked by:", "  (PID 1): dvc repro"], 255)
    assert busy.passing
    assert "(PID 1): dvc repro" in str(busy)


@pytest.mark.slow
def test_who_holds_the_lock_is_said_and_waited_for(tiny: Path, set_param: Callable[..., None]) -> None:
    set_param("first", seconds=60.0)
    environment = {**dvc.environment(), "SOUNDMILL_TRACKING": "off"}
    typed = subprocess.Popen([dvc.executable(), "repro"], cwd=tiny, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        for line in typed.stdout:
            if line.startswith("working"):
                break
        (holder,) = dvc.holders(tiny)
        assert holder.pid == typed.pid
        with pytest.raises(UserError, match=rf"in use by process {typed.pid} \(.*dvc repro\)"):
            dvc.wait_until_free(tiny, 0, print)
        said: list[str] = []
        os.kill(typed.pid, signal.SIGKILL)  # what it leaves in DVC's rwlock is a dead process
        typed.wait()
        dvc.wait_until_free(tiny, 30, said.append)
    finally:
        typed.kill()
    assert dvc.holders(tiny) == []


def test_a_number_taken_over_by_another_process_holds_nothing(tiny: Path) -> None:
    lock = tiny / ".dvc" / "tmp" / "rwlock"
    lock.parent.mkdir(exist_ok=True)
    lock.write_text(json.dumps({"write": {"/x": {"pid": os.getpid(), "cmd": "dvc repro"}}}))
    assert [holder.pid for holder in dvc.holders(tiny)] == [os.getpid()]
    long_ago = time.time() - 10 * 365 * 86400
    os.utime(lock, (long_ago, long_ago))
    assert dvc.holders(tiny) == []
    lock.write_text("{ half")
    assert dvc.holders(tiny) == []


def test_a_process_that_ended_and_that_nobody_asks_after_holds_nothing(tiny: Path) -> None:
    """A `dvc` whose parent was killed stays in the list of processes in a container without an init."""
    ended = subprocess.Popen(["true"])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # ended, and still listed
    lock = tiny / ".dvc" / "tmp" / "rwlock"
    lock.parent.mkdir(exist_ok=True)
    lock.write_text(json.dumps({"write": {"/x": {"pid": ended.pid, "cmd": "dvc repro"}}}))
    assert Path(f"/proc/{ended.pid}").exists()
    assert dvc.holders(tiny) == []
    ended.wait()


def test_locks_that_a_killed_dvc_left_empty_are_moved_away(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain `dvc repro` refuses them; doctor gives the remedy; the flow applies it, unless a `dvc` runs."""
    monkeypatch.setenv("SOUNDMILL_TRACKING", "off")
    lock = tiny / ".dvc" / "tmp" / "rwlock"
    lock.parent.mkdir(exist_ok=True)
    lock.touch()
    refused = dvc_command(tiny, "repro", "first")
    assert "Unable to read RWLock-file" in refused.stderr
    (finding,) = (found for found in doctor.examine(tiny) if found.name == "changes")
    assert (finding.state, finding.remedy) == ("lacking", f"when no dvc runs here: `rm '{lock}'`")

    other = subprocess.Popen(["dvc", "60"], executable="/bin/sleep", cwd=tiny)
    try:
        with pytest.raises(UserError, match=f"unreadable, and process {other.pid} "):
            dvc.repro(tiny, "first", print)
    finally:
        other.kill()
        other.wait()
    said: list[str] = []
    assert dvc.repro(tiny, "first", said.append) == "ran"
    assert said == [
        ".dvc/tmp/rwlock was unreadable, left so by a `dvc` that was killed: moved to rwlock.unreadable beside it",
        "working on 1",
    ]
    assert [found.state for found in doctor.examine(tiny) if found.name == "changes"] == ["ok"]


def test_one_pipeline_at_a_time(tiny: Path) -> None:
    code = (
        "from pathlib import Path; from flows import dvc\n"
        "with dvc.only_one(Path('.'), 0, print):\n print('in', flush=True); input()"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    other = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tiny, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "in\n"
    with pytest.raises(UserError, match=f"a pipeline runs here already: process {other.pid}"), dvc.only_one(tiny, 0, print):
        pass
    other.communicate("\n")
    with dvc.only_one(tiny, 0, print):
        pass


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (GOOD, None),
        ("schema: '2.0'\n", None),
        (GOOD[: GOOD.index("cdef.dir")], "not readable as YAML"),
        (GOOD.replace("abcdef.dir", "ab"), "the hash of data/first is cut"),
        (GOOD.replace(", md5: 0123456789abcdef0123456789abcdef.dir, size: 3, nfiles: 1", ""), "data/first has no hash"),
        (GOOD.replace("    cmd: python first.py\n", ""), "no command"),
        ("", "expected sections"),
        (GOOD[:-1], "last line is cut"),
        (GOOD.replace("schema: '2.0'", "schema: '2"), "not readable"),
    ],
)
def test_a_cut_lock_file_is_noticed(tmp_path: Path, text: str, fault: str | None) -> None:
    path = tmp_path / "dvc.lock"
    path.write_text(text)
    found = dvc.lock_fault(path)
    assert found is None if fault is None else fault in str(found)


def test_the_last_whole_lock_file_comes_back(tmp_path: Path) -> None:
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    lock = tmp_path / "dvc.lock"
    assert dvc.keep_lock_whole(tmp_path) is None  # none yet
    lock.write_text(GOOD)
    assert dvc.keep_lock_whole(tmp_path) is None
    lock.write_text(GOOD[:150])
    assert "the last whole one is back" in str(dvc.keep_lock_whole(tmp_path))
    assert lock.read_text() == GOOD
    (tmp_path / dvc.GOOD_LOCK).unlink()
    lock.write_text(GOOD[:150])
    assert "made anew" in str(dvc.keep_lock_whole(tmp_path))
    assert not lock.exists()


def test_bars_and_colours_are_kept_out_of_the_lines() -> None:
    reader, writer = os.pipe()
    text = b"one\r\n\x1b[32mtwo\x1b[0m\nresample:  10%|#   | 1/10 [00:01<00:09]\rresample: 100%|####| 10/10 [00:02<00:00]\nlast"
    os.write(writer, text)
    os.close(writer)
    assert list(dvc._lines(reader, False, time.monotonic())) == ["one", "two", "last"]
    os.close(reader)


def test_dvc_is_found_beside_this_python(tiny: Path) -> None:
    assert Path(dvc.executable()).parent == Path(sys.executable).parent
    assert dvc.environment()["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert dvc_command(tiny, "status").returncode == 0
