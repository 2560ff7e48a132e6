"""Keeps the graph honest: dependencies are the code a stage imports, parameters its own section, conf composes params.yaml."""

import importlib
import json
import re
from functools import cache

from soundmill import params
from soundmill.shards import code
from soundmill.shards.code import ROOT
from tests.docs_tables import DATA
from tests.imports import EVERY_FAMILY, VOCODED

DVC = params.read_yaml(ROOT / "dvc.yaml")["stages"]
STAGES = {name: stage.get("do", stage) for name, stage in DVC.items()}
running = cache(code.running)


def code_deps(stage: dict) -> set[str]:
    return {dep for dep in stage["deps"] if not dep.startswith(DATA)}


def resolved(name: str, document: dict) -> list[tuple[str, dict]]:
    """(key, stage) of each stage that a template makes with these parameters."""
    over = DVC[name].get("foreach")
    if over is None:
        return [("", DVC[name])]
    items = params.section(document, over.removeprefix("${").removesuffix("}"), "params.yaml")
    output = []
    for key in items:
        item = items[key] if isinstance(items, dict) else {}

        def value(match: re.Match, key: str = key, item: dict = item) -> str:
            place = match[1]
            if place == "key":
                return key
            inside = place.removeprefix("item.")
            return str(params.section(item if inside != place else document, inside, place))

        output.append((key, json.loads(re.sub(r"\$\{([^}]+)\}", value, json.dumps(STAGES[name])))))
    return output


def rooms_of(stage: dict, key: str, document: dict) -> set[str]:
    """The rooms of code that what the stage keeps is keyed on."""
    name = "stages." + re.search(r"-m stages\.(\w+)", stage["cmd"])[1]
    by_name = getattr(importlib.import_module(name), "code_by_name", lambda *_: ())
    (section,) = stage["params"]
    modules = by_name(key, params.section(document, section, "params.yaml"), document)
    return {code.room_name(path) for path in running((name, *modules))}


def code_faults(name: str, documents: dict[str, dict]) -> list[str]:
    """What a stage runs and does not depend on, and rooms that it depends on and with no choice of parameters enters."""
    faults, deps, entered = [], set(), set()
    for choice, document in documents.items():
        for key, stage in resolved(name, document):
            rooms = rooms_of(stage, key, document)
            faults += [f"{choice}: {name}@{key}: runs {room}, which is no dep" for room in sorted(rooms - code_deps(stage))]
            deps |= code_deps(stage)
            entered |= rooms
    return faults + [f"{name}: dep {dep}, of which it runs nothing" for dep in sorted(deps - entered)]


def test_deps_are_the_rooms_that_a_stage_runs():
    """All of its code, and no room that it never enters; so a change elsewhere reruns nothing."""
    trained = sorted(path.stem for path in (ROOT / "conf" / "vocoder").glob("*_laptop.yaml"))
    choices = [[EVERY_FAMILY, "vocoder=griffin_lim"], [EVERY_FAMILY, "zero_shot.embedder=clap", "mixing=on", "latents=rave"]]
    choices += [[VOCODED, f"vocoder={vocoder}"] for vocoder in trained]
    documents = {choice[-1]: params.compose(ROOT / "conf", choice) for choice in choices}
    faults = [fault for name in STAGES for fault in code_faults(name, documents)]
    assert not faults, "\n".join(faults)


def port_faults(name: str, stage: dict) -> list[str]:
    """Where a command, its lists and its section of the parameters do not agree."""
    listed = [out for kind in ("outs", "metrics", "plots") for out in stage.get(kind, [])]
    outs = {key for out in listed for key in ([out] if isinstance(out, str) else out)}
    ports = {dep for dep in stage["deps"] if dep.startswith(DATA)} | outs
    on_command = set(
        re.findall(r"(data/\S+|\$\{compared\.scores\}\S+|\$\{item\.(?:inputs|parts|tagger)\}|forgotten\.yaml)", stage["cmd"])
    )
    faults = [f"{name}: {port} is on the command or in deps and outs, not in both" for port in sorted(on_command ^ ports)]
    module = re.search(r"-m stages\.(\w+)", stage["cmd"])[1]
    section = {"scan": "corpus", "segment": "clips", "resample": "clips", "encode_text": "text"}.get(module, module)
    variant = re.search(r"--variant (\S+)", stage["cmd"])
    sections = ([f"{section}.{variant[1]}"],) if variant else ([section], [f"${{key}}.{section}"])
    faults += [] if stage["params"] in sections else [f"{name}: params {stage['params']} are not its section"]
    cached = [entry for entry in stage["metrics"] for options in entry.values() if options["cache"]]
    faults += [f"{name}: metrics {entry} are in the cache, not in git" for entry in cached]
    uncached = [out for out in stage.get("outs", []) if isinstance(out, dict)]  # but for metrics and plots
    faults += [f"{name}: for {out} DVC's run cache would not keep the stage" for out in uncached]
    return faults + ([f"{name}: the corpus' own path is on the command"] if "corpus.path" in stage["cmd"] else [])


def test_ports_params_and_metrics_are_those_of_the_command():
    faults = [fault for name, stage in STAGES.items() for fault in port_faults(name, stage)]
    assert not faults, "\n".join(faults)


def test_other_terms_of_use_rerun_nothing_before_splits():
    """`scan` runs always; its table of recordings does not depend on `corpus.terms` (tests/stages/test_terms.py)."""
    assert {name for name, stage in STAGES.items() if "data/refused.parquet" in stage["deps"]} == {"splits"}
    of_corpus = {name for name, stage in STAGES.items() if any(key.startswith("corpus") for key in stage["params"])}
    assert of_corpus == {"corpus", "scan"}


def test_params_yaml_is_the_composition_of_conf():
    assert params.read_yaml(ROOT / "params.yaml") == params.compose(ROOT / "conf", []), "run `soundmill params`"


def test_dvcignore_and_hydra():
    lines = (ROOT / ".dvcignore").read_text().splitlines()
    ignored = [line.removeprefix("\\") for line in lines if not line.startswith(("# ", "/"))]
    assert tuple(ignored) == code.IGNORED
    assert "enabled = true" in (ROOT / ".dvc" / "config").read_text().lower()
