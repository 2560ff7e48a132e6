"""Separate checkouts: the state a recorded run was made from, and a person's own data beside the demo's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from flows import dvc
from soundmill import params as parameters
from soundmill import tracking
from soundmill.errors import UserError
from soundmill.evaluation import weights
from soundmill.params import read_yaml

OWN = ("data/", "dvc.lock", "params.yaml")  # of every checkout: never copied from another
COPIED = Path(".dvc/tmp/copied.txt")  # what a workspace got from the project, to remove what the project no longer has


def reproduce(home: Path, run_id: str, destination: Path) -> list[str]:
    """Bring back the state run `run_id` was made from, in a new checkout at `destination`; returns what is missing, in words.

    Code at the recorded commit with the uncommitted changes, params.yaml, dvc.lock, and every output that the cache of
    `home` still has. A stage's run stands for its pipeline. Raises UserError when the run, its state or its commit is not
    there, or `destination` is.
    """
    home, destination = home.resolve(), destination.resolve()
    state = tracking.read_state(home, run_id)
    if destination.exists() and any(destination.iterdir()):
        raise UserError(f"{destination} is not empty; remove it, or say `--into` somewhere else")
    if state.sha == "none":
        raise UserError(
            f"run {state.run_id} was recorded outside git: its code is not known, only params.yaml and dvc.lock are kept"
        )
    _clone(home, destination, state.sha, state.run_id)
    missing = _apply(destination, state.files.get("uncommitted.diff", b""))
    for name in ("params.yaml", "dvc.lock"):
        if state.files.get(name):
            (destination / name).write_bytes(state.files[name])
        else:
            missing.append(f"{name}: there was none when the run was recorded")
    missing += [
        f"{name}: not in git at the time, and too big to be kept"
        for name in state.files.get("not_kept.txt", b"").decode("utf-8", "replace").splitlines()
    ]
    if not (destination / ".dvc").is_dir():
        return [*missing, "DVC's own files (.dvc/) are not in that commit: outputs cannot be brought back"]
    dvc.share_cache(destination, home)
    return missing + _outputs(destination) + _outside(home, destination)


def _clone(home: Path, destination: Path, sha: str, run_id: str) -> None:
    if not _git(home, "cat-file", "-e", f"{sha}^{{commit}}"):
        raise UserError(f"commit {sha} of run {run_id} is not in {home}; fetch it there first (`git fetch --all`)")
    if not _git(home, "clone", "--quiet", "--no-checkout", str(home), str(destination)):
        raise UserError(f"git could not clone {home} to {destination}; is there room, and may you write there?")
    # The commit may be on no branch any more: a clone brings branches only.
    if not _git(destination, "fetch", "--quiet", str(home), sha) or not _git(destination, "checkout", "--quiet", "--detach", sha):
        raise UserError(f"git could not check out {sha} in {destination}")


def _apply(destination: Path, diff: bytes) -> list[str]:
    if not diff.strip():
        return []
    done = subprocess.run(
        ["git", "apply", "--binary", "--whitespace=nowarn", "-"],
        cwd=destination,
        input=diff,
        capture_output=True,
        env=_no_outer_git(),
    )
    if done.returncode == 0:
        return []
    (destination / "uncommitted.diff").write_bytes(diff)
    reason = " ".join(done.stderr.decode("utf-8", "replace").split())[:300]
    return [f"the uncommitted changes did not apply ({reason}); they are in uncommitted.diff"]


def _outputs(destination: Path) -> list[str]:
    """Check out what the cache has; stages whose results it has under their inputs (the run cache) come back too."""
    absent = dvc.checkout(destination)
    changed = dvc.changed(destination)
    missing = []
    remade: set[str] = set()
    for stage in dvc.stages(destination):
        reasons = changed.get(stage.name, [])
        if reasons == ["always changed"] and not any(path in absent for path in dvc.outputs_of(destination, stage.name)):
            continue
        if not reasons and not stage.needs & remade:
            continue
        if dvc.restore(destination, stage.name):
            remade.add(stage.name)
        elif reasons:
            missing.append(f"stage {stage.name}: its results are not in the cache; `dvc repro {stage.name}` there makes them again")
    return missing


def _outside(home: Path, destination: Path) -> list[str]:
    """What the run needed that neither git nor DVC keeps."""
    document = read_yaml(destination / "params.yaml")
    missing = []
    corpus = document.get("corpus")
    path = corpus.get("path") if isinstance(corpus, dict) else None
    if path and not (destination / path).exists():
        seen = f" (it is at {home / path}: give its absolute path)" if (home / path).exists() else ""
        missing.append(f"corpus.path {path}: not there{seen}; it is needed to scan the recordings again, not for what is cached")
    evaluate = document.get("evaluate")
    embedders = evaluate.get("embedders", []) if isinstance(evaluate, dict) else []
    for name in embedders:
        if name in weights.REGISTRY and (reason := weights.unavailable(name)):
            missing.append(f"weights: {reason}; needed to score again with {name}")
    pins = [_read(root / "constraints.txt") for root in (home, destination)]
    if pins[1] and pins[0] != pins[1]:
        missing.append("packages: constraints.txt was another one; to run stages again, `make` a .venv there")
    return missing


# ---------------------------------------------------------------------------------------------------------------------
# A person's own data


def workspace(home: Path, name: str, params: dict[str, Any]) -> Path:
    """A checkout `workspaces/<name>` with today's code (uncommitted changes too) and these parameters; returns its path.

    It has its own outputs and dvc.lock, shares the cache, and records into the store of `home`. Used again when it exists:
    code and parameters are renewed and the outputs stay, so only what changed runs.
    """
    home = home.resolve()
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise UserError(f"workspace name {name!r}: letters, digits, `.`, `_` and `-`, at most 100; say another with --name")
    names = _code_files(home)
    root = home / tracking.WORKSPACES / name
    if not (root / ".git").exists():
        root.mkdir(parents=True, exist_ok=True)
        _must(root, "init", "--quiet")
    with dvc.only_one(root, 0, print):
        _must(root, "fetch", "--quiet", "--no-tags", str(home), "HEAD")
        _must(root, "update-ref", "--no-deref", "HEAD", "FETCH_HEAD")
        _must(root, "read-tree", "HEAD")
        _copy_code(home, root, names)
        if _read(root / "params.yaml") == b"" or read_yaml(root / "params.yaml") != params:
            parameters.write_yaml(params, root / "params.yaml")
        dvc.share_cache(root, home)
    return root


def run_pipeline(root: Path) -> int:
    """Run the pipeline flow in a workspace, with this Python; returns its exit status."""
    home = root.resolve().parents[1]
    settings = {"PREFECT_HOME": str(home / ".prefect")}
    command = [sys.executable, "-m", "flows.pipeline"]
    return subprocess.run(command, cwd=root, env=dvc.environment(settings), preexec_fn=dvc.die_with_us()).returncode


def _code_files(home: Path) -> list[str]:
    """Tracked and new files of the project, without what every checkout has of its own."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=home, capture_output=True, env=_no_outer_git()
    )
    if done.returncode:
        raise UserError(f"{home} is not a git checkout; clone the project with git to use workspaces")
    names = [os.fsdecode(raw) for raw in done.stdout.split(b"\0") if raw]
    return sorted({name for name in names if not name.startswith(OWN) and os.path.lexists(home / name)})


def _copy_code(home: Path, root: Path, names: list[str]) -> None:
    for name in names:
        source, target = home / name, root / name
        if source.is_dir():  # another repository inside this one: not code of the project
            continue
        if source.is_symlink() or not target.is_file() or target.is_symlink() or target.read_bytes() != source.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    record = root / COPIED
    before = record.read_text(encoding="utf-8", errors="surrogateescape").split("\0") if record.exists() else []
    for name in set(before) - set(names):
        (root / name).unlink(missing_ok=True)
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text("\0".join(names), encoding="utf-8", errors="surrogateescape")


def _must(where: Path, *arguments: str) -> None:
    done = subprocess.run(["git", *arguments], cwd=where, capture_output=True, text=True, env=_no_outer_git())
    if done.returncode:
        raise UserError(f"`git {' '.join(arguments)}` failed in {where}: {' '.join(done.stderr.split())[:300]}")


def _git(where: Path, *arguments: str) -> bool:
    return subprocess.run(["git", *arguments], cwd=where, capture_output=True, env=_no_outer_git()).returncode == 0


def _no_outer_git() -> dict[str, str]:
    """Git's own variables (set in hooks) would point every command at another repository."""
    return {key: value for key, value in os.environ.items() if key not in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")}


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""
