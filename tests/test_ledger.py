"""The list of what is forgotten: no branch, no copy of the project and no process at the same time loses an entry of it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from soundmill import ledger
from soundmill.errors import UserError
from soundmill.stage import EXPERIMENTS
from tests.flows.tiny import CAT, COW, DOG, REST, forgotten_in, git, make_tiny, with_list
from tests.imports import ROOT


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return with_list(make_tiny(tmp_path / "a project"))


def test_entries_are_added_once_a_stretch_and_another_sound_of_one_id_on_their_own(project):
    assert ledger.add(project, [DOG, CAT]) == [DOG, CAT]
    assert ledger.add(project, [CAT, COW, COW]) == [COW]
    assert forgotten_in(project) == ["dog", "cat", "cow"]
    assert (project / ledger.FILE).read_text().startswith("# What no stage may use")
    stretch, other = DOG | {"start": 0.0, "end": 5.0}, DOG | {"digest": "d" * 32}
    assert ledger.add(project, [stretch, other, stretch]) == [stretch, other]
    (project / ledger.FILE).write_text("forgotten: {dog: 1}\n")
    with pytest.raises(UserError, match=r"forgotten\.yaml: `forgotten` must be a list"):
        ledger.update(project)


@pytest.mark.parametrize("lose", ["branch", "edit", "reset"])
def test_what_another_branch_or_an_edit_takes_out_is_in_force_and_comes_back(project, lose):
    git(project, "branch", "earlier")
    ledger.add(project, [DOG])
    if lose == "branch":
        git(project, "commit", "-qam", "Forget the dog")
        git(project, "switch", "-q", "earlier")
    elif lose == "reset":
        git(project, "reset", "-q", "--hard")
    else:
        ledger.write([], project / ledger.FILE)
    assert forgotten_in(project) == []
    assert ledger.missing(project) == [DOG]
    with pytest.raises(UserError, match=r"out of date: it lacks dog\.wav"):
        ledger.check(project)
    assert ledger.update(project) == [DOG]
    assert forgotten_in(project) == ["dog"]
    ledger.check(project)
    assert ledger.update(project) == []


def test_what_a_teammate_forgot_is_noted_too(project):
    ledger.write([CAT], project / ledger.FILE)  # as `git pull` brings it
    assert ledger.update(project) == []
    ledger.write([], project / ledger.FILE)
    assert ledger.missing(project) == [CAT]


@pytest.mark.parametrize("mistake", [{"resaon": "x"}, {"recording_id": ["dog"]}])
def test_a_mistake_is_named_and_not_copied(project, mistake):
    ledger.write([DOG | mistake], project / ledger.FILE)
    with pytest.raises(UserError, match=rf"forgotten\.yaml\.forgotten\.0\.{next(iter(mistake))}"):
        ledger.update(project)
    ledger.write([], project / ledger.FILE)
    assert ledger.missing(project) == []


def test_a_worktree_of_the_repository_is_bound(project, tmp_path):
    git(project, "worktree", "add", "-q", str(tmp_path / "other"), "-b", "other")
    ledger.add(project, [DOG])
    assert ledger.missing(tmp_path / "other") == [DOG]


@pytest.mark.parametrize("place", ["workspaces/mine", f"{EXPERIMENTS}/tmp1", "workspaces/reproduce-1/workspaces/its"])
def test_a_checkout_is_bound_by_those_that_it_lies_in_and_has_its_own(project, place):
    inner = project / place
    shutil.copytree(project, inner, ignore=shutil.ignore_patterns(".git", ".dvc", "workspaces"))
    git(inner, "init", "-q")
    ledger.add(inner, [CAT])
    ledger.add(project, [DOG])
    assert ledger.missing(inner) == [DOG]
    assert ledger.missing(project) == []
    assert ledger.update(inner) == [DOG]
    assert forgotten_in(inner) == ["cat", "dog"]
    assert forgotten_in(project) == ["dog"]
    assert ledger.is_own(inner, CAT)
    assert not ledger.is_own(inner, DOG)


def test_without_git_the_file_alone_counts(tmp_path):
    ledger.add(tmp_path, [DOG])
    assert forgotten_in(tmp_path) == ["dog"]
    ledger.check(tmp_path)
    ledger.remove(tmp_path, [DOG])
    assert ledger.in_force(tmp_path) == []


def test_only_removing_takes_an_entry_out_for_good(project):
    ledger.add(project, [DOG, CAT])
    ledger.remove(project, [DOG])
    assert forgotten_in(project) == ["cat"]
    assert ledger.update(project) == []
    assert forgotten_in(project) == ["cat"]


def test_processes_that_add_at_the_same_time_lose_nothing(project):
    code = (
        "import sys; from pathlib import Path; from soundmill import ledger\n"
        f"entry = {{'recording_id': sys.argv[1], 'source': sys.argv[1], 'digest': None, **{REST}}}\n"
        "sys.stdin.read(1); ledger.add(Path.cwd(), [entry])"
    )
    command = [sys.executable, "-c", code]
    options = {"cwd": project, "stdin": subprocess.PIPE, "env": {"PYTHONPATH": str(ROOT)}}
    started = [subprocess.Popen([*command, str(number)], **options) for number in range(8)]
    for process in started:
        process.stdin.write(b"x")
        process.stdin.close()
    assert [process.wait(300) for process in started] == [0] * 8
    assert sorted(forgotten_in(project)) == [str(number) for number in range(8)]
