"""The list of what a checkout must not use, which no branch, experiment or recorded state can shorten.

Stages read `forgotten.yaml`, which git keeps. An older version of it can come back with another branch, with an experiment that was
queued earlier, or in a new workspace. So every entry is also noted in git's own directory, and a checkout is bound by the lists of
all checkouts that it lies in: a workspace lies in its project, and so do the copies that `dvc exp run --temp` makes.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from soundmill import disk, params, provenance
from soundmill.errors import UserError

FILE = "forgotten.yaml"
NOTED = Path("soundmill") / FILE  # in git's directory
HEAD = "# What this project must not use: written by `soundmill forget`, obeyed by corpus, scan and segment (docs/lineage.md).\n"

Entries = list[dict[str, Any]]  # plain values of corpora.forgotten.Entry


def read(path: Path) -> Entries:
    """The entries of a list; none where there is no file. A mistake is a UserError that names the file."""
    if not path.is_file():
        return []
    entries = params.read_yaml(path).get("forgotten")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{path}: `forgotten` must be a list of entries; `git log -p {FILE}` shows what it was")
    return entries


def write(entries: Entries, path: Path) -> None:
    """Write a list, whole or not at all."""
    text = HEAD + params.yaml_text({"forgotten": entries})
    disk.write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def in_force(root: Path) -> Entries:
    """All that the checkout at `root` must not use, its own entries first."""
    return _union(read(path) for path in _lists(root))


def missing(root: Path) -> Entries:
    """The entries in force that are not in the checkout's forgotten.yaml."""
    own = root / FILE
    content = own.read_bytes() if own.is_file() else b""
    if all(path.read_bytes() == content for path in _lists(root) if path.is_file()):
        return []  # the usual case, without parsing
    known = {_place(entry) for entry in read(own)}
    return [entry for entry in in_force(root) if _place(entry) not in known]


def update(root: Path) -> Entries:
    """Add the missing entries to forgotten.yaml, and note all of its entries in git's directory; returns what was added."""
    return add(root, missing(root))


def add(root: Path, entries: Entries) -> Entries:
    """Add the entries that forgotten.yaml does not have; returns those. Processes that add at the same time lose none."""
    with disk.exclusive(root):
        own = read(root / FILE)
        known = {_place(entry) for entry in own}
        new = [entry for entry in _union([entries]) if _place(entry) not in known]
        if new:
            write([*own, *new], root / FILE)
        _note(root, [*own, *new])
    return new


def remove(root: Path, entries: Entries) -> None:
    """Take entries out of the checkout's own list, for good: nothing else makes it shorter."""
    gone = {_place(entry) for entry in entries}
    lists = _own_lists(root)
    with ExitStack() as stack:
        for path in lists:
            stack.enter_context(disk.exclusive(path.parent))
        for path in (path for path in lists if path.is_file()):
            write([entry for entry in read(path) if _place(entry) not in gone], path)


def is_own(root: Path, entry: dict[str, Any]) -> bool:
    """Whether no list but the checkout's own has the entry."""
    return not any(_place(entry) == _place(other) for path in _lists(root)[len(_own_lists(root)) :] for other in read(path))


def check(root: Path) -> None:
    """UserError where entries are missing in forgotten.yaml: an older one came back, or the project has forgotten more since."""
    if absent := missing(root):
        raise UserError(
            f"{root / FILE} is out of date: {sources(absent)} must not be used. `soundmill run` and `make demo` update it by "
            "themselves; before `dvc repro`, run `soundmill forget --update`; queue experiments again that were queued earlier"
        )


def sources(entries: Entries) -> str:
    """The sources of entries, in words: the first five by name."""
    more = f" and {len(entries) - 5} more" if len(entries) > 5 else ""
    return ", ".join(str(entry.get("source")) for entry in entries[:5]) + more


def _note(root: Path, entries: Entries) -> None:
    """Add entries to the list in git's directory; other working trees of the repository may do so at the same time."""
    for path in _own_lists(root)[1:]:
        with disk.exclusive(path.parent):
            known = read(path)
            everything = _union([entries, known])
            if everything and (len(everything) > len(known) or not path.is_file()):
                write(everything, path)


def _lists(root: Path) -> list[Path]:
    """Where the lists that bind a checkout may lie: its own, then those of the checkouts that it lies in."""
    root = root.resolve()
    projects = [root, *(place for place in root.parents if (place / FILE).is_file() and (place / "dvc.yaml").is_file())]
    return [path for project in projects for path in _own_lists(project)]


def _own_lists(root: Path) -> list[Path]:
    """forgotten.yaml, and what git's directory notes of it, where the checkout is a working tree of git."""
    at_top = (root / ".git").exists()  # else git's directory would be that of a repository around it
    shared = provenance.git_directories(root)[1] if at_top else None
    return [root / FILE, *([shared / NOTED] if shared else [])]


def _union(lists: Iterable[Entries]) -> Entries:
    """Each entry once, the first of those of one place."""
    entries: dict[tuple[Any, ...], dict[str, Any]] = {}
    for some in lists:
        for entry in some:
            entries.setdefault(_place(entry), entry)
    return list(entries.values())


def _place(entry: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(entry.get(key) for key in ("recording_id", "digest", "start", "end"))
