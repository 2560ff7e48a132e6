"""Keeps docs' promise: who may import whom, read from the code's own imports."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from soundmill.models import registry
from tests.imports import ROOT, closure, imported, module_name, modules

# room (prefix) → what it may import of the project, beside itself
ALLOWED = {
    "soundmill.errors": (),
    "soundmill.params": ("soundmill.errors",),
    "soundmill.manifest": ("soundmill.errors",),
    "soundmill.shards": ("soundmill.errors", "soundmill.forking", "soundmill.lifetime"),
    "soundmill.forking": ("soundmill.lifetime",),
    "soundmill.lifetime": (),
    "soundmill.drawing": (),
    "soundmill.preload": (),
    "soundmill.provenance": (),
    "soundmill.experiments": (),
    "soundmill.tracking": ("soundmill.errors", "soundmill.params", "soundmill.provenance"),
    "soundmill.stage": (
        "soundmill.errors",
        "soundmill.lifetime",
        "soundmill.params",
        "soundmill.manifest",
        "soundmill.shards",
        "soundmill.tracking",
    ),
    "soundmill.audio": ("soundmill.errors", "soundmill.shards", "soundmill.manifest", "soundmill.drawing"),
    "soundmill.decoding": ("soundmill.errors", "soundmill.audio"),
    "soundmill.hub": ("soundmill.errors", "soundmill.shards"),
    "soundmill.text": ("soundmill.errors", "soundmill.shards", "soundmill.manifest", "soundmill.hub"),
    "soundmill.diffusion": ("soundmill.errors", "soundmill.params"),
    "soundmill.corpora": (
        "soundmill.errors",
        "soundmill.params",
        "soundmill.manifest",
        "soundmill.shards",
        "soundmill.audio",
        "soundmill.decoding",
        "soundmill.drawing",
    ),
    "soundmill.training": (
        "soundmill.errors",
        "soundmill.lifetime",
        "soundmill.params",
        "soundmill.manifest",
        "soundmill.shards",
        "soundmill.audio",
    ),
    "soundmill.models": (
        "soundmill.errors",
        "soundmill.params",
        "soundmill.manifest",
        "soundmill.shards",
        "soundmill.audio",
        "soundmill.hub",
        "soundmill.text",
        "soundmill.diffusion",
        "soundmill.training",
        "soundmill.stage",
    ),
    # executed by the model registry alone
    "soundmill.models.serving": ("soundmill.models.checkpoint", "soundmill.models.generation", "soundmill.tracking"),
    "soundmill.evaluation": (
        "soundmill.errors",
        "soundmill.params",
        "soundmill.manifest",
        "soundmill.shards",
        "soundmill.audio",
        "soundmill.decoding",
        "soundmill.hub",
        "soundmill.training",
        "soundmill.drawing",
        "soundmill.corpora.inventory",  # what may be a sound in a folder
        "soundmill.corpora.duplicates",  # and which sound is another again
    ),
    "soundmill.clips": ("soundmill.errors", "soundmill.params", "soundmill.manifest", "soundmill.shards", "soundmill.audio"),
    "soundmill.exports": (
        "soundmill.errors",
        "soundmill.params",
        "soundmill.manifest",
        "soundmill.shards",
        "soundmill.audio",
        "soundmill.clips",
    ),
    "soundmill.doctor": (
        "soundmill.errors",
        "soundmill.params",
        "soundmill.audio",
        "soundmill.decoding",
        "soundmill.tracking",
        "soundmill.evaluation.weights",
        "soundmill.experiments",
    ),
    "soundmill.cli": ("soundmill", "flows"),  # the front door: nothing imports it
    "stages": ("soundmill",),
    "flows": (
        "flows",
        "soundmill.errors",
        "soundmill.drawing",
        "soundmill.experiments",
        "soundmill.lifetime",
        "soundmill.params",
        "soundmill.tracking",
        "soundmill.evaluation.weights",
    ),
}


# rooms that read what others wrote
READERS = tuple(f"soundmill.{name}" for name in ("corpora", "models", "training", "evaluation", "exports", "text"))


def inside(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def room(name: str) -> str:
    matches = [prefix for prefix in ALLOWED if inside(name, prefix)]
    assert matches or name == "soundmill", f"{name} belongs to no room of the architecture"
    return max(matches, key=len, default="soundmill")


@pytest.mark.parametrize("path", modules(), ids=module_name)
def test_imports_stay_inside_the_rules(path):
    name = module_name(path)
    home = room(name)
    for target in imported(path):
        top = target.split(".")[0]
        if top not in ("soundmill", "stages", "flows") or target == "soundmill":
            continue
        allowed = inside(target, home) or any(inside(target, prefix) for prefix in ALLOWED[home])
        assert allowed, f"{name} imports {target}, which {home} may not"
        assert target != "soundmill.cli", f"{name} imports the command line"
        if home == "stages":
            assert not any(inside(target, package) for package in registry.FAMILIES.values()), f"{name} imports a family, {target}"
            assert not inside(target, "stages"), f"{name} imports another stage, {target}"
        if home == "soundmill.models" and inside(target, "soundmill.models"):
            family = name.split(".")[2] if name.count(".") > 1 else None
            other = target.split(".")[2]
            assert other == family or other not in registry.FAMILIES, f"{name} imports another family, {target}"


@pytest.mark.parametrize("path", [path for path in modules() if module_name(path).startswith(READERS)], ids=module_name)
def test_json_of_others_is_read_in_one_place(path):
    calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
    assert not calls & {"json.load", "json.loads"}, "params.parse_json tells what nests too deep"


@pytest.mark.parametrize("path", modules(), ids=module_name)
def test_orchestrators_and_tracker_are_known_in_one_place(path):
    name = module_name(path)
    tops = {target.split(".")[0] for target in imported(path)}
    if not inside(name, "soundmill.tracking"):
        assert "mlflow" not in tops, f"{name} imports mlflow; only soundmill.tracking may"
    if not name.startswith("flows"):
        assert "prefect" not in tops, f"{name} imports prefect; only flows may"
    assert "dvc" not in tops, f"{name} imports dvc; flows/dvc.py calls it as a command"
    source = path.read_text(encoding="utf-8")
    for unsafe in ("pickle.load", "Unpickler(", "weights_only=False"):  # pickle's exceptions may be named
        assert unsafe not in source, f"{name} unpickles: {unsafe}"


@pytest.mark.parametrize("path", [*modules(), *sorted((ROOT / "bench").glob("*.py"))], ids=lambda path: path.stem)
def test_every_figure_is_of_the_kind_that_shows_text_as_it_is(path):
    """Of matplotlib's own, a `$` in a label is mathematics, and may raise."""
    if path != ROOT / "soundmill" / "drawing.py":
        assert not imported(path) & {"matplotlib.figure", "matplotlib.pyplot"}, "take soundmill.drawing.Figure"


def test_no_vague_rooms():
    vague = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not [path for path in modules() if vague & set(path.relative_to(ROOT).with_suffix("").parts)]


@pytest.mark.parametrize("entry", ["soundmill.cli", "soundmill.stage", "soundmill.shards", "soundmill.corpora"])
def test_heavy_libraries_are_not_imported_at_start(entry):
    heavy = [
        "torch",
        "torchaudio",
        "transformers",
        "mlflow",
        "prefect",
        "pandas",
        "matplotlib",
        "diffusers",
        "pytorch_lightning",
        "scipy",
    ]
    code = f"import sys, {entry}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_closure_follows_imports_inside_functions():
    assert ROOT / "soundmill" / "tracking" / "runs.py" in closure(ROOT / "soundmill" / "stage.py")
