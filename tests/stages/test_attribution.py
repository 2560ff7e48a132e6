"""The attribution stage over a small checkpoint and a corpus whose terms change."""

import json

from soundmill import attribution, params
from soundmill.shards.code import ROOT
from stages import attribution as stage
from tests.stages.handling import call, settle
from tests.test_attribution import checkpoint, clip, recordings

PORTS = ("--family", "tiny", "--model", "data/model", "--corpus", "data/corpus", "--table", "data/a/ATTRIBUTION.csv")


def credit(project, **terms) -> tuple[list[attribution.Credit], str]:
    recordings(project / "data/corpus/recordings.parquet", **terms)
    call(stage, *PORTS, "--summary", "data/a/summary.json")
    return attribution.read(project / "data/a/ATTRIBUTION.csv"), (project / "data/a/summary.json").read_text()


def test_a_new_name_changes_the_table_and_nothing_that_another_stage_reads(project):
    settle(project, tiny={}, attribution={})
    checkpoint(project / "data/model", [clip("dog"), clip("cat")], vocoder=[clip("owl")])
    (project / "data/corpus").mkdir()
    terms = {"cat": ("CC0-1.0", "Bob", None, "refused"), "owl": ("CC-BY-4.0", "Eve", None, "allowed")}
    before, shown = credit(project, dog=("CC0-1.0", "Ann", None, "allowed"), **terms)
    assert [(row.recording, row.creator, row.used_for) for row in before] == [
        ("cat.wav", "Bob", "model"),
        ("dog.wav", "Ann", "model"),
        ("owl.wav", "Eve", "vocoder"),
    ]
    renamed, still = credit(project, dog=("CC0-1.0", "Ann B.", None, "allowed"), **terms)
    assert (renamed[1].creator, still) == ("Ann B.", shown)
    _, without = credit(project, dog=(None, "Ann", None, "unknown"), **terms)
    assert json.loads(without)["marks"] == ["refused", "unknown"]
    assert json.loads(without)["hours"]["licence"].keys() == {"CC0-1.0", "CC-BY-4.0", "unknown"}


def test_only_what_names_or_shows_terms_depends_on_them():
    graph = params.read_yaml(ROOT / "dvc.yaml")["stages"]
    stages = {name: entry.get("do", entry) for name, entry in graph.items()}
    readers = {name: {dep for dep in entry["deps"] if "data/attribution" in dep} for name, entry in stages.items()}
    assert {name: deps for name, deps in readers.items() if deps} == {"evaluate": {"data/attribution/${key}/summary.json"}}
    assert not any("data/corpus" in dep for name in ("train", "generate", "evaluate") for dep in stages[name]["deps"])
