"""What a run was made from, captured and put back."""

import os
import subprocess
from pathlib import Path

import pytest

from soundmill import provenance
from tests.flows.tiny import git


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A project with a space and an umlaut in its path."""
    path = tmp_path / "mein Pröjekt"
    path.mkdir()
    (path / "params.yaml").write_text("train: {rate: 1e-4, sizes: [1, 2]}\n")
    return path


def commit(root: Path) -> None:
    """All files, in a new repository."""
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "first", "--allow-empty")


def test_state_outside_git_is_params_and_lock_alone(home: Path) -> None:
    state = provenance.capture(home)
    assert (state.sha, state.diff, state.dirty) == ("", b"", False)
    assert state.params == (home / "params.yaml").read_bytes()


def test_what_a_repro_rewrites_is_kept_but_makes_no_other_state(home: Path) -> None:
    metrics = home / "data" / "metrics.json"
    metrics.parent.mkdir()
    metrics.write_text("1")
    (home / "code.py").write_text("a = 1\n")
    commit(home)
    git(home, "config", "core.trustctime", "false")
    before, moment = provenance.capture(home), metrics.stat().st_mtime_ns
    metrics.write_text("2")
    for path in (metrics, home / ".git/index"):  # in one second, of which git takes an index of a later one for up to date
        os.utime(path, ns=(moment, moment))
    (home / "dvc.lock").write_text("schema: '2.0'\n")
    after = provenance.capture(home)
    assert before.identity == after.identity
    assert not after.dirty
    assert b"metrics.json" in after.diff
    (home / "code.py").write_text("a = 2\n")
    edited = provenance.capture(home)
    assert edited.identity != before.identity
    assert edited.dirty
    (home / "big.py").write_bytes(bytes(provenance.MAX_UNTRACKED_FILE + 1))
    assert provenance.capture(home).left_out == ("big.py: too big",)


def test_the_diff_restores_new_binary_and_oddly_named_files(home: Path, tmp_path: Path) -> None:
    commit(home)
    for setting in ("diff.noprefix=true", "color.ui=always", "diff.external=false", "diff.relative=true", "diff.context=0"):
        git(home, "config", *setting.split("="))
    odd = 'a "b" *ä.py'
    (home / odd).write_bytes(bytes(range(256)))
    (home / "params.yaml").unlink()
    state = provenance.capture(home)
    git(tmp_path, "clone", "-q", str(home), "copy")
    subprocess.run(["git", "apply", "--binary", "-"], cwd=tmp_path / "copy", input=state.diff, check=True)
    assert (tmp_path / "copy" / odd).read_bytes() == bytes(range(256))
    assert not (tmp_path / "copy" / "params.yaml").exists()
    status = subprocess.run(["git", "status", "--short"], cwd=home, capture_output=True, text=True, check=True).stdout
    assert "??" in status  # the project's own index was not touched


def test_a_hook_of_another_repository_changes_nothing(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for root in (home, other):
        commit(root)
    (home / "new.py").write_text("a = 1\n")
    state = provenance.capture(home)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git/index"))
    assert provenance.capture(home) == state
    assert state.sha
    assert b"new.py" in state.diff


def test_no_secret_is_in_the_diff(home: Path) -> None:
    (home / "tracked.py").write_text("a = 1\n")
    commit(home)
    (home / "deploy").mkdir()
    texts = {
        ".env": "AWS_SECRET_ACCESS_KEY=hush-hush-hush\n",
        "deploy/team.env.old": "MLFLOW_LOGIN=team:hush-hush-hush\n",
        "id.json": "hush-hush-hush",
        "card.md": "# A new template\n",
        "new.py": "a = 2  # max_tokens = 128\ntoken = tokenizer.encode(text)\n",
        "loud.py": "client = connect('https://me:hush/hush-hush@host/')\n",
        "tracked.py": "a = 1\npassword = 'hush-hush-hush'\n",
        "key.yaml": "access_key: hush-hush-hush\n",
        "prefect.toml": "\n" * 100_000 + 'auth_string = "soundmill:hush-hush-hush"\n',
        "pod.yaml": "- name: DB_PASSWORD\n  value: hush4hush7hush\n",
        "remote.sh": "dvc remote modify mine password hush4hush7hush  # of the team\n",
    }
    for name, text in texts.items():
        (home / name).write_text(text, encoding="utf-16" if name == "prefect.toml" else "utf-8")  # git takes UTF-16 for binary
    state = provenance.capture(home)
    assert b"hush" not in state.diff
    assert b"new.py" in state.diff
    assert b"card.md" in state.diff
    assert {line.partition(":")[0] for line in state.left_out} == texts.keys() - {"new.py", "card.md"}
