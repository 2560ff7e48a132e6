"""Whose sounds weights were trained on: known tables, hostile values, ancestors, a real checkpoint; and the stage."""

import csv
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from soundmill import attribution, manifest, params, shards
from soundmill.errors import UserError
from soundmill.shards.code import ROOT
from soundmill.training.checkpoint import UNKNOWN_START, write_trained_on
from stages import attribution as stage
from tests.commands.running import soundmill, works
from tests.stages.handling import call, settle


def clip(recording: str, number: int = 0, **more) -> dict:
    named = {"clip_id": f"{recording}_{number}", "recording_id": recording, "source": f"{recording}.wav"}
    return {**named, "start": float(number), "seconds": 2.0, "digest": f"{recording}{number}", "mix": None, "earlier": False} | more


def checkpoint(directory: Path, rows: list[dict] | None, **parts: list[dict] | None) -> Path:
    for place, some in ((directory, rows), *((directory / name, some) for name, some in parts.items())):
        place.mkdir(parents=True)
        (place / "config.json").write_text("{}")
        if some is not None:
            shards.write_rows(some, place / manifest.TRAINED_ON_FILE, manifest.TRAINED_ON)
    return directory


def recordings(path: Path, **terms: tuple) -> Path:
    """A table of recordings with these (licence, creator, source_url, ai_terms) by id."""
    columns = ("licence", "creator", "source_url", "ai_terms")
    told = {name: dict(zip(columns, values, strict=True)) for name, values in terms.items()}
    rows = [{"recording_id": name, "path": f"{name}.wav", **values} for name, values in told.items()]
    pq.write_table(pa.Table.from_pylist(rows, manifest.RECORDINGS), path)
    return path


def by_recording(found: list[attribution.Credit]) -> dict[str, attribution.Credit]:
    assert len({credit.recording for credit in found}) == len(found)
    return {credit.recording: credit for credit in found}


def test_credits_count_each_stretch_once_over_all_parts(tmp_path):
    rows = [clip("dog", 0), clip("dog", 1), clip("dog", 8, mix="m1"), clip("cat", 0, mix="m1"), clip("cat", 0, mix="m2")]
    trained = checkpoint(tmp_path / "model", rows, vocoder=[clip("dog", 2)], autoencoder=None)
    terms = {"dog": ("CC-BY-4.0", "Ann", "https://a.org", "allowed"), "owl": ("CC0-1.0", "", None, "refused")}
    table = recordings(tmp_path / "r.parquet", **terms)
    found = by_recording(attribution.credits_of(trained, table))
    credit = attribution.Credit("dog.wav", "Ann", "CC-BY-4.0", "allowed", "https://a.org", 4, 6.0, 1, "model; vocoder")
    assert found["dog.wav"] == credit  # 0 to 4 s and 8 to 10 s
    assert found["cat.wav"] == attribution.Credit("cat.wav", "", "unknown", "unknown", "", 1, 2.0, 2, "model")
    assert found[""].used_for == "autoencoder"
    assert set(found) == {"dog.wav", "cat.wav", ""}
    assert attribution.marks(found.values()) == ["unknown"]


def test_a_mix_brings_the_conditions_of_both_its_sounds(tmp_path):
    trained = checkpoint(tmp_path / "model", [clip("dog", mix="m"), clip("cat", mix="m")])
    terms = {"dog": ("CC0-1.0", "Ann", None, "allowed"), "cat": ("CC-BY-NC-4.0", "Bob", None, "refused")}
    found = attribution.credits_of(trained, recordings(tmp_path / "r.parquet", **terms))
    facts = {fact.partition(":")[0] for fact, _ in attribution.statements(found)}
    assert facts == {"attribution", "non-commercial", "refused"}
    assert (attribution.marks(found), [credit.in_mixes for credit in found]) == (["refused"], [1, 1])


@pytest.mark.parametrize("old", [True, False])
def test_without_terms_all_is_unknown(tmp_path, old):
    trained, table = checkpoint(tmp_path / "model", [clip("dog")]), tmp_path / "r.parquet"
    if old:
        columns = [column for column in manifest.RECORDINGS if column.name not in manifest.TERMS]
        pq.write_table(pa.Table.from_pylist([{"recording_id": "dog"}], pa.schema(columns)), table)
    (credit,) = attribution.credits_of(trained, table)
    assert (credit.licence, credit.ai_terms, credit.creator) == ("unknown", "unknown", "")


