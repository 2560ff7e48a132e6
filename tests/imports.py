"""What the project's modules import, read from their source: the basis of the architecture and dvc.yaml tests."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("soundmill", "stages", "flows")


def module_name(path: Path) -> str:
    parts = path.resolve().relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def module_path(name: str) -> Path | None:
    """The file of one of the project's modules, None for anything else."""
    base = ROOT.joinpath(*name.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def modules() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@cache
def imported(path: Path, in_functions: bool = True) -> frozenset[str]:
    """Every module that a file imports, at the top or (if asked) inside functions; type-checking-only imports do not count."""
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.FunctionDef) and not in_functions:
            return
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; say the whole name"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                names.add(whole if module_path(whole) else str(node.module))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return frozenset(names)


MODELS = ROOT / "soundmill" / "models"
COMPONENTS = MODELS / "components"
# What no stage depends on, since it changes no byte: tracking is told what a stage does, `lifetime` ends it with its parent, the
# registry only finds packages.
NO_DEPENDENCY = (ROOT / "soundmill" / "tracking", ROOT / "soundmill" / "lifetime.py", MODELS / "registry.py")


def packages(directory: Path) -> list[Path]:
    """The packages right below a directory."""
    return sorted(path for path in directory.iterdir() if (path / "__init__.py").exists())


def families() -> list[Path]:
    return [path for path in packages(MODELS) if path != COMPONENTS]


def components_of(family: Path) -> set[str]:
    """The components that a family's code imports, by name, with those that they import."""
    used = {path for source in family.rglob("*.py") for path in closure(source, NO_DEPENDENCY)}
    return {component.name for component in packages(COMPONENTS) if any(path.is_relative_to(component) for path in used)}


def closure(start: Path, without: tuple[Path, ...] = ()) -> set[Path]:
    """The project's files that running `start` can import, itself included (packages' `__init__` with code too), but for those
    below `without` and what only they import.

    Of a package that is only on the way to one of its modules, `__init__` is run but none of its functions is called.
    """
    found: dict[Path, bool] = {}  # whether its functions count
    todo = [(start.resolve(), True)]
    while todo:
        path, called = todo.pop()
        if found.get(path, False) or (path in found and not called):
            continue
        found[path] = called
        for name in imported(path, in_functions=called):
            parts = name.split(".")
            for depth in range(1, len(parts) + 1):
                target = module_path(".".join(parts[:depth]))
                if target and target.stat().st_size and not any(target.is_relative_to(place) for place in without):
                    todo.append((target, depth == len(parts)))
    return set(found)
