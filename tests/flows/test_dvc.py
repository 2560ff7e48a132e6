"""The graph's order, a stage's own words, and a damaged dvc.lock: with the real `dvc` in a tiny project."""

import json
import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from flows import dvc
from soundmill import params
from soundmill.commands import doctor
from soundmill.errors import UserError
from tests.imports import ROOT


def test_stages_come_after_all_they_need(tiny):
    assert dvc.stages(tiny) == [dvc.Stage("first", frozenset()), dvc.Stage("evaluate@tiny", frozenset({"first"}))]


def test_the_order_does_not_depend_on_how_the_graph_lists_it():
    names = ["evaluate", "train", "mels", "clips"]
    above = {"evaluate": {"train", "clips"}, "train": {"mels"}, "mels": {"clips"}}
    ordered = dvc._sorted(names, above)
    assert [stage.name for stage in ordered] == ["clips", "mels", "train", "evaluate"]
    assert ordered[-1].needs == {"clips", "mels", "train"}


def test_a_dvc_whose_python_was_moved_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(dvc.sys, "executable", str(tmp_path / "python"))
    (tmp_path / "dvc").write_text("#!/old/place/bin/python\n")
    with pytest.raises(UserError, match=r"dvc needs /old/place/bin/python, which is gone; run `make clean-venv`"):
        dvc.executable()


def test_a_graph_that_dvc_refuses_is_told_in_its_words(tiny):
    (tiny / "dvc.yaml").write_text("stages:\n  first:\n    cmd: [1\n")
    with pytest.raises(UserError, match=r"`dvc dag --dot` failed.*"):
        dvc.stages(tiny)


@pytest.mark.slow
def test_a_stage_runs_once_with_this_python_and_says_its_lines(tiny, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # the environment is not activated
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
    assert [out["path"] for out in dvc.entry_of(tiny, "first")["outs"]] == ["data/first.txt", "data/metrics/first.json"]


@pytest.mark.slow
def test_a_failing_stage_shows_its_own_last_lines(tiny, set_param):
    set_param("first", fail=True)
    with pytest.raises(dvc.StageFailed) as caught:
        dvc.repro(tiny, "first", lambda line: None)
    assert caught.value.lines == ["working on 1", "first: the number is wrong; give another one"]
    assert not caught.value.transient  # another try would say the same
    set_param("first", fail="perhaps")
    with pytest.raises(dvc.StageFailed, match=r"first\.fail: Input should be a valid"):
        dvc.repro(tiny, "first", lambda line: None)


@pytest.mark.slow
def test_a_killed_stage_may_pass_another_time(tiny, set_param):
    set_param("first", seconds=60.0)

    def kill(line: str) -> None:
        (stage,) = (pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if is_first(pid))
        os.kill(stage, signal.SIGKILL)

    def is_first(pid: int) -> bool:
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            return words[1:2] == [b"first.py"] and Path(f"/proc/{pid}/cwd").samefile(tiny)
        return False

    with pytest.raises(dvc.StageFailed) as caught:
        dvc.repro(tiny, "first", kill)
    assert caught.value.transient
    assert caught.value.lines[0] == "working on 1"
    assert "killed" in caught.value.lines[-1]


@pytest.mark.slow
def test_what_dvc_itself_refuses_is_told_in_its_words(tiny):
    """A stage that never started: DVC lacks what it needs, and another `dvc` may hold what it needs."""
    with pytest.raises(dvc.StageFailed, match=r"data/first\.txt") as caught:
        dvc.repro(tiny, "evaluate@tiny", print)
    assert not caught.value.transient
    lock = tiny / ".dvc/tmp/rwlock"
    lock.write_text(json.dumps({"write": {str(tiny / "data/first.txt"): {"pid": os.getpid(), "cmd": "another dvc"}}, "read": {}}))
    with pytest.raises(dvc.StageFailed, match="another dvc") as caught:
        dvc.repro(tiny, "first", print)
    assert caught.value.transient


def test_a_stage_s_parameters_are_those_that_dvc_yaml_names():
    document = params.read_yaml(ROOT / "params.yaml")
    found = dvc.sections(ROOT, ["train@audio_dit", "tagger", "segment@default"])
    assert [*found.values()] == [document["audio_dit"]["train"], document["tagger"], document["clips"]["default"]]


def test_a_section_that_is_missing_is_named_with_the_nearest_one(tiny):
    path = tiny / "params.yaml"
    path.write_text(path.read_text().replace("evaluate:", "evaluat:"))
    with pytest.raises(UserError, match=r"section 'evaluate' is missing; did you mean 'evaluat'\?"):
        dvc.sections(tiny, ["first", "evaluate@tiny"])


GOOD = """schema: '2.0'
stages:
  first:
    cmd: python first.py
    deps:
    - {path: first.py, hash: md5, md5: 0123456789abcdef0123456789abcdef, size: 3}
    outs:
    - {path: data/first, hash: md5, md5: 0123456789abcdef0123456789abcdef.dir, size: 3, nfiles: 1}
"""


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (GOOD, None),
        ("schema: '2.0'\n", None),
        (GOOD[: GOOD.index("cdef.dir")], "not readable as YAML"),
        (GOOD.replace("abcdef.dir", "ab"), "the hash of data/first is truncated"),
        (GOOD.replace(", md5: 0123456789abcdef0123456789abcdef.dir, size: 3, nfiles: 1", ""), "data/first has no hash"),
        (GOOD.replace("    cmd: python first.py\n", ""), "no command"),
        (GOOD.replace("{path: first.py", "{file: first.py"), "stage first is not as"),
        ("schema: '2.0'\nstages: [first]\n", "`stages` is not as"),
        ("", "expected sections"),
        (GOOD[:-1], "last line is truncated"),
        (GOOD.replace("schema: '2.0'", "schema: '2"), "not readable"),
    ],
)
def test_a_cut_lock_file_is_noticed(tmp_path, text, fault):
    path = tmp_path / "dvc.lock"
    path.write_text(text)
    found = dvc.fault_of_lock(path)
    assert found is None if fault is None else fault in str(found)
    finding = doctor._dvc_lock(tmp_path)
    expected = ("ok", f"{text.count('cmd:')} stages built") if fault is None else ("lacking", found)
    assert (finding.state, finding.detail) == expected


def test_the_last_whole_lock_file_comes_back(tmp_path):
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    lock = tmp_path / "dvc.lock"
    assert dvc.keep_lock_intact(tmp_path) is None  # none yet
    lock.write_text(GOOD)
    assert dvc.keep_lock_intact(tmp_path) is None
    lock.write_text(GOOD[:150])
    assert "restored the last intact one" in str(dvc.keep_lock_intact(tmp_path))
    assert lock.read_text() == GOOD
    (tmp_path / dvc.LAST_INTACT).unlink()
    lock.write_text(GOOD[:150])
    assert "it is rebuilt" in str(dvc.keep_lock_intact(tmp_path))
    assert not lock.exists()