def test_a_stated_but_unclear_licence_is_not_one_that_nobody_stated(tmp_path):
    trained = checkpoint(tmp_path / "published/checkpoint", [clip("dog"), clip("cat"), clip("owl")])
    terms = {name: (licence, None, None, "allowed") for name, licence in (("dog", "unknown"), ("cat", None), ("owl", "CC0-1.0"))}
    found = attribution.credits_of(trained, recordings(tmp_path / "r.parquet", **terms))
    outcome = [(credit.recording, credit.licence) for credit in found]
    assert outcome == [("cat.wav", "unknown"), ("dog.wav", "unclear"), ("owl.wav", "CC0-1.0")]
    assert list(attribution.statements(found)) == [
        ("undisclosed: a licence is stated, but unclear", "1 recording, 0.00 h"),
        ("undisclosed: the licence is unknown", "1 recording, 0.00 h"),
    ]
    assert attribution.marks(found[1:]) == attribution.marks(found[:1]) == ["unknown"]
    # What was published keeps them apart in trainings that start from it.
    attribution.write(found, tmp_path / "published" / manifest.ATTRIBUTION)
    later = attribution.credits_of(trained_from(trained, tmp_path / "later", [clip("new")]), None)
    outcome = {credit.recording: credit.licence for credit in later}
    assert outcome == {"cat.wav": "unknown", "dog.wav": "unclear", "owl.wav": "CC0-1.0", "new.wav": "unknown"}


HOSTILE = ["=HYPERLINK(1)", " +1|x", "-2+3", "@x", 'a,b"c\nd\x00\u202ee', "'quoted", "x" * 10_000, "<script>", "\ud800"]


@pytest.mark.parametrize("value", HOSTILE[:-1])
def test_no_cell_is_a_formula_and_the_table_is_read_back(tmp_path, value):
    trained = checkpoint(tmp_path / "model", [clip("dog", source=value)])
    found = attribution.credits_of(trained, recordings(tmp_path / "r.parquet", dog=(value, value, value, "allowed")))
    attribution.write(found, tmp_path / "a.csv")
    rows = list(csv.reader((tmp_path / "a.csv").read_text().splitlines()))
    assert len(rows) == 2
    assert not [cell for cell in rows[1] if cell.lstrip()[:1] in ("=", "+", "-", "@") or len(cell) > 501]
    assert attribution.read(tmp_path / "a.csv") == found


def test_the_command_writes_the_table_of_any_checkpoint_codec_or_vocoder(tmp_path):
    project = tmp_path / "project"
    checkpoint(project / "data/models/tiny", [clip("dog")], vocoder=[clip("owl")])
    checkpoint(project / "data/tiny/vocoder", [clip("owl")])
    (project / "data/corpus").mkdir()
    terms = {"dog": ("CC-BY-4.0", "Ann", "https://a.org", "allowed"), "owl": ("CC0-1.0", "=Eve", None, "refused")}
    table = recordings(project / "data/corpus/recordings.parquet", **terms)
    params.write_yaml({"corpus": {"embedded": ["synthetic"], "path": None, "parts": {}}}, project / "params.yaml")
    (project / "dvc.yaml").write_text("stages: {}\n")
    for model, expected in (("tiny", {"dog.wav", "owl.wav"}), ("data/tiny/vocoder", {"owl.wav"})):
        file = tmp_path / "tables" / f"{Path(model).name}.csv"
        works("licences", model, "--output", str(file), cwd=project)
        found = attribution.read(file)
        assert {credit.recording for credit in found} == expected
        trained = project / ("data/models/tiny" if model == "tiny" else model)
        assert found == attribution.credits_of(trained, table)
    alone = tmp_path / "alone.csv"  # outside any project no terms are known
    assert soundmill("licences", str(project / "data/tiny/vocoder"), "--output", str(alone), cwd=tmp_path).returncode == 0
    assert [(credit.recording, credit.licence) for credit in attribution.read(alone)] == [("owl.wav", "unknown")]


@pytest.mark.parametrize(("place", "said"), [("project", "which the pipeline reads or writes"), ("alone", "its digest")])
def test_the_command_writes_no_table_where_it_would_change_something(tmp_path, place, said):
    home = tmp_path / place
    checkpoint(home / "data/models/tiny", [clip("dog")])
    if place == "project":
        params.write_yaml({"corpus": {"embedded": ["synthetic"], "path": None, "parts": {}}}, home / "params.yaml")
        (home / "dvc.yaml").write_text("stages: {}\n")
    file = home / "data/models" / ("ATTRIBUTION.csv" if place == "project" else "tiny/ATTRIBUTION.csv")
    done = soundmill("licences", "data/models/tiny", "--output", str(file), cwd=home)
    assert (done.returncode, said in done.stderr) == (1, True)
    assert not file.exists()


