"""Keeps the graph honest: dependencies are the code a stage imports, parameters its own section, conf composes params.yaml."""

from __future__ import annotations

import re

import pytest

from soundmill import params
from soundmill.models import registry
from tests.imports import ROOT, TRACKING, closure

DVC = params.read_yaml(ROOT / "dvc.yaml")["stages"]
DATA = ("data/", "${item.inputs}")
STAGES = {name: stage.get("do", stage) for name, stage in DVC.items()}


def code_deps(stage: dict) -> set[str]:
    return {dep for dep in stage["deps"] if not dep.startswith(DATA)}


@pytest.mark.parametrize("name", STAGES)
def test_deps_are_exactly_the_code_a_stage_imports(name):
    """But for what records the run: it is told what a stage does and changes no byte of it."""
    stage = STAGES[name]
    module = re.search(r"-m stages\.(\w+)", stage["cmd"]).group(1)
    wanted = {str(path.relative_to(ROOT)) for path in closure(ROOT / "stages" / f"{module}.py", TRACKING)}
    if "--family" in stage["cmd"] and module in ("train", "generate"):
        wanted |= {"soundmill/models/${key}"}
        for family in registry.names():  # all have the same dependencies: a list in dvc.yaml cannot differ between items
            package = ROOT / "soundmill" / "models" / family
            for path in package.rglob("*.py"):
                wanted |= {
                    text
                    for used in closure(path, TRACKING)
                    if not (text := str(used.relative_to(ROOT))).startswith(f"soundmill/models/{family}")
                }
    assert code_deps(stage) == wanted, "run `python tests/write_deps.py`"


@pytest.mark.parametrize("name", STAGES)
def test_every_input_on_the_command_is_a_dep_and_every_output_an_out(name):
    stage = STAGES[name]
    outs = [
        key
        for kind in ("outs", "metrics", "plots")
        for out in stage.get(kind, [])
        for key in ([out] if isinstance(out, str) else out)
    ]
    on_command = set(re.findall(r"(data/\S+|\$\{item\.inputs\})", stage["cmd"]))
    assert on_command == {dep for dep in stage["deps"] if dep.startswith(DATA)} | set(outs)


@pytest.mark.parametrize("name", STAGES)
def test_params_are_exactly_the_section(name):
    stage = STAGES[name]
    module = re.search(r"-m stages\.(\w+)", stage["cmd"]).group(1)
    section = {"scan": "corpus", "encode_text": "text"}.get(module, module)
    variant = re.search(r"--variant (\S+)", stage["cmd"])
    assert stage["params"] in ([f"{section}.{variant[1]}"],) if variant else ([section], [f"${{key}}.{section}"])


def test_metrics_are_in_git_and_not_in_the_cache():
    for stage in STAGES.values():
        for entry in stage["metrics"]:
            assert [options["cache"] for options in entry.values()] == [False]


def test_params_yaml_is_the_composition_of_conf():
    assert params.read_yaml(ROOT / "params.yaml") == params.compose(ROOT / "conf", []), "run `soundmill params`"


@pytest.mark.parametrize("corpus", ["synthetic", "auto", "folder", "esc", "audiocaps", "union"])
@pytest.mark.parametrize("scale", ["laptop", "paper"])
def test_every_group_composes(corpus, scale):
    document = params.compose(ROOT / "conf", [f"corpus={corpus}", f"scale={scale}"])
    assert document["corpus"]["format"] == corpus
    assert bool(document["corpus"]["embedded"]) != bool(document["corpus"]["external"])


def test_no_external_path_stands_on_a_command():
    for stage in STAGES.values():
        assert "corpus.path" not in stage["cmd"]


def test_dvcignore_and_hydra():
    assert "__pycache__/" in (ROOT / ".dvcignore").read_text()
    assert "enabled = true" in (ROOT / ".dvc" / "config").read_text().lower()
