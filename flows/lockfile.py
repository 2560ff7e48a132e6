"""Keeps dvc.lock intact: DVC rewrites it in place, so a full disk or a kill truncates it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import StringIO
from pathlib import Path
from typing import Any

from flows import locks
from soundmill import disk, params
from soundmill.errors import UserError

LAST_INTACT = Path(".dvc/tmp/dvc.lock.good")


def keep_intact(root: Path) -> str | None:
    """Copy dvc.lock while it is intact, and restore it if it is not; returns a message if it was repaired, or None."""
    lock, good = root / "dvc.lock", root / LAST_INTACT
    if not lock.exists():
        good.unlink(missing_ok=True)
        return None
    fault = fault_of(lock)
    if fault is None:
        _copy(lock, good)
        return None
    _keep_broken(root)
    if good.exists() and fault_of(good) is None:
        _copy(good, lock)
        return f"dvc.lock was damaged ({fault}): restored the last intact one; later stages come from the run cache or run again"
    lock.unlink()
    return f"dvc.lock was damaged ({fault}), and there is no intact copy: it is rebuilt, from the run cache where possible"


class Entries:
    """The entries of dvc.lock while the stages of one pipeline write theirs, several at the same time.

    If a `dvc` is killed while it rewrites the file, another may read what is left of it and write that back. So the entries of all
    stages that do not run are known here, and restored if they are lost, truncated or changed.
    """

    def __init__(self, root: Path):
        self.root = root
        self.damages = 0  # found so far
        self._before = _read(root / "dvc.lock")[1]
        self._settled = dict(self._before)
        self._running: set[str] = set()

    @contextmanager
    def written_by(self, stage: str, say: locks.Say) -> Iterator[None]:
        """Let a stage write its entry, then check the file and repair it.

        After a repair, the stage's own entry may be missing; another `dvc repro` of the stage writes it.
        """
        with locks.repository(self.root):
            self._running.add(stage)
        finished = False
        try:
            yield
            finished = True
        finally:
            if fault := self._check(stage, finished):
                self.damages += 1
                say(f"dvc.lock was damaged ({fault}): its intact entries and those of finished stages were restored")

    def _check(self, stage: str, finished: bool) -> str | None:
        """Repair the file; returns what was wrong with it, or None."""
        lock = self.root / "dvc.lock"
        with locks.repository(self.root):  # otherwise another `dvc` could be writing the file
            self._running.discard(stage)
            if not lock.exists() and not self._settled:
                return None
            fault, found = _read(lock)
            self._settled |= {name: entry for name, entry in found.items() if name == stage and finished}
            unsettled = {name: entry for name, entry in found.items() if name in self._running or name not in self._settled}
            wanted = self._settled | unsettled
            if fault is None and wanted == found:
                _copy(lock, self.root / LAST_INTACT)
                return None
            _keep_broken(self.root)
            self._write({name: wanted[name] for name in dict.fromkeys([*self._before, *found, *wanted])})
            changed = next((name for name, entry in wanted.items() if found.get(name) != entry), None)
            return fault or f"the entry of {changed} was lost"

    def renewed(self, stage: str) -> bool:
        """Whether a stage that has ended wrote other outputs than those recorded before the pipeline."""
        before, now = self._before.get(stage), self._settled.get(stage)
        return before is None or now is None or before.get("outs") != now.get("outs")

    def sort(self, names: Sequence[str]) -> None:
        """Put the entries that were added into the order of `names`, in which stages that run one after the other add them."""
        with locks.repository(self.root):
            fault, entries = _read(self.root / "dvc.lock")
            added = sorted((name for name in entries if name not in self._before and name in names), key=names.index)
            ordered = [*(name for name in entries if name not in added), *added]
            if fault is None and ordered != list(entries):
                self._write({name: entries[name] for name in ordered})

    def _write(self, entries: dict[str, Any]) -> None:
        """Write the file with these entries, formatted as DVC does."""
        from ruamel.yaml import YAML

        yaml, text, lock, document = YAML(), StringIO(), self.root / "dvc.lock", {}
        with suppress(UserError):
            document = params.read_yaml(lock)
        yaml.default_flow_style = False
        yaml.dump({"schema": "2.0", **document, "stages": entries}, text)
        disk.write_atomically(lock, lambda path: path.write_text(text.getvalue(), encoding="utf-8"))
        _copy(lock, self.root / LAST_INTACT)


def _copy(source: Path, target: Path) -> None:
    content = source.read_bytes()
    if not target.exists() or target.read_bytes() != content:
        disk.write_atomically(target, lambda path: path.write_bytes(content))


def _keep_broken(root: Path) -> None:
    if (root / "dvc.lock").exists():
        shutil.copyfile(root / "dvc.lock", root / ".dvc" / "tmp" / "dvc.lock.broken")


_HASH = re.compile(r"[0-9a-f]{32}(\.dir)?")


def fault_of(path: Path) -> str | None:
    """What is wrong with a dvc.lock, or None: it must parse, and every entry needs a command and complete hashes."""
    return _read(path)[0]


def _read(path: Path) -> tuple[str | None, dict[str, Any]]:
    """What is wrong with a dvc.lock, and its intact entries."""
    try:
        document = params.read_yaml(path)
    except UserError as error:
        return str(error).splitlines()[0], {}
    entries = document.get("stages") or {}
    if not isinstance(entries, dict):
        return "`stages` is not a mapping", {}
    faults = {name: _fault_in(name, entry) for name, entry in entries.items()}
    intact = {name: entry for name, entry in entries.items() if not faults[name]}
    if not path.read_bytes().endswith(b"\n"):
        return "its last line is truncated", intact
    if document.get("schema") != "2.0":
        return "no `schema: '2.0'`", intact
    return next(filter(None, faults.values()), None), intact


def _fault_in(name: str, entry: Any) -> str | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("cmd"), str | list):
        return f"stage {name} has no command"
    listed = [entry.get("deps", []), entry.get("outs", [])]
    if not all(isinstance(items, list) for items in listed):
        return f"stage {name} has no list of dependencies or outputs"
    for item in [item for items in listed for item in items]:
        if not isinstance(item, dict) or not isinstance(item.get("path"), str):
            return f"stage {name} has an entry without a path"
        if "md5" in item and not _HASH.fullmatch(str(item["md5"])):
            return f"stage {name}: the hash of {item['path']} is truncated"
        if "md5" not in item and item.get("hash", "md5") == "md5":
            return f"stage {name}: {item['path']} has no hash"
    return None