def test_another_table_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("name\nx\n")
    with pytest.raises(UserError, match=r"a\.csv: not a table of credits"):
        attribution.read(tmp_path / "a.csv")
    attribution.write([attribution.Credit("a", "", "x", "Refused", "", 1, 1.0, 0, "model")], tmp_path / "a.csv")
    with pytest.raises(UserError, match="ai_terms 'Refused'"):
        attribution.read(tmp_path / "a.csv")


def trained_from(start: Path, directory: Path, clips: list[dict]) -> Path:
    catalog = directory.with_suffix(".parquet")
    rows = [{**row, "shard": 0, "split": "train", "captions": [], "labels": [], "corpus": "x", "weight": 1.0} for row in clips]
    keys = [column.name for column in manifest.CATALOG]
    shards.write_rows([{key: row.get(key) for key in keys} for row in rows], catalog, manifest.CATALOG)
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    write_trained_on(directory, catalog, [row["clip_id"] for row in clips], start=start)
    return directory


def test_ancestors_are_credited_by_what_was_published_with_them(tmp_path):
    """An ancestor's `dog` is not the dog of the same id here, unless a clip is the same byte for byte."""
    (tmp_path / "published").mkdir()
    start = checkpoint(tmp_path / "published" / "checkpoint", [clip("dog", digest="theirs"), clip("owl")], vocoder=None)
    terms = {"dog": ("CC-BY-NC-4.0", "Bob", None, "refused"), "owl": ("CC0-1.0", "Eve", None, "allowed")}
    theirs = recordings(tmp_path / "their.parquet", **terms)
    attribution.write(attribution.credits_of(start, theirs), tmp_path / "published" / manifest.ATTRIBUTION)
    ours = recordings(tmp_path / "our.parquet", dog=("CC0-1.0", "Ann", None, "allowed"), owl=("CC-BY-4.0", "Eve", None, "allowed"))
    second = trained_from(start, tmp_path / "second", [clip("dog"), clip("owl")])
    found = attribution.credits_of(second, ours)
    assert [(credit.recording, credit.creator, credit.licence, credit.used_for) for credit in found] == [
        ("", "", "unknown", "earlier training: vocoder"),
        ("dog.wav", "Bob", "CC-BY-NC-4.0", "earlier training"),
        ("dog.wav", "Ann", "CC0-1.0", "model"),
        ("owl.wav", "Eve", "CC-BY-4.0", "earlier training; model"),
    ]
    third = trained_from(second, tmp_path / "third", [clip("cat")])
    credited = {credit.creator for credit in attribution.credits_of(third, ours) if credit.used_for == "earlier training"}
    assert "Bob" in credited  # what was published with the first is kept
    copied = tmp_path / "alone" / "checkpoint"
    shutil.copytree(tmp_path / "published" / "checkpoint", copied)
    fourth = trained_from(copied, tmp_path / "fourth", [clip("cat")])
    earlier = {credit.licence for credit in attribution.credits_of(fourth, ours) if "earlier" in credit.used_for}
    assert earlier == {"unknown"}  # not invented from recordings of the same id
    (copied / manifest.TRAINED_ON_FILE).unlink()
    fifth = attribution.credits_of(trained_from(copied, tmp_path / "fifth", [clip("cat")]), ours)
    assert "earlier training: model" in [credit.used_for for credit in fifth if credit.licence == credit.ai_terms == "unknown"]


@pytest.mark.parametrize(("source", "ai_terms"), [("dog.wav", "refused"), ("other/dog.wav", "unknown")])
def test_what_is_refused_since_an_earlier_training_is_credited_as_refused(tmp_path, source, ai_terms):
    start = checkpoint(tmp_path / "start", [clip("dog", source=source)])
    ours = recordings(tmp_path / "our.parquet", dog=("CC0-1.0", "Ann", None, "refused"))
    found = by_recording(attribution.credits_of(trained_from(start, tmp_path / "second", [clip("cat")]), ours))
    assert found[source].ai_terms == ai_terms


