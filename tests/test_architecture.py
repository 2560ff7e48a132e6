"""Enforces the table "Rooms" of docs/architecture.md, and who may import a library, with the code's own import statements."""

import ast
import subprocess
import sys
from pathlib import Path

from soundmill.models import registry
from soundmill.shards.code import PACKAGES, ROOT, module_path
from soundmill.shards.code import imports as imported
from tests.docs_tables import allowed_imports
from tests.imports import module_name, modules

ALLOWED = allowed_imports()

# The only room that may import a library. matplotlib's figures read a `$` in a label as mathematics, and may raise.
SOLE_IMPORTERS = {
    "mlflow": "soundmill.tracking",
    "prefect": "flows",
    "gradio": "soundmill.play",
    "dvc": "bench",  # flows/dvc.py calls the command
    "matplotlib.figure": "soundmill.drawing",
    "matplotlib.pyplot": "soundmill.drawing",
}
# Rooms that read what others wrote: `params.parse_json` reports JSON that nests too deep.
READERS = tuple(f"soundmill.{room}" for room in "corpora models training evaluation listening exports text".split())
UNSAFE = ("pickle.load", "pickle.Unpickler", "Unpickler(", "weights_only=False")  # pickle's exceptions may be named
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc"}
HEAVY = tuple("torch torchaudio transformers mlflow prefect pandas matplotlib diffusers gradio accelerate scipy sklearn".split())


def inside(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def may_import(name: str, target: str) -> bool:
    """Whether one of the project's modules may import another."""
    home = max((prefix for prefix in ALLOWED if inside(name, prefix)), key=len, default="soundmill")
    if inside(target, "soundmill.commands") and home not in ("soundmill.commands", "soundmill.__main__"):
        return False
    if not any(inside(target, prefix) for prefix in (home, *ALLOWED.get(home, ()))):
        return False
    families = [f"soundmill.models.{family}" for family in registry.FAMILIES]
    if home == "stages":  # no family by name, no other stage
        return not any(inside(target, other) for other in ("stages", *families))
    return home != "soundmill.models" or all(inside(name, family) for family in families if inside(target, family))


def test_who_may_import_whom():
    """Of the project's own modules: the rooms, their imports, and no vague names."""
    breaches = []
    for path in modules():
        name = module_name(path)
        if name != "soundmill" and not any(inside(name, prefix) for prefix in ALLOWED):
            breaches.append(f"{name} belongs to no room of docs/architecture.md")
        if VAGUE & set(name.split(".")):
            breaches.append(f"{name}: a vague name")
        targets = [target for target in imported(path) if target.split(".")[0] in PACKAGES and target != "soundmill"]
        breaches += [f"{name} may not import {target}" for target in targets if not may_import(name, target)]
    assert not breaches, "\n".join(breaches)


def test_modules_import_no_circle():
    """Neither at the top, in functions nor for types; in `soundmill/models`, nor by a module that is named in a string."""
    graph = {module_name(path): imported_or_named(path) for path in modules()}
    circles, done = [], set()

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            circles.append(" → ".join([*path[path.index(name) :], name]))
        elif name not in done:
            for target in sorted(graph[name] & set(graph)):
                visit(target, [*path, name])
            done.add(name)

    for name in graph:
        visit(name, [])
    assert not circles, "\n".join(circles)


def imported_or_named(path: Path) -> set[str]:
    """Modules of the project that a file imports anywhere; in `soundmill/models`, also those that it names in strings."""
    tree, name = ast.parse(path.read_bytes()), module_name(path)
    targets = set()
    for node in ast.walk(tree):
        match node:
            case ast.Import(names):
                targets |= {alias.name for alias in names}
            case ast.ImportFrom(module, names):
                wholes = {f"{module}.{alias.name}" for alias in names}
                targets |= {whole if module_path(whole) else module for whole in wholes}
            case ast.Constant(str(text)) if inside(name, "soundmill.models"):
                targets.add(text)
            case ast.JoinedStr([ast.FormattedValue(ast.Name("__name__")), ast.Constant(end)]):
                targets.add(name + end)
    return {target for target in targets if module_path(target)} - {name}


def test_libraries_with_a_sole_importer():
    """MLflow, Prefect, DVC, matplotlib's figures, others' JSON, pickle."""
    breaches = []
    for path in (*modules(), *sorted((ROOT / "bench").glob("*.py"))):
        name = module_name(path)
        for library, owner in SOLE_IMPORTERS.items():
            if not inside(name, owner) and any(inside(target, library) for target in imported(path)):
                breaches.append(f"{name} imports {library}; who may: {owner}")
        source = path.read_text(encoding="utf-8")
        breaches += [f"{name} unpickles: {unsafe}" for unsafe in UNSAFE if unsafe in source]
        calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)}
        if name.startswith(READERS) and calls & {"json.load", "json.loads"}:
            breaches.append(f"{name} parses JSON of others; take params.parse_json")
    assert not breaches, "\n".join(breaches)


def test_heavy_libraries_are_not_imported_at_start():
    code = f"""
import sys
from soundmill.evaluation import embedders
embedders.published()
for entry in ("soundmill.shards", "soundmill.corpora", "soundmill.stage", "soundmill.commands"):
    __import__(entry)
    heavy = [name for name in {HEAVY} if name in sys.modules]
    assert not heavy, f"import {{entry}} imports {{heavy}}"
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_stage_imports_heavy_libraries_only_where_its_work_begins():
    stages = {path.stem for path in (ROOT / "stages").glob("[a-z]*.py")}
    torches, trains = {"generate", "latents", "tagger"}, {"autoencoder", "train", "vocoder"}
    code = f"""
import sys
heavy = {set(HEAVY) - {"scipy"}}  # a stage may read one of its modules
for stages, allowed in (({stages - torches - trains}, set()), ({torches}, {{"torch"}}), ({trains}, {{"torch", "accelerate"}})):
    for stage in stages:
        __import__("stages." + stage)
        found = heavy.difference(allowed).intersection(sys.modules)
        assert not found, f"stages.{{stage}} imports {{found}}"
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
