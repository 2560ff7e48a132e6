"""The tables of docs/architecture.md and docs/licences.md; `make docs` writes those that are generated.

In docs/architecture.md, it fills in the graph's columns from dvc.yaml and the tables' from soundmill/manifest.py, and keeps the
words between them; the table of rooms says which may import which. docs/licences.md has the licence of every installed dependency.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from importlib import metadata

import pyarrow as pa
from packaging.requirements import Requirement

from soundmill import manifest, params
from soundmill.shards.code import ROOT

ARCHITECTURE = ROOT / "docs" / "architecture.md"
NAMES = {"item.inputs": "INPUTS", "item.parts": "PARTS", "item.tagger": "TAGGER", "item.mel": "SPEC", "tagger.mel": "SPEC"}
NAMES |= {"item.source": "SOURCE", "compared.scores": "data/zero_shot"}
NAMES |= dict.fromkeys(("item.clips", "item.trained_on", "rename.clips", "mixup.clips"), "VARIANT")
# Of stages for each of these; else FAMILY.
KEYS = {"spectrogram": "SPEC", "mixed": "mixed", **dict.fromkeys(("clips", "compared.clips", "loops"), "VARIANT")}
# Prefixes of deps that are not code.
DATA = ("data/", "${compared.scores}", "${item.inputs}", "${item.parts}", "${item.tagger}", "forgotten.yaml")
LICENCES = ROOT / "docs" / "licences.md"
KNOWN = params.read_yaml(ROOT / "tests/licences.yaml")
PERMISSIVE = re.compile(
    r"0BSD|Apache-2\.0( WITH LLVM-exception)?|BSD(-[23]-Clause)?|CC0-1\.0|CNRI-Python|ISC|MIT(-0|-CMU)?|PSF-2\.0|ZPL-2\.1|Zlib"
)


def spans(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def allowed_imports() -> dict[str, tuple[str, ...]]:
    """Room (a prefix of module names) → what it may import of the project besides itself, from the table "Rooms"."""

    def module(name: str) -> str:
        return name if name in ("soundmill", "stages", "flows") else f"soundmill.{name}"

    rows = _rows(ARCHITECTURE.read_text(encoding="utf-8"), "Rooms")
    return {module(spans(room)[0]): tuple(map(module, spans(imports))) for room, _, imports in rows}


def architecture(page: str) -> str:
    """The page with generated columns; new rows have TODO for their words, and removed ones are gone."""
    words = {spans(name)[0]: what for name, _, what, _, _ in _rows(page, "The graph")}
    graph = [[f"`{name}`", over, words.get(name, "TODO"), reads, writes] for name, over, reads, writes in _graph()]
    facts = {spans(name)[0]: (where, row) for name, where, row, _ in _rows(page, "Tables")}
    schemas = {name: schema for name, schema in vars(manifest).items() if isinstance(schema, pa.Schema)}
    names = [*(name for name in facts if name in schemas), *(name for name in schemas if name not in facts)]
    tables = [[f"`{name}`", *facts.get(name, ("TODO", "TODO")), _code(schemas[name].names)] for name in names]
    return _replaced(_replaced(page, "The graph", graph), "Tables", tables)


def _graph() -> list[tuple[str, str, str, str]]:
    """For every stage: its name, the list that it is repeated for, what it reads, and what it writes without metrics and plots."""
    rows = []
    for name, entry in params.read_yaml(ROOT / "dvc.yaml")["stages"].items():
        stage, over = entry.get("do", entry), entry.get("foreach", "").strip("${}")
        names = {"key": KEYS.get(over, "FAMILY"), **NAMES}

        def place(path: str, names: dict[str, str] = names) -> str:
            return re.sub(r"\$\{([^}]+)\}", lambda match: names[match[1]], path)

        reads = [place(dep) for dep in stage["deps"] if dep.startswith(DATA)]
        writes = [place(out) for out in stage["outs"] if isinstance(out, str)]
        rows.append((name, _code([over] if over else []), _code(reads), _code(writes)))
    return rows


def _code(names: list[str]) -> str:
    return " ".join(f"`{name}`" for name in names)


def _section(page: str, heading: str) -> re.Match[str]:
    """The rows of the first table below a heading."""
    return re.compile(rf"(?s:^## {heading}\n.*?)^\|[-|]+\|\n((?:^\|.*\n)+)", re.M).search(page)


def _rows(page: str, heading: str) -> list[list[str]]:
    return [[cell.strip() for cell in line[1:].rstrip("|").split("|")] for line in _section(page, heading)[1].splitlines()]


def _replaced(page: str, heading: str, rows: list[list[str]]) -> str:
    lines = "".join("|" + "|".join(f" {cell} " if cell else "  " for cell in row) + "|\n" for row in rows)
    start, end = _section(page, heading).span(1)
    return page[:start] + lines + page[end:]


def packages(extras: Sequence[str] = ()) -> set[str]:
    """Names of all installed packages that Soundmill needs with these extras, directly or not."""
    wanted: dict[str, frozenset[str]] = {}
    todo = [("soundmill", frozenset(extras))]
    while todo:
        name, chosen = todo.pop()
        if name in wanted and chosen <= wanted[name]:
            continue
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # for another system
            continue
        wanted[name] = wanted.get(name, frozenset()) | chosen
        for requirement in map(Requirement, requirements):
            if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *wanted[name])):
                todo.append((re.sub(r"[-_.]+", "-", requirement.name).lower(), frozenset(requirement.extras)))
    return wanted.keys() - {"soundmill"}


def licence(package: str) -> str:
    """The SPDX expression of an installed package, or its licence as the package spells it."""
    facts = metadata.metadata(package)
    if expression := facts.get("License-Expression"):
        return expression
    if package in KNOWN["not_in_metadata"]:
        return KNOWN["not_in_metadata"][package]
    classifiers = [entry.split(" :: ")[-1] for entry in facts.get_all("Classifier") or [] if entry.startswith("License :: ")]
    named = [name for name in classifiers if name != "OSI Approved"] or [facts["License"]]
    return " OR ".join(sorted({KNOWN["spdx"].get(name, name) for name in named}))


def is_permissive(expression: str) -> bool:
    """Whether an SPDX expression allows a choice of licences that are all permissive."""
    while "(" in expression:
        expression = re.sub(r"\(([^()]*)\)", lambda part: "MIT" if is_permissive(part[1]) else "other", expression)
    return any(all(map(PERMISSIVE.fullmatch, choice.split(" AND "))) for choice in expression.split(" OR "))


def licences(page: str) -> str:
    """The page with the table as the installed packages have it."""
    product = packages()
    rows: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for package in sorted(packages(["export", "test"])):
        rows[licence(package)][package not in product].append(f"`{package}`")
    lines = [f"| {name} | {' '.join(needed)} | {' '.join(others)} |" for name, (needed, others) in sorted(rows.items())]
    start, end = re.search(r"^\| licence \|.*\n\|[-|]+\|\n((?:^\|.*\n)*)", page, re.M).span(1)
    return page[:start] + "\n".join(lines) + "\n" + page[end:]


if __name__ == "__main__":
    for path, generated in ((ARCHITECTURE, architecture), (LICENCES, licences)):
        path.write_text(generated(path.read_text(encoding="utf-8")), encoding="utf-8")
