"""Emptying the cache of what no checkout needs, with workspaces and another checkout that share it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows import checkout, dvc
from soundmill import ledger, params
from soundmill.errors import UserError
from tests.commands.running import refused, soundmill, works
from tests.flows.tiny import DOG, dvc_command, git, make_tiny
from tests.imports import ROOT
from tests.prepared import edit_params


def objects(project: Path) -> set[str]:
    return {path.parent.name + path.name for path in (project / ".dvc/cache/files/md5").rglob("*") if path.is_file()}


def named(checkout_: Path) -> set[str]:
    """Digests that a dvc.lock has of outputs which are in the cache."""
    stages = params.read_yaml(checkout_ / "dvc.lock")["stages"]
    return {out["md5"] for stage in stages.values() for out in stage["outs"] if not out["path"].startswith("data/metrics")}


def run(root: Path, number: int, *stages: str) -> None:
    edit_params(root, "first", number=number)
    done = dvc_command(root, "repro", *stages)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_clean_keeps_what_any_checkout_needs(tiny: Path, tmp_path: Path) -> None:
    """`dvc gc --workspace` in the workspace would remove the project's objects and the other checkout's."""
    run(tiny, 1)
    run(tiny, 2, "first")
    workspace = checkout.workspace(tiny, "mine", params.read_yaml(tiny / "params.yaml"))
    run(workspace, 3, "first")
    away = make_tiny(tmp_path / "away")
    checkout.share(away, tiny)
    run(away, 4, "first")
    needed = set().union(*(named(place) for place in (tiny, workspace, away)))
    (tiny / "precious.wav").write_text("the only copy of a project that no list names, as after `dvc cache dir`")
    precious = objects(tiny)
    assert dvc_command(tiny, "add", "precious.wav").returncode == 0
    precious = objects(tiny) - precious
    for name in ("precious.wav", "precious.wav.dvc"):
        (tiny / name).unlink()
    before = objects(tiny)
    unneeded = {path.parent.name + path.name for path in checkout.unused(workspace, checkout.users(workspace)).objects}
    assert unneeded
    assert before - unneeded >= needed

    shown = soundmill("clean", cwd=workspace)
    assert f"{len(unneeded)} objects" in shown.stdout
    assert "MB in       1  data/first.txt" in shown.stdout  # of 1, which the project had before 2
    assert "other outputs" not in shown.stdout
    assert objects(tiny) == before  # nothing is removed yet
    for place in (tiny, workspace, away):
        assert f"kept: what {place} needs" in shown.stdout
    works("clean", "--yes", cwd=workspace)
    assert objects(tiny) == before - unneeded
    for place in (tiny, workspace, away):
        shutil.rmtree(place / "data")
        dvc.checkout(place)
        assert (place / "data/first.txt").exists()
    shutil.move(away, tmp_path / "elsewhere")  # as if its disk were not mounted
    assert f"not there, so `--yes` would refuse: {away}" in soundmill("clean", cwd=tiny).stdout
    assert soundmill("clean", "--yes", cwd=tiny).returncode == 1
    assert objects(tiny) == before - unneeded
    shutil.rmtree(workspace)  # gone: its project is there
    works("clean", "--yes", "--gone", str(away), cwd=tiny)
    assert named(tiny) | precious <= objects(tiny) < before - unneeded


def test_damaged_lists_in_the_cache_stop_no_cleaning(tiny: Path) -> None:
    store = tiny / ".dvc/cache"
    tree = store / "files/md5/ab/0123456789abcdef0123456789abcd.dir"
    runs = store / "runs/aa/aaaa"
    for path, text in (
        (tree, '[{"md5": "0123'),
        (runs / "1", "outs:\n- md5: ab0123456789abcdef0123456789abcd.dir\n  path: data/generated/tiny\n"),
        (runs / "2", "outs: [{md5: ab"),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert (checkout.unused(tiny, checkout.users(tiny)).objects, checkout.unused(tiny, checkout.users(tiny)).unknown) == ([], 1)
    (tiny / "dvc.lock").write_text("stages:\n  a:\n    outs:\n    - path: a\n      md5: ab0123456789abcdef0123456789abcd.dir\n")
    git(tiny, "add", "dvc.lock")
    git(tiny, "commit", "-q", "-m", "An output of an earlier commit")
    for why in ("lock: damaged", r"no dvc\.lock, so what is needed there is not known"):
        with pytest.raises(UserError, match=why):
            checkout.unused(tiny, checkout.users(tiny))
        (tiny / "dvc.lock").unlink(missing_ok=True)
    (tiny / "dvc.lock").write_text("schema: '2.0'\n")
    for name in ("dvc.yaml", ".dvc/config"):  # a workspace whose first stage has not ended needs nothing
        (tiny / "workspaces/new" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(tiny / name, tiny / "workspaces/new" / name)
    checkout.share(tiny / "workspaces/new", tiny)
    assert checkout.unused(tiny, checkout.users(tiny)).objects == [tree]
    (tiny / "workspaces/new" / dvc.LAST_INTACT).touch()
    with pytest.raises(UserError, match=r"new: no dvc\.lock"):
        checkout.unused(tiny, checkout.users(tiny))
    shutil.rmtree(tiny / "workspaces")
    (store / checkout.USERS).write_bytes(b"/away/\xff\n")
    assert [bytes(place) for place in checkout.away(tiny)] == [b"/away/\xff"]
    assert "not there" not in works("clean", "--gone", *map(str, checkout.away(tiny)), cwd=tiny).stdout
    with checkout.held(tiny, 0, print, gone=checkout.away(tiny)):
        assert (store / checkout.USERS).read_bytes() == b"/away/\xff\n"  # until the end
    assert (store / checkout.USERS).read_bytes() == b""
    unused = checkout.unused(tiny, checkout.users(tiny))
    assert unused.objects == [tree]
    assert unused.outputs == {"data/generated/tiny": (1, tree.stat().st_size)}


@pytest.mark.slow
def test_erasing_removes_the_projects_own_outputs_only(tiny: Path, tmp_path: Path) -> None:
    """A second project has the only copy of a sound in this cache, a link, and a text that names the same recording."""
    (tmp_path / "disk").mkdir()
    (tiny / ".dvc/cache").symlink_to(tmp_path / "disk")
    code = (tiny / "first.py").read_text()
    (tiny / "first.py").write_text(code.replace('write_text(f"', 'write_text(f"dog.wav, '))
    run(tiny, 1, "first")
    (tiny / "first.py").write_text(code)
    run(tiny, 2, "first")
    own = named(tiny)
    second = make_tiny(tmp_path / "second")
    dvc.share_cache(second, tiny)
    for name in ("precious.wav", "notes.txt"):
        (second / name).write_text(f"{name} of the second project, made from dog.wav")
        assert dvc_command(second, "add", name).returncode == 0
        (second / name).unlink()
    before = objects(tiny)

    assert "nothing is forgotten" in soundmill("forget", "--erase", "--yes", cwd=tiny).stdout
    assert objects(tiny) == before
    ledger.add(tiny, [DOG])
    asked = soundmill("forget", "--erase", cwd=tiny)
    assert asked.returncode == 1
    assert "data/first.txt" in asked.stdout
    assert objects(tiny) == before
    erased = soundmill("forget", "--erase", "--yes", cwd=tiny)
    assert "DVC's cache: 2 objects" in erased.stdout  # what is left is the second project's
    assert len(before - objects(tiny)) == 1
    assert own <= objects(tiny)
    assert dvc_command(second, "checkout", "precious.wav").returncode == 0
    assert (second / "precious.wav").exists()


def test_nothing_is_removed_beside_work(tiny: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from flows import locks\n"
        "with locks.only_one(Path.cwd(), 0, print): print('held', flush=True); sys.stdin.read()"
    )
    workspace = checkout.workspace(tiny, "mine", params.read_yaml(tiny / "params.yaml"))
    command = [sys.executable, "-c", code]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    ledger.add(tiny, [DOG])
    with subprocess.Popen(command, cwd=workspace, env={"PYTHONPATH": str(ROOT)}, **pipes) as other:
        assert other.stdout.readline() == b"held\n"
        for command_line in (("clean", "--yes"), ("forget", "--erase", "--wait-minutes", "0")):
            assert f"mine is in use by process {other.pid}" in refused(*command_line, cwd=tiny)
        other.stdin.close()
    with pytest.raises(UserError, match="not a checkout that uses"):
        checkout.users(tiny, [ROOT / "nowhere"])
