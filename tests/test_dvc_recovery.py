"""A `dvc exp run` that is killed or fills the disk: its leftovers are reported, with commands that restore the changes."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows import dvc, run
from soundmill import dvc_recovery
from soundmill.commands import doctor
from soundmill.errors import UserError
from tests.commands.running import soundmill
from tests.flows.tiny import dvc_command, git, make_tiny, with_dvc
from tests.imports import ROOT

# `dvc exp run` as it is, which kills itself before its Nth change of git.
KILLED = """
import os, signal, sys
from scmrepo.git import Git

left = int(sys.argv[1])
for name in ("set_ref", "checkout", "reset", "_stash_push", "_stash_apply", "_stash_drop"):
    def wrapped(self, *args, _real=Git.__dict__[name], **options):
        global left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return _real.__get__(self, type(self))(*args, **options)
    setattr(Git, name, wrapped)

from dvc.cli import main
sys.exit(main(["exp", "run", "--quiet", "-S", "first.number=3"]))
"""


# Before these changes of git: all set aside; applied again on no branch; the experiment is a stash too; all is back, and the
# stash still there; the experiment's stash has its name; the files are the commit's.
MOMENTS = (2, 4, 9, 10, 14, 16)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("experiments") / "prepared")


def edited(prepared: Path, root: Path) -> Path:
    """A copy of the tiny project with uncommitted changes: a file is other, one is new to git, one is gone."""
    shutil.copytree(prepared, root)
    (root / "first.py").write_text((root / "first.py").read_text() + "# uncommitted\n")
    (root / "new file.txt").write_text("new\n")
    git(root, "add", "new file.txt")
    (root / ".dvcignore").unlink()
    return root


def changes(root: Path) -> set[str]:
    """Which of the changes are in the files; whether git was told of the new one does not count."""
    first = "# uncommitted" in (root / "first.py").read_text()
    done = {"first.py": first, "new file.txt": (root / "new file.txt").exists(), ".dvcignore": not (root / ".dvcignore").exists()}
    return {name for name, there in done.items() if there}


def kill_at(root: Path, number: int) -> int:
    command = [sys.executable, "-c", KILLED, str(number)]
    return subprocess.run(command, cwd=root, env=with_dvc(PYTHONPATH=str(ROOT)), capture_output=True).returncode


def follow(root: Path, text: str) -> None:
    """Type the commands that a remedy tells, but those that only look."""
    for command in re.findall("`((?:git|rm) [^`]*)`", text):
        if not command.startswith("git diff"):
            subprocess.run(command, shell=True, cwd=root, check=True, capture_output=True)


@pytest.mark.slow
def test_wherever_it_is_killed_the_changes_are_there_or_their_way_back_is_told(prepared: Path, tmp_path: Path) -> None:
    before = changes(edited(prepared, tmp_path / "before"))
    assert len(before) == 3
    away = 0
    for number in MOMENTS:
        root = edited(prepared, tmp_path / str(number))
        assert kill_at(root, number) == -9
        gone = before - changes(root)
        found = dvc_recovery.leftovers(root)
        missing = [leftover for leftover in found if leftover.changes_missing]
        if not gone:  # what DVC was about to put into params.yaml may be
            assert all(" aside: params.yaml are in " in leftover.what for leftover in missing), (number, found)
        else:
            assert missing, number
            away += 1
            with pytest.raises(UserError, match="Nothing was run"):
                dvc.check_changes(root, print)
        for leftover in found:
            follow(root, leftover.remedy)
        assert changes(root) == before, (number, found)
        assert (root / ".git/HEAD").read_text() == "ref: refs/heads/main\n"
        assert dvc_recovery.leftovers(root) == []
    assert away == 3  # kills that found the changes in a stash alone


@pytest.fixture
def killed(prepared: Path, tmp_path: Path) -> Path:
    root = edited(prepared, tmp_path / "killed")
    kill_at(root, 3)
    return root


def test_doctor_gives_the_remedy_and_commands_that_run_no_stage_do_not_look(killed: Path) -> None:
    remedy = "`git restore --source='stash@{0}' -- .dvcignore first.py 'new file.txt'`, then"
    assert "stash" not in soundmill("weights", "list", cwd=killed).stderr
    finding = doctor._changes(killed)
    assert finding.state == "lacking"
    assert remedy in finding.remedy
    follow(killed, finding.remedy)
    assert doctor._changes(killed).state == "ok"


@pytest.mark.slow
def test_the_flow_refuses_to_run_without_the_changes(killed: Path, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    environment |= {"PYTHONPATH": str(ROOT), "PREFECT_HOME": str(tmp_path / "prefect")}
    command = [sys.executable, "-m", "flows.run"]
    done = subprocess.run(command, cwd=killed, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "git restore --source='stash@{0}'" in done.stdout
    assert not (killed / "data").exists()


def test_a_stash_of_the_persons_own_is_not_spoken_of(prepared: Path, tmp_path: Path) -> None:
    root = edited(prepared, tmp_path / "own")
    git(root, "stash")
    assert dvc_recovery.leftovers(root) == []
    (root / "first.py").write_text("# other\n")
    git(root, "stash", "push", "-m", "with a message")
    assert dvc_recovery.leftovers(root) == []


def test_files_that_were_changed_since_are_compared_not_overwritten(killed: Path) -> None:
    (killed / "first.py").write_text("# changed since\n")
    found = dvc_recovery.leftovers(killed)[0]
    assert "git diff 'stash@{0}' -- first.py" in found.remedy
    assert "restore --source='stash@{0}' -- .dvcignore 'new file.txt'`" in found.remedy
    subprocess.run("git restore --source='stash@{0}' -- .dvcignore 'new file.txt'", shell=True, cwd=killed, check=True)
    found = dvc_recovery.leftovers(killed)[0]
    assert not found.changes_missing
    assert (killed / "first.py").read_text() == "# changed since\n"


def test_a_run_names_a_leftover_once(killed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The pipeline names it, or the command itself if no pipeline has to start."""
    subprocess.run("git restore --source='stash@{0}' -- .dvcignore 'new file.txt'", shell=True, cwd=killed, check=True)
    (killed / "first.py").write_text("# changed since\n")
    monkeypatch.chdir(killed)
    monkeypatch.setattr("flows.pipeline.run_to_end", lambda *_: 0)
    assert run.main([]) == 0
    assert "git diff" not in capsys.readouterr().out
    monkeypatch.setattr(run, "up_to_date", lambda *_: True)
    assert run.main([]) == 0
    assert capsys.readouterr().out.count("`git diff 'stash@{0}' -- first.py` shows") == 1


