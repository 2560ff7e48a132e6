"""What a `dvc` leaves behind when it is killed or the disk is full, and the commands to recover.

For a moment, a `dvc exp run` keeps the uncommitted changes only in a git stash: first in `refs/stash`, then, as it starts the
experiment, in `refs/exps/exec/EXEC_MERGE`. It writes these with libgit2, which ends the message of a stash's index commit with an
empty line. Git's own command does not, which distinguishes a user's stashes. On a full disk libgit2 leaves `index.lock`, and later
runs fail with "merge conflicts".
"""

import json
import os
import re
import shlex
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from soundmill import disk, provenance

MERGE = "refs/exps/exec/EXEC_MERGE"
BASELINE = "refs/exps/exec/EXEC_BASELINE"
PATH_LOCKS = (".dvc/tmp/exps/rwlock", ".dvc/tmp/rwlock")  # DVC's records of which process uses which path
STALE_LOCK_SECONDS = 10.0  # git and DVC hold these locks for less


@dataclass(frozen=True)
class Leftover:
    """One thing left behind, as text; `changes_missing`: uncommitted changes are missing from the files."""

    what: str
    remedy: str
    changes_missing: bool = False

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}"


def leftovers(root: Path) -> list[Leftover]:
    """What is left in a checkout, in the order to repair it, as a few small files tell; none while an experiment runs in it."""
    own, shared = provenance.git_directories(root)
    if own is None or shared is None or _at_work(root):
        return []
    packed = provenance.read(shared / "packed-refs")
    present = {ref for ref in (MERGE, BASELINE) if (shared / ref).exists() or ref.encode() in packed}
    sources = list(_stashes(root)) if provenance.read(shared / "logs/refs/stash") else []
    sources += [(MERGE, f"git update-ref -d {MERGE}", False)] if MERGE in present else []
    left = [*_locks(root, own, shared), *_set_aside(root, sources)]
    branch = _left_branch(own, shared) if BASELINE in present or sources else None
    if branch:
        what = f"a killed `dvc exp run` left a detached HEAD (the branch was {branch})"
        remedies = " ".join(leftover.remedy for leftover in left)
        steps = [f"git symbolic-ref HEAD refs/heads/{shlex.quote(branch)}", "git reset"]
        steps += [f"git update-ref -d {ref}" for ref in sorted(present) if ref not in remedies]
        left.append(Leftover(what, f"restore it without changing files: `{' && '.join(steps)}`"))
    return left


def unreadable_locks(root: Path) -> list[Path]:
    """Locks on paths that are truncated because `dvc` was killed while writing them; every later `dvc repro` fails on them."""
    unreadable = []
    for path in (root / name for name in PATH_LOCKS):
        if path.exists() and not _is_json(path):
            with path.with_name("rwlock.lock").open("ab") as guard:  # DVC holds it while it writes
                disk.lock(guard, shared=True)
                unreadable += [] if _is_json(path) else [path]
    return unreadable


def _at_work(root: Path) -> bool:
    temporary = root / ".dvc/tmp/exps"
    records = [provenance.read(temporary / "rwlock"), provenance.read(temporary / "run/workspace/workspace.json")]
    pids = [pid.decode() for text in records for pid in re.findall(rb'"pid": (\d+)', text)]
    # An old file's number may belong to another process by now.
    commands = [provenance.read(Path(f"/proc/{pid}/cmdline")).split(b"\0") for pid in pids]
    return any(b"exp" in words and any(word.rpartition(b"/")[2] == b"dvc" for word in words) for words in commands)


def _stashes(root: Path) -> Iterator[tuple[str, str, bool]]:
    """DVC's stashes, an experiment's last: name, the command that drops it, whether it has only the user's changes."""
    entries = [line.partition(" ") for line in _git(root, "log", "--walk-reflogs", "--format=%gd %gs", "refs/stash").splitlines()]
    for of_experiment in (False, True):
        for raw, _, message in entries:
            name = raw.removeprefix("refs/")
            if ("dvc-exp:" in message) is of_experiment and _git(root, "cat-file", "commit", f"{name}^2").endswith("\n\n"):
                yield name, f"git stash drop {shlex.quote(name)}", not of_experiment


