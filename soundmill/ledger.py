"""The list of forgotten recordings, which no branch, experiment or recorded state can shorten.

Stages read `forgotten.yaml`, which is tracked by git. An older version can come back with another branch, an experiment queued
earlier, or a new workspace. So every entry is also written to git's own directory, and a checkout obeys the lists of all checkouts
that contain it: a project contains its workspaces and the copies that `dvc exp run --temp` makes.

A project also keeps a list of all outputs that it has had, because its cache may hold other projects' outputs too.
"""

import re
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from soundmill import disk, params, provenance
from soundmill.errors import UserError, first_of

FILE = "forgotten.yaml"
GIT_COPY = Path("soundmill") / FILE  # in git's directory
OUTPUTS = Path("soundmill/outputs.txt")  # in git's directory; outside git in DVC's, .dvc/tmp
HEADER = "# What no stage may use: written by `soundmill forget`, read by corpus, scan, loops and segment (docs/lineage.md).\n"

Entries = list[dict[str, Any]]  # plain values of corpora.forgotten.Entry


def read(path: Path) -> Entries:
    """The entries of a list, none if the file does not exist; UserError if it is malformed."""
    if not path.is_file():
        return []
    entries = params.read_yaml(path).get("forgotten")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{path}: `forgotten` must be a list of entries; `git log -p {FILE}` shows earlier versions")
    if entries:
        from soundmill.corpora import forgotten  # loads decoders: not for every command

        forgotten.parse({"forgotten": entries}, str(path))  # a mistake, once copied, could not be corrected in the checkout
    return entries


def write(entries: Entries, path: Path) -> None:
    disk.write_text(path, HEADER + params.yaml_text({"forgotten": entries}))


def in_force(root: Path) -> Entries:
    """All entries that bind the checkout at `root`, its own first."""
    return _union(read(path) for path in _lists(root))


def missing(root: Path) -> Entries:
    """The entries in force that the checkout's forgotten.yaml lacks."""
    own = root / FILE
    content = own.read_bytes() if own.is_file() else b""
    if all(path.read_bytes() == content for path in _lists(root) if path.is_file()):
        return []  # the usual case: nothing is parsed
    listed = {_place(entry) for entry in read(own)}
    return [entry for entry in in_force(root) if _place(entry) not in listed]


def update(root: Path) -> Entries:
    """Add the missing entries to forgotten.yaml and copy all of its entries to git's directory; returns the added ones."""
    return add(root, missing(root))


def add(root: Path, entries: Entries) -> Entries:
    """Add the entries that forgotten.yaml lacks, and return them. Concurrent calls lose none."""
    with disk.exclusive(root):
        own = read(root / FILE)
        listed = {_place(entry) for entry in own}
        new = [entry for entry in _union([entries]) if _place(entry) not in listed]
        if new:
            write([*own, *new], root / FILE)
        for path in _own_lists(root)[1:]:  # in git's directory, which all working trees of the repository share
            with disk.exclusive(path.parent):
                copied = read(path)
                combined = _union([[*own, *new], copied])
                if combined and (len(combined) > len(copied) or not path.is_file()):
                    write(combined, path)
    return new


def remove(root: Path, entries: Entries) -> None:
    """Remove entries from the checkout's own list; nothing else shortens it."""
    removed = {_place(entry) for entry in entries}
    lists = _own_lists(root)
    with ExitStack() as stack:
        for path in lists:
            stack.enter_context(disk.exclusive(path.parent))
        for path in (path for path in lists if path.is_file()):
            write([entry for entry in read(path) if _place(entry) not in removed], path)


def is_own(root: Path, entry: dict[str, Any]) -> bool:
    """Whether only the checkout's own list has the entry."""
    return not any(_place(entry) == _place(other) for path in _lists(root)[len(_own_lists(root)) :] for other in read(path))


def check(root: Path) -> None:
    """UserError if forgotten.yaml lacks entries in force: an older version came back, or the project has forgotten more since."""
    if absent := missing(root):
        raise UserError(
            f"{root / FILE} is out of date: it lacks {sources(absent)}. `soundmill run` and `make demo` update it; "
            "before `dvc repro`, run `soundmill forget --update`; queue again the experiments that were queued earlier"
        )


def sources(entries: Entries) -> str:
    """The sources of entries, for messages: the first five by name."""
    return first_of([str(entry.get("source")) for entry in entries], 5)


def note_outputs(root: Path, project: Path) -> None:
    """Add the outputs in the dvc.lock at `root` to the project's list; the next `dvc repro` may replace them in dvc.lock."""
    lock, path = root / "dvc.lock", _outputs_of(project)
    if not lock.is_file():
        return
    digests = locked_outputs(lock.read_text(encoding="utf-8", errors="replace"))
    with disk.exclusive(path.parent):
        if new := digests - set(_lines(path)):
            with path.open("a", encoding="utf-8") as file:
                file.writelines(f"{digest}\n" for digest in sorted(new))


def known_outputs(root: Path) -> set[str]:
    """Digests of the outputs, as DVC names them, that the checkout at `root` has or had: in its list, or in any commit."""
    commits = provenance.git(root, "log", "--all", "--reflog", "--format=%H:./dvc.lock", "--", "dvc.lock")
    locks = provenance.git(root, "cat-file", "--batch", stdin=commits).decode("utf-8", "replace")
    return set(_lines(_outputs_of(root))) | locked_outputs(locks)


def locked_outputs(text: str) -> set[str]:
    """Digests of the outputs in the text of a dvc.lock, which may be cut off; its dependencies are not this project's."""
    found, section = set(), ""
    for line in text.splitlines():
        section = match[1] if (match := re.fullmatch(r" +(deps|outs|params|cmd):.*", line)) else section
        if section == "outs" and (match := re.fullmatch(r" +(?:- )?md5: ([0-9a-f]{32}(?:\.dir)?)", line)):
            found.add(match[1])
    return found


def _outputs_of(project: Path) -> Path:
    shared = provenance.git_directories(project)[1] if (project / ".git").exists() else None
    return (shared or project / ".dvc/tmp") / OUTPUTS


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []


def _lists(root: Path) -> list[Path]:
    """Paths of the lists that bind a checkout, existing or not: its own, then those of the checkouts that contain it."""
    root = root.resolve()
    projects = [root, *(parent for parent in root.parents if (parent / FILE).is_file() and (parent / "dvc.yaml").is_file())]
    return [path for project in projects for path in _own_lists(project)]


def _own_lists(root: Path) -> list[Path]:
    """forgotten.yaml, and its copy in git's directory if the checkout is the top of a working tree."""
    at_top = (root / ".git").exists()  # otherwise it would be the directory of an enclosing repository
    shared = provenance.git_directories(root)[1] if at_top else None
    return [root / FILE, *([shared / GIT_COPY] if shared else [])]


def _union(lists: Iterable[Entries]) -> Entries:
    """Each entry once: of several for one place, the first."""
    entries: dict[tuple[Any, ...], dict[str, Any]] = {}
    for one in lists:
        for entry in one:
            entries.setdefault(_place(entry), entry)
    return list(entries.values())


def _place(entry: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(entry.get(key) for key in ("recording_id", "digest", "start", "end"))
