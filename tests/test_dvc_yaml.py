"""Keeps the graph honest: dependencies are the code a stage imports, parameters its own section, conf composes params.yaml."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from soundmill import params
from tests.imports import MODELS, NO_DEPENDENCY, ROOT, closure

DVC = params.read_yaml(ROOT / "dvc.yaml")["stages"]
DATA = ("data/", "${item.inputs}")
STAGES = {name: stage.get("do", stage) for name, stage in DVC.items()}


def code_deps(stage: dict) -> set[str]:
    return {dep for dep in stage["deps"] if not dep.startswith(DATA)}


def resolved(name: str, document: dict) -> list[tuple[str, dict]]:
    """(key, stage) of each stage that a template makes with these parameters."""
    over = DVC[name].get("foreach")
    if over is None:
        return [("", DVC[name])]
    items = params.section(document, over.removeprefix("${").removesuffix("}"), "params.yaml")
    made = []
    for key in items:
        item = items[key] if isinstance(items, dict) else {}

        def value(match: re.Match, key: str = key, item: dict = item) -> str:
            place = match[1]
            if place == "key":
                return key
            inside = place.removeprefix("item.")
            return str(params.section(item if inside != place else document, inside, place))

        made.append((key, json.loads(re.sub(r"\$\{([^}]+)\}", value, json.dumps(STAGES[name])))))
    return made


def code_of(stage: dict, key: str) -> set[Path]:
    """Every file of the project that a stage runs, but for what records it and what only finds families and components."""
    module = re.search(r"-m stages\.(\w+)", stage["cmd"])[1]
    entries = [ROOT / "stages" / f"{module}.py"]
    if module in ("train", "generate"):
        entries += (MODELS / key).rglob("*.py")
    if module in ("autoencoder", "vocoder"):
        entries += [
            path
            for dep in code_deps(stage)
            if dep.startswith("soundmill/models/components/")
            for path in (ROOT / dep).rglob("*.py")
        ]
    files = {path for entry in entries for path in closure(entry, NO_DEPENDENCY)}
    return {path for path in files if path != ROOT / "soundmill" / "__init__.py"}


@pytest.mark.parametrize("vocoder", ["griffin_lim", "hifigan_laptop"])
@pytest.mark.parametrize("name", STAGES)
def test_deps_are_the_rooms_that_a_stage_runs(name, vocoder):
    """All of its code, and no room that it never enters; so a change elsewhere reruns nothing."""
    deps, entered = set(), {f"soundmill/models/components/{vocoder.removesuffix('_laptop')}"}  # found by its kind, not imported
    for key, stage in resolved(name, params.compose(ROOT / "conf", [f"vocoder={vocoder}"])):
        code = {str(path.relative_to(ROOT)) for path in code_of(stage, key)}
        rooms = {dep: [file for file in code if file == dep or file.startswith(f"{dep}/")] for dep in code_deps(stage)}
        assert sorted(code - {file for files in rooms.values() for file in files}) == []
        deps |= set(rooms)
        entered |= {dep for dep, files in rooms.items() if files}
    assert deps - entered == set()


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
