"""Do the tests notice a wrong line? Mutants of the product, each with one line changed, and the tests of that module.

A coverage file limits them to lines that tests reach (`coverage` and `pytest-cov` are not pinned; install them first). Without it,
a line that no test reaches counts as missed:

    .venv/bin/pytest -m "not slow and not attack" -n 2 --cov=soundmill --cov=stages --cov=flows
    python -m bench.mutants draw mutants.json --coverage .coverage --count 80 --seed 0
    python -m bench.mutants judge mutants.json --tree COPY --results new.csv

A mutant is known by the text of its line, so a list drawn from one commit can be judged by the tests of another.
"""

import argparse
import ast
import csv
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.measure import ROOT

COMPARISONS = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.In: "not in", ast.NotIn: "in", ast.Is: "is not", ast.IsNot: "is",
}  # fmt: skip
WRITTEN = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=",
           ast.In: "in", ast.NotIn: "not in", ast.Is: "is", ast.IsNot: "is not"}  # fmt: skip
FILES = 6  # of tests at most for each mutant, those named like its module first
TIMEOUT = 300  # seconds; a mutant that hangs is caught


@dataclass(frozen=True)
class Mutant:
    path: str
    kind: str  # comparison, constant or statement
    before: str  # the line, which stands once in its file
    after: str


def candidates(path: str, source: str, reached: set[int] | None) -> Iterator[tuple[str, Mutant]]:
    """Every (kind, mutant) of a file in lines that tests reach; None: in all its lines."""
    lines = source.splitlines()

    def mutant(node: ast.AST, kind: str, start: int, end: int, text: str) -> Iterator[tuple[str, Mutant]]:
        line = lines[node.lineno - 1]
        if (reached is None or node.lineno in reached) and lines.count(line) == 1:
            raw = line.encode()
            after = (raw[:start] + text.encode() + raw[end:]).decode()
            yield kind, Mutant(path, kind, line, after)

    for node in ast.walk(ast.parse(source)):
        if getattr(node, "lineno", None) is None or node.lineno != node.end_lineno:
            continue
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            operator, raw = type(node.ops[0]), lines[node.lineno - 1].encode()
            between = raw[node.left.end_col_offset : node.comparators[0].col_offset]
            place = node.left.end_col_offset + between.find(WRITTEN[operator].encode())
            if WRITTEN[operator].encode() in between:
                end = place + len(WRITTEN[operator])
                yield from mutant(node, "comparison", place, end, COMPARISONS[operator])
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
            value = not node.value if isinstance(node.value, bool) else node.value + 1
            yield from mutant(node, "constant", node.col_offset, node.end_col_offset, repr(value))
        elif isinstance(node, ast.Assign | ast.AugAssign | ast.Raise) or (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Call | ast.Await)
        ):
            yield from mutant(node, "statement", node.col_offset, node.end_col_offset, "pass")


def reached(coverage_file: Path) -> dict[str, set[int]]:
    """The lines of each file that run while tests do, in functions or not."""
    from coverage import CoverageData

    data = CoverageData(str(coverage_file))
    data.read()
    files = {Path(name): set(data.lines(name) or ()) for name in data.measured_files()}
    return {str(path.relative_to(ROOT)): lines for path, lines in sorted(files.items()) if path.is_relative_to(ROOT)}


def tests_of(path: str, tree: Path) -> list[str]:
    """The files of tests that import a module, those named like it or like what imports it first, then others of its room."""
    *packages, name = Path(path).with_suffix("").parts
    package, parent = ".".join(packages), ".".join(packages[:-1])
    imports = [rf"{package}\.{name}\b", rf"from {package} import [^\n]*\b{name}\b", rf"from {package} import \([^)]*\b{name}\b"]
    around = [rf"{package}\b", rf"from {parent} import [^\n]*\b{packages[-1]}\b"]

    def matching(files: dict[Path, str], patterns: list[str]) -> list[Path]:
        return [file for file, text in files.items() if any(re.search(pattern, text) for pattern in patterns)]

    files = {file: file.read_text() for file in sorted((tree / "tests").rglob("test_*.py")) if "bench" not in file.parts}
    by_module, by_package = matching(files, imports), matching(files, around)
    others = {
        file: file.read_text() for room in (packages[0], "tests") for file in (tree / room).rglob("*.py") if file not in files
    }
    users = {file.stem for file in matching(others, imports)} - {"__init__"}
    in_room = [file for file in by_package if any(packages[-1] in part for part in file.relative_to(tree).parts)]

    def order(file: Path) -> tuple[bool | int, ...]:
        of_user = any(user in file.stem for user in users)
        return name not in file.stem, not of_user and file not in by_module, file not in in_room, len(files[file])

    found = list(dict.fromkeys([*by_module, *in_room, *(() if by_module else by_package)]))
    return [str(file.relative_to(tree)) for file in sorted(found, key=order)[:FILES]]


