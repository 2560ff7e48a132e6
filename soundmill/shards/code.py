"""The identity of code: the rooms and package versions that a stage's outputs depend on, beside its parameters and inputs.

A room is the directory or file of code that stands for itself in the graph: `deps` in dvc.yaml name the rooms that a stage runs
(tests/test_dvc_yaml.py compares). Which ones those are is read from the code's own import statements. What a stage keeps, and what
a killed run resumes from, is keyed on the content of these rooms and on the versions of what they import, and on nothing else.
"""

from __future__ import annotations

import ast
import importlib
import os
import platform
import re
import sys
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from functools import cache
from importlib.metadata import distributions
from pathlib import Path

from soundmill.hashing import files_digest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("soundmill", "stages", "flows")
HOUSES = ("soundmill", "soundmill/models", "soundmill/models/components", "stages")  # whose files and directories are rooms
# What no output depends on: the version's number; `lifetime` ends a stage with its parent; `ledger` refuses an old list of what is
# forgotten; tracking records what a stage does; the registry finds families and components by name.
NO_ROOMS = (
    "soundmill/__init__.py",
    "soundmill/ledger.py",
    "soundmill/lifetime.py",
    "soundmill/tracking",
    "soundmill/models/registry.py",
)
# Python's and editors' own files are no code; .dvcignore names the same.
IGNORED = ("__pycache__", "*.pyc", "*~", ".#*", "#*#", "*.swp", "*.swo", ".idea", ".vscode", ".ipynb_checkpoints", ".DS_Store")


@cache  # a process goes on with the code that it has loaded
def code_identity(*names: str) -> dict[str, str]:
    """Room → digest and package → version of all that running these modules, and whole packages, of the project can use.

    Python's version is in it too, and ffmpeg's where decoding is among the rooms: lossy formats decode bit-equal for one version.
    """
    files = running(names)
    rooms = {room_name(path): room_of(path) for path in sorted(files)}
    identity = {name: room_digest(room) for name, room in rooms.items()} | {"Python": platform.python_version()}
    if "soundmill/decoding" in rooms:  # imported by name: an import statement would have every stage depend on decoding
        identity["ffmpeg"] = importlib.import_module("soundmill.decoding.ffmpeg").installed_version()
    return identity | package_versions(name for path in files for name in imports(path))


def running(names: Iterable[str]) -> set[Path]:
    """The project's files that running these modules, and all modules of these packages, can import, themselves included.

    Of a package that is only on the way to one of its modules, `__init__` is run but none of its functions is called.
    """
    called: dict[Path, bool] = {}  # whether the file's functions count
    todo = [(path, True) for name in names for path in _sources(name)]
    while todo:
        path, functions = todo.pop()
        if called.get(path, False) or (path in called and not functions):
            continue
        called[path] = functions
        for name in imports(path, functions):
            parts = name.split(".")
            for depth in range(1, len(parts) + 1):
                target = module_path(".".join(parts[:depth]))
                if target and not _is_no_room(target):
                    todo.append((target, depth == len(parts)))
    return {path for path in called if path.stat().st_size}


def imports(path: Path, in_functions: bool = True) -> frozenset[str]:
    """Every module that a file imports, at the top or (`in_functions`) inside functions, but not for type checking only."""
    return _imports(path)[in_functions]


@cache
def _imports(path: Path) -> tuple[frozenset[str], frozenset[str]]:
    """At the top; and everywhere."""
    top: set[str] = set()
    everywhere: set[str] = set()

    def visit(node: ast.AST, names: tuple[set[str], ...]) -> None:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import | ast.ImportFrom):
            for each in names:
                each.update(_modules(node, path))
        elif not isinstance(node, ast.expr):
            inside = (everywhere,) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else names
            for child in ast.iter_child_nodes(node):
                visit(child, inside)

    visit(ast.parse(path.read_bytes()), (top, everywhere))
    return frozenset(top), frozenset(everywhere)


def _modules(node: ast.Import | ast.ImportFrom, path: Path) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif node.level:
        raise ValueError(f"{path}, line {node.lineno}: a relative import; say the whole name")
    else:
        for alias in node.names:
            whole = f"{node.module}.{alias.name}"
            yield whole if module_path(whole) else node.module


@cache
def module_path(name: str) -> Path | None:
    """The file of one of the project's modules, None for anything else."""
    if name.split(".")[0] in PACKAGES:
        base = ROOT.joinpath(*name.split("."))
        for candidate in (base.with_suffix(".py"), base / "__init__.py"):
            if candidate.is_file():
                return candidate
    return None


def room_of(path: Path) -> Path:
    """The room of a file of the project; a file that lies elsewhere is a room."""
    for house in sorted(HOUSES, key=len, reverse=True):
        if path.is_relative_to(ROOT / house):
            return ROOT / house / path.relative_to(ROOT / house).parts[0]
    return path


def room_name(path: Path) -> str:
    """As dvc.yaml names the room of a file."""
    room = room_of(path)
    return str(room.relative_to(ROOT)) if room.is_relative_to(ROOT) else room.name


def room_digest(room: Path) -> str:
    """Digest of the names and contents of its files, without those that DVC ignores."""
    return files_digest(room, sorted(_files(room)))


def package_versions(modules: Iterable[str]) -> dict[str, str]:
    """Distribution → version of those of other people that the modules are of; of what is not installed, nothing."""
    tops = {name.split(".")[0] for name in modules}.difference(PACKAGES, sys.stdlib_module_names)
    of_these = re.compile(rf"^({'|'.join(map(re.escape, sorted(tops)))})[/.]", re.MULTILINE)
    versions: dict[str, str] = {}
    for distribution in distributions():  # `packages_distributions` takes five times as long
        if tops and of_these.search(distribution.read_text("RECORD") or ""):
            versions.setdefault(distribution.name, distribution.version)  # the first on the path is what is imported
    return dict(sorted(versions.items()))


def _sources(name: str) -> list[Path]:
    file = module_path(name) or Path(importlib.import_module(name).__file__).resolve()
    return sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]


def _is_no_room(path: Path) -> bool:
    return any(path.is_relative_to(ROOT / place) for place in NO_ROOMS)


def _files(room: Path) -> Iterator[Path]:
    if room.is_file():
        yield room
    for where, directories, names in os.walk(room):
        directories[:] = [name for name in directories if not _is_ignored(name)]
        yield from (Path(where, name) for name in names if not _is_ignored(name))


def _is_ignored(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in IGNORED)
