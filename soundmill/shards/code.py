"""The identity of code: the rooms and package versions that a stage's outputs depend on.

A room is a directory or file of code that is one dependency in the graph: `deps` in dvc.yaml list the rooms that a stage runs, and
tests/test_dvc_yaml.py compares them with the code's import statements, which are read here. Kept shards and the scratch of killed
runs are keyed on the content of these rooms and on the versions of the packages that they import.
"""

import ast
import importlib
import os
import platform
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatch
from functools import cache
from importlib.metadata import distributions
from pathlib import Path

from soundmill.hashing import files_digest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("soundmill", "stages", "flows")
ROOM_PARENTS = ("soundmill", "soundmill/models", "soundmill/models/components", "stages")  # each file and directory in them is one
# Code that no output depends on: the version number; `lifetime` ends a stage with its parent; `ledger` refuses an outdated list of
# forgotten recordings; tracking records runs; `terminal` and `credentials` clean what is shown; the registries find families and
# components by name.
NOT_ROOMS = (
    "soundmill/__init__.py",
    "soundmill/credentials.py",
    "soundmill/ledger.py",
    "soundmill/lifetime.py",
    "soundmill/terminal.py",
    "soundmill/tracking",
    "soundmill/models/registry.py",
    "soundmill/models/components/registry.py",
)
# Files of Python and editors, which are not code; .dvcignore has the same.
IGNORED = ("__pycache__", "*.pyc", "*~", ".#*", "#*#", "*.swp", "*.swo", ".idea", ".vscode", ".ipynb_checkpoints", ".DS_Store")


@cache  # a process keeps running the code that it has loaded
def code_identity(*names: str) -> dict[str, str]:
    """Room → digest and package → version of everything that these modules and packages of the project can run.

    Python's version is included, and ffmpeg's if decoding is among the rooms: lossy decoding is bit-equal only within one version.
    """
    files = running(names)
    rooms = {room_name(path): room_of(path) for path in sorted(files)}
    identity = {name: files_digest(room, sorted(_files(room))) for name, room in rooms.items()}
    identity["Python"] = platform.python_version()
    if "soundmill/decoding" in rooms:  # by name: with an import statement, every stage would depend on decoding
        identity["ffmpeg"] = importlib.import_module("soundmill.decoding.ffmpeg").installed_version()
    return identity | package_versions(name for path in files for name in imports(path))


def differences(expected: Mapping[str, str], *names: str) -> str:
    """The rooms and packages that differ from another process, whose `code_identity(*names)` is `expected`; "" if none does."""
    own = code_identity(*names)
    differing = [name for name in expected if name in own and own[name] != expected[name]]
    return ", ".join(f"{name} {own[name]}, not {expected[name]}" for name in differing[:5])


def running(names: Iterable[str]) -> set[Path]:
    """The project's files that these modules, and all modules of these packages, can import, themselves included.

    A package that is imported only to reach one of its modules runs its `__init__`, but none of the functions there.
    """
    called: dict[Path, bool] = {}  # file → whether imports inside its functions count
    todo = []
    for name in names:
        file = module_path(name) or Path(importlib.import_module(name).__file__).resolve()
        todo += [(path, True) for path in (sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file])]
    while todo:
        path, functions = todo.pop()
        if called.get(path, False) or (path in called and not functions):
            continue
        called[path] = functions
        for name in imports(path, functions):
            parts = name.split(".")
            for depth in range(1, len(parts) + 1):
                target = module_path(".".join(parts[:depth]))
                if target and not any(target.is_relative_to(ROOT / place) for place in NOT_ROOMS):
                    todo.append((target, depth == len(parts)))
    return {path for path in called if path.stat().st_size}


def imports(path: Path, in_functions: bool = True) -> frozenset[str]:
    """Modules that a file imports at the top or (`in_functions`) inside functions, except for type checking only."""
    return _imports(path)[in_functions]


@cache
def _imports(path: Path) -> tuple[frozenset[str], frozenset[str]]:
    """Imports at the top; imports everywhere."""
    top: set[str] = set()
    everywhere: set[str] = set()

    def visit(node: ast.AST, names: tuple[set[str], ...]) -> None:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import | ast.ImportFrom):
            for target in names:
                target.update(_modules(node, path))
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
        raise ValueError(f"{path}, line {node.lineno}: a relative import; use the full name")
    else:
        for alias in node.names:
            full = f"{node.module}.{alias.name}"
            yield full if module_path(full) else node.module


@cache
def module_path(name: str) -> Path | None:
    """The file of a module of the project; None for other modules."""
    if name.split(".")[0] in PACKAGES:
        base = ROOT.joinpath(*name.split("."))
        for candidate in (base.with_suffix(".py"), base / "__init__.py"):
            if candidate.is_file():
                return candidate
    return None


def room_of(path: Path) -> Path:
    """The room of a file of the project; a file outside ROOM_PARENTS is its own room."""
    for parent in sorted(ROOM_PARENTS, key=len, reverse=True):
        if path.is_relative_to(ROOT / parent):
            return ROOT / parent / path.relative_to(ROOT / parent).parts[0]
    return path


def room_name(path: Path) -> str:
    """The name of a file's room in dvc.yaml."""
    room = room_of(path)
    return str(room.relative_to(ROOT)) if room.is_relative_to(ROOT) else room.name


def package_versions(modules: Iterable[str]) -> dict[str, str]:
    """Distribution → version of the installed third-party packages that contain these modules."""
    tops = {name.split(".")[0] for name in modules}.difference(PACKAGES, sys.stdlib_module_names)
    pattern = re.compile(rf"^({'|'.join(map(re.escape, sorted(tops)))})[/.]", re.MULTILINE)
    versions: dict[str, str] = {}
    for distribution in distributions():  # `packages_distributions` is five times slower
        if tops and pattern.search(distribution.read_text("RECORD") or ""):
            versions.setdefault(distribution.name, distribution.version)  # the first on the path is imported
    return dict(sorted(versions.items()))


def _files(room: Path) -> Iterator[Path]:
    """Without those that DVC ignores."""
    if room.is_file():
        yield room
    for where, directories, names in os.walk(room):
        ignored = {name for name in directories + names if any(fnmatch(name, pattern) for pattern in IGNORED)}
        directories[:] = [name for name in directories if name not in ignored]
        yield from (Path(where, name) for name in names if name not in ignored)