def test_changes_that_a_lock_of_git_takes_away_are_told(prepared: Path, tmp_path: Path) -> None:
    """DVC sets them aside, finds the lock that a full disk has left, and does not put them back."""
    root = edited(prepared, tmp_path / "locked")
    before = changes(root)
    (root / ".git/index.lock").touch()
    os.utime(root / ".git/index.lock", (1, 1))
    for _ in range(2):
        assert "the index is locked" in dvc_command(root, "exp", "run", "-S", "first.number=3").stderr
    assert changes(root) != before
    found = dvc_recovery.leftovers(root)
    assert "merge conflicts" in found[0].what
    assert found[1].changes_missing
    for leftover in dvc_recovery.leftovers(root):
        follow(root, leftover.remedy)
    assert changes(root) == before
    assert dvc_recovery.leftovers(root) == []


def test_locks_that_were_left_are_named(prepared: Path, tmp_path: Path) -> None:
    root = edited(prepared, tmp_path / "locked")
    (root / ".git/index.lock").touch()
    assert dvc_recovery.leftovers(root) == []  # of somebody who is at work
    (root / ".dvc/tmp/exps").mkdir(parents=True)
    (root / ".dvc/tmp/exps/rwlock").touch()
    for path in (root / ".git/index.lock", root / ".dvc/tmp/exps/rwlock"):
        os.utime(path, (1, 1))
    failed = dvc_command(root, "exp", "run")
    assert "JSON structure is corrupted" in failed.stderr
    index, rwlock = dvc_recovery.leftovers(root)
    assert "merge conflicts" in index.what
    assert "DVC fails on it" in rwlock.what
    follow(root, index.remedy + rwlock.remedy)
    assert dvc_recovery.leftovers(root) == []


def test_outside_git_nothing_is_left(tmp_path: Path) -> None:
    assert dvc_recovery.leftovers(tmp_path) == []