def every_file() -> dict[str, None]:
    files = (file for room in ("soundmill", "stages", "flows") for file in (ROOT / room).rglob("*.py"))
    return {str(file.relative_to(ROOT)): None for file in sorted(files)}


def draw(coverage_file: Path | None, count: int, seed: int) -> list[Mutant]:
    """`count` mutants, the three kinds in turn, no two in one line."""
    by_kind: dict[str, list[Mutant]] = {"comparison": [], "constant": [], "statement": []}
    for path, lines in (reached(coverage_file) if coverage_file else every_file()).items():
        for kind, mutant in candidates(path, (ROOT / path).read_text(), lines):
            by_kind[kind].append(mutant)
    rng, drawn, taken = random.Random(seed), [], set()
    for mutants in by_kind.values():
        rng.shuffle(mutants)
    while len(drawn) < count:
        kind = list(by_kind)[len(drawn) % 3]
        mutant = by_kind[kind].pop()
        if (mutant.path, mutant.before) not in taken:
            taken.add((mutant.path, mutant.before))
            drawn.append(mutant)
    return drawn


def judge(mutant: Mutant, tree: Path) -> tuple[str, str]:
    """("caught", "missed", "changed": the line is not in this tree, or "error": pytest did not run) and by what, or why not."""
    file = tree / mutant.path
    source = file.read_text() if file.is_file() else ""
    lines = source.split("\n")
    if lines.count(mutant.before) != 1:
        return "changed", ""
    if not (tests := tests_of(mutant.path, tree)):
        return "missed", "no test imports it"
    lines[lines.index(mutant.before)] = mutant.after
    file.write_text("\n".join(lines))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [str(tree / ".venv/bin/python"), "-m", "pytest", "-x", "-n", "0", "-m", "not slow and not attack", *tests]
    try:
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return "caught", "timeout"
    finally:
        file.write_text(source)
    failed = [row.split()[1] for row in done.stdout.splitlines() if row.startswith(("FAILED ", "ERROR "))]
    if done.returncode == 0:
        return "missed", f"{len(tests)} files of tests pass"
    if failed or done.returncode == 1:  # a mutant that cannot be imported is caught, too
        return "caught", (failed or ["?"])[0]
    return "error", f"pytest's status is {done.returncode}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["draw", "judge"])
    parser.add_argument("mutants", type=Path)
    parser.add_argument("--coverage", type=Path)
    parser.add_argument("--count", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tree", type=Path, help="a checkout with its environment, which is changed and restored")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--part", default="0/1", help="every n-th mutant only: 0/2 and 1/2 are two halves")
    args = parser.parse_args()
    if args.what == "draw":
        args.mutants.write_text(json.dumps([asdict(one) for one in draw(args.coverage, args.count, args.seed)], indent=1) + "\n")
        return
    number, of = map(int, args.part.split("/"))
    with args.results.open("w", newline="") as file:
        writer = csv.writer(file)
        for row in json.loads(args.mutants.read_text())[number::of]:
            mutant = Mutant(**row)
            verdict, by = judge(mutant, args.tree)
            writer.writerow([mutant.path, mutant.kind, mutant.before.strip(), mutant.after.strip(), verdict, by])
            file.flush()
            print(verdict, mutant.path, mutant.after.strip(), by, sep="\t", flush=True)


if __name__ == "__main__":
    sys.exit(main())