def test_facts_follow_from_the_licences():
    found = [
        attribution.Credit("a", "", "CC-BY-NC-SA-4.0", "allowed", "", 1, 3600.0, 0, "model"),
        attribution.Credit("b", "", "CC0-1.0", "with_disclosure", "", 1, 1800.0, 0, "model"),
        attribution.Credit("c", "", "Sampling-Plus-1.0", "refused", "", 1, 1800.0, 0, "model"),
        attribution.Credit("d", "", "CC-BY-4.0, no AI", "refused", "", 1, 1800.0, 0, "model"),
        attribution.Credit("", "", "unknown", "unknown", "", 0, 0.0, 0, "vocoder"),
    ]
    said = {fact.partition(":")[0]: why for fact, why in attribution.statements(found)}
    assert said == {
        "attribution": "1 recording, 1.00 h (CC-BY-NC-SA-4.0)",
        "share-alike": "1 recording, 1.00 h (CC-BY-NC-SA-4.0)",
        "non-commercial": "1 recording, 1.00 h (CC-BY-NC-SA-4.0)",
        "conditions that Soundmill does not know": "2 recordings, 1.00 h (CC-BY-4.0, no AI, Sampling-Plus-1.0)",
        "refused": "2 recordings, 1.00 h",
        "disclosure": "1 recording, 0.50 h",
        "undisclosed": "all of its vocoder",
    }
    assert attribution.marks(found) == ["refused", "unknown"]
    assert list(attribution.hours_by(found, "licence").items())[:2] == [("CC-BY-NC-SA-4.0", 1.0), ("CC-BY-4.0, no AI", 0.5)]


def test_a_trained_model_is_credited_to_exactly_the_recordings_it_was_trained_on(built_graph):
    for family in ("ddpm_mel", "tango"):
        trained = built_graph / "data/models" / family
        found = attribution.credits_of(trained, built_graph / "data/corpus/recordings.parquet")
        tables = [pq.read_table(path) for path in trained.rglob(manifest.TRAINED_ON_FILE)]
        assert {credit.recording for credit in found} == {source for table in tables for source in table["source"].to_pylist()}
        done = works("licences", family, cwd=built_graph)
        hours = sum(credit.seconds for credit in found) / 3600
        assert f"licence CC0-1.0: {hours:.2f} h" in done.stdout


def credit(**terms) -> tuple[list[attribution.Credit], str]:
    ports = ("--family", "tiny", "--model", "data/model", "--corpus", "data/corpus", "--table", "data/a/ATTRIBUTION.csv")
    recordings(Path("data/corpus/recordings.parquet"), **terms)
    call(stage, *ports, "--summary", "data/a/summary.json")
    return attribution.read(Path("data/a/ATTRIBUTION.csv")), Path("data/a/summary.json").read_text()


def test_a_new_name_changes_the_table_and_nothing_that_another_stage_reads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settle(tmp_path, tiny={}, attribution={})
    checkpoint(tmp_path / "data/model", [clip("dog"), clip("cat")], vocoder=[clip("owl")])
    (tmp_path / "data/corpus").mkdir()
    terms = {"cat": ("CC0-1.0", "Bob", None, "refused"), "owl": ("CC-BY-4.0", "Eve", None, "allowed")}
    before, shown = credit(dog=("CC0-1.0", "Ann", None, "allowed"), **terms)
    expected = [("cat.wav", "Bob", "model"), ("dog.wav", "Ann", "model"), ("owl.wav", "Eve", "vocoder")]
    assert [(row.recording, row.creator, row.used_for) for row in before] == expected
    renamed, still = credit(dog=("CC0-1.0", "Ann B.", None, "allowed"), **terms)
    assert (renamed[1].creator, still) == ("Ann B.", shown)
    _, without = credit(dog=(None, "Ann", None, "unknown"), **terms)
    assert json.loads(without)["marks"] == ["refused", "unknown"]
    assert json.loads(without)["hours"]["licence"].keys() == {"CC0-1.0", "CC-BY-4.0", "unknown"}


def test_only_what_names_or_shows_terms_depends_on_them():
    graph = params.read_yaml(ROOT / "dvc.yaml")["stages"]
    stages = {name: entry.get("do", entry) for name, entry in graph.items()}
    readers = {name: {dep for dep in entry["deps"] if "data/attribution" in dep} for name, entry in stages.items()}
    assert {name: deps for name, deps in readers.items() if deps} == {"evaluate": {"data/attribution/${key}/summary.json"}}
    assert not any("data/corpus" in dep for name in ("train", "generate", "evaluate") for dep in stages[name]["deps"])


def test_a_start_that_says_nothing_is_a_table_like_all_others(tmp_path):
    (tmp_path / "a.csv").write_text(UNKNOWN_START)
    assert attribution.text(attribution.read(tmp_path / "a.csv")) == UNKNOWN_START
