"""The tables of docs/architecture.md: which rooms may import which, and the columns that are generated; `make docs` writes those.

`python -m tests.architecture_page` fills in the graph's columns from dvc.yaml and the tables' from soundmill/manifest.py, and keeps
the words between them.
"""

import re

import pyarrow as pa

from soundmill import manifest, params
from soundmill.shards.code import ROOT

PAGE = ROOT / "docs" / "architecture.md"
NAMES = {"item.inputs": "INPUTS", "item.parts": "PARTS", "item.tagger": "TAGGER", "item.mel": "SPEC", "tagger.mel": "SPEC"}
NAMES |= {"item.source": "SOURCE", "compared.scores": "data/zero_shot"} | dict.fromkeys(
    ("item.clips", "rename.clips", "mixup.clips"), "VARIANT"
)
KEYS = {"spectrogram": "SPEC"} | dict.fromkeys(
    ("clips", "compared.clips", "loops"), "VARIANT"
)  # of stages for each of these; else FAMILY
DATA = (
    "data/",
    "${compared.scores}",
    "${item.inputs}",
    "${item.parts}",
    "${item.tagger}",
    "forgotten.yaml",
)  # prefixes of deps that are not code


def spans(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def allowed_imports() -> dict[str, tuple[str, ...]]:
    """Room (a prefix of module names) → what it may import of the project besides itself, from the table "Rooms"."""

    def module(name: str) -> str:
        return name if name in ("soundmill", "stages", "flows") else f"soundmill.{name}"

    rows = _rows(PAGE.read_text(encoding="utf-8"), "Rooms")
    return {module(spans(room)[0]): tuple(map(module, spans(imports))) for room, _, imports in rows}


def generated(page: str) -> str:
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


if __name__ == "__main__":
    PAGE.write_text(generated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
