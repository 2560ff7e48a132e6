"""Keeps dvc.lock intact: DVC rewrites it in place, so a full disk or a kill truncates it."""

import re
import shutil
from pathlib import Path
from typing import Any

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
    shutil.copyfile(lock, root / ".dvc/tmp/dvc.lock.broken")
    if good.exists() and fault_of(good) is None:
        _copy(good, lock)
        return f"dvc.lock was damaged ({fault}): restored the last intact one; later stages come from the run cache or run again"
    lock.unlink()
    return f"dvc.lock was damaged ({fault}), and there is no intact copy: it is rebuilt, from the run cache where possible"


def _copy(source: Path, target: Path) -> None:
    content = source.read_bytes()
    if not target.exists() or target.read_bytes() != content:
        disk.write_atomically(target, lambda path: path.write_bytes(content))


_HASH = re.compile(r"[0-9a-f]{32}(\.dir)?")


def is_damaged(root: Path) -> bool:
    return (root / "dvc.lock").exists() and fault_of(root / "dvc.lock") is not None


def fault_of(path: Path) -> str | None:
    """What is wrong with a dvc.lock, or None: it must parse, and every entry needs a command and complete hashes."""
    try:
        document = params.read_yaml(path)
    except UserError as error:
        return str(error).splitlines()[0]
    if not path.read_bytes().endswith(b"\n"):
        return "its last line is truncated"
    if document.get("schema") != "2.0":
        return "no `schema: '2.0'`"
    entries = document.get("stages") or {}
    if not isinstance(entries, dict):
        return "`stages` is not a mapping"
    return next(filter(None, (_fault_in(name, entry) for name, entry in entries.items())), None)


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