def _set_aside(root: Path, sources: list[tuple[str, str, bool]]) -> list[Leftover]:
    """The stashes with contents that neither the files nor an earlier stash have: which files, and how to restore them."""
    left, named = [], set()
    for name, drop, own in sources:
        options = ("--name-only", "--no-renames", "--relative", "-z")
        touched = _git(root, "diff", *options, f"{name}^1", name, "--", ".", ":(exclude).dvc/tmp").split("\0")
        paths = [path for path in touched if path and path not in named]
        files = [path for path in paths if (root / path).is_file()]
        now = dict(zip(files, _git(root, "hash-object", "--", *files).split() if files else [], strict=False))
        then, before = _contents(root, name, paths), _contents(root, f"{name}^1", paths)
        missing = [path for path in paths if now.get(path) != then.get(path) and now.get(path) == before.get(path)]
        other = [path for path in paths if now.get(path) != then.get(path) and now.get(path) != before.get(path)]
        named |= {*missing, *other}
        compare = f"`git diff {shlex.quote(name)} -- {_words(other)}` shows what {', '.join(other)} had there" if other else ""
        if missing:
            what = "a `dvc exp run` that was killed, or ran out of disk space, has set your uncommitted changes aside: "
            restore = f"git restore --source={shlex.quote(name)} -- {_words(missing)}"
            remedy = f"restore them: `{restore}`{f' ({compare})' if compare else ''}, then `{drop}` (which alone discards them)"
            left.append(Leftover(f"{what}{', '.join(missing)} are in git's {name}, not in the files", remedy, changes_missing=True))
        elif other and own:
            what = f"git's {name} has changes that a `dvc exp run` set aside, and the files have changed since"
            left.append(Leftover(what, f"{compare}; `{drop}` when you no longer need it"))
    # Dropping a stash renumbers older ones, so the oldest are dropped first.
    return sorted(left, key=lambda one: [int(number) for number in re.findall(r"stash@\{(\d+)\}", one.remedy)], reverse=True)


def _contents(root: Path, commit: str, paths: list[str]) -> dict[str, str]:
    """Git object ids of files in a commit."""
    listed = _git(root, "ls-tree", "-r", "-z", commit, "--", *paths) if paths else ""
    return {path: head.split()[2] for head, tab, path in (entry.partition("\t") for entry in listed.split("\0")) if tab}


def _left_branch(own: Path, shared: Path) -> str | None:
    """The branch that HEAD was detached from, if it is detached."""
    moves = re.findall(rb"\tcheckout: moving from (\S+) to ", provenance.read(own / "logs/HEAD"))
    if provenance.read(own / "HEAD").startswith(b"ref:") or not moves:
        return None
    name = moves[-1].decode("utf-8", "replace")
    exists = (shared / "refs/heads" / name).exists() or f" refs/heads/{name}\n".encode() in provenance.read(shared / "packed-refs")
    return name if exists else None


def _locks(root: Path, own: Path, shared: Path) -> Iterator[Leftover]:
    locks = {path for directory in (own, shared, shared / "refs") for path in directory.glob("*.lock")}
    left = []
    for path in sorted(locks):
        with suppress(OSError):  # it may be gone
            left += [path] if time.time() - path.stat().st_mtime > STALE_LOCK_SECONDS else []
    if left:
        yield Leftover(
            f"{', '.join(map(str, left))}: left by a git or DVC that was killed, or ran out of disk space; every `dvc exp run` "
            'then fails with "merge conflicts" or "the index is locked", and sets your changes aside',
            f"while neither git nor dvc runs here: `rm {_words([str(path) for path in left])}`",
        )
    for path in unreadable_locks(root):
        what = f"{path} is truncated (by a full disk or a killed `dvc`), and DVC fails on it"
        yield Leftover(what, f"while no dvc runs here: `rm {shlex.quote(str(path))}`")


def _is_json(path: Path) -> bool:
    try:
        json.loads(provenance.read(path))
    except ValueError:
        return False
    return True


def _words(names: list[str]) -> str:
    return " ".join(map(shlex.quote, names))


def _git(root: Path, *arguments: str) -> str:
    return os.fsdecode(provenance.git(root, *arguments))
