"""`soundmill corpus check`: coverage of a corpus, without touching it."""

import csv
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from rich.console import Console

from soundmill import params
from soundmill.corpora import catalog, check, inventory, registry, survey
from soundmill.errors import UserError
from tests.commands.running import refused, works
from tests.stages.handling import BOUNDS, SPLITS

HEADER = "audiocap_id,youtube_id,start_time,caption\n"
ROWS = """1,r1nicOVtvkQ,30,a dog
2,r1nicOVtvkQ,30,it barks
3,-bcdefghijk,0,rain
4,YYYYYYYYYYY,7,"wind, and
more"
5,GONEgoneGON,12,lost
6,GONEgoneGON,12,lost again
7,bad id,3,x
"""
REST = {"embedded": [], "external": ["union"], "shards": 4, **BOUNDS}  # of the section `corpus`


@pytest.fixture
def corpus(lay, tmp_path):
    names = ("a/r1nicOVtvkQ_30.wav", "Y-bcdefghijk.flac", "b/Y-bcdefghijk_0.mp3", "4.ogg", "[red]stray[/red].wav")
    lay(*names, **{"train.csv": HEADER + ROWS, "empty.wav": b""})
    return tmp_path


def snapshot(directory) -> list[tuple[str, bytes, int]]:
    return sorted((str(path), path.read_bytes(), path.stat().st_mtime_ns) for path in directory.rglob("*") if path.is_file())


def test_every_list_has_what_belongs_there_and_nothing_is_written(corpus):
    before = snapshot(corpus)
    report = check.check(corpus)
    outcome = report.as_json()
    assert snapshot(corpus) == before
    assert (outcome["format"], outcome["detected"], outcome["coverage"]) == ("audiocaps", True, 3 / 4)
    assert [(clip["id"], clip["path"], clip["start_time"], clip["captions"]) for clip in outcome["matched"]] == [
        ("r1nicOVtvkQ", "a/r1nicOVtvkQ_30.wav", 30.0, 2),
        ("-bcdefghijk", "b/Y-bcdefghijk_0.mp3", 0.0, 1),
        ("YYYYYYYYYYY", "4.ogg", 7.0, 1),
    ]
    lost = {"id": "GONEgoneGON", "youtube_id": "GONEgoneGON", "start_time": 12.0, "captions": ["lost", "lost again"]}
    assert outcome["missing"] == [lost | {"origins": ["train.csv:7", "train.csv:8"], "audiocap_ids": ["5", "6"]}]
    assert outcome["orphans"] == [{"path": "[red]stray[/red].wav"}]
    assert outcome["collisions"] == [{"id": "-bcdefghijk", "paths": ["b/Y-bcdefghijk_0.mp3", "Y-bcdefghijk.flac"]}]
    assert outcome["ambiguous"] == []
    assert [(row["path"], row["reason"]) for row in outcome["damaged"]] == [("empty.wav", "empty"), ("train.csv", "bad id")]
    counts = {"recordings": 5, "captions": 6, "matched": 3, "missing": 1, "orphans": 1, "collisions": 1}
    assert outcome["counts"] == counts | {"ambiguous": 0, "damaged": 2}


NO_VIDEO = '{"location": "/x/Yr1nicOVtvkQ.wav", "captions": "a"}\n{"location": "/x/rain.wav", "captions": "b"}\n'


@pytest.mark.parametrize(
    ("name", "text", "header", "rows"),
    [
        ("metadata.csv", 'file_name,text\n"gone, too.wav",two\n', "id,caption,origin", ['"gone, too.wav",two,metadata.csv:2']),
        (
            "train.json",
            NO_VIDEO,
            "audiocap_id,youtube_id,start_time,caption,id,origin",
            [",,,b,/x/rain.wav,train.json:2", ",r1nicOVtvkQ,,a,/x/Yr1nicOVtvkQ.wav,train.json:1"],
        ),
    ],
)
def test_the_csv_of_missing_files_says_what_the_manifest_calls_them(lay, tmp_path, name, text, header, rows):
    """One name that is no video does not take away the columns of those that are."""
    lay(**{name: text})
    check.write_missing(check.check(tmp_path), tmp_path / "missing.csv")
    found, *lines = (tmp_path / "missing.csv").read_text(encoding="utf-8").splitlines()
    assert (found, sorted(lines)) == (header, rows)


def test_a_manifest_without_any_audio_is_all_missing(lay, tmp_path):
    lay(**{"train.csv": HEADER + ROWS})
    report = check.check(tmp_path)
    assert (report.coverage, len(report.tables.missing), report.tables.recordings) == (0.0, 4, [])
    with pytest.raises(UserError, match="no recording"):
        registry.read("auto", inventory.list_files(tmp_path), 4)


def test_a_second_beyond_the_end_of_its_recording_is_missing(lay, tmp_path):
    lay(**{"train.csv": HEADER + "1,r1nicOVtvkQ,30,a\n2,r1nicOVtvkQ,31,b\n3,r1nicOVtvkQ,35,c\n4,r1nicOVtvkQ,35,d\n"})
    soundfile.write(tmp_path / "r1nicOVtvkQ_30.wav", np.zeros(32_000), 8000)
    report = check.check(tmp_path)
    assert [clip["start_time"] for clip in report.tables.matched] == [30.0, 31.0]
    assert [(entry["start_time"], entry["captions"]) for entry in report.tables.missing] == [(35.0, ["c", "d"])]
    assert report.tables.orphans == []
    lay(**{"train.csv": HEADER + "1,r1nicOVtvkQ,40,a\n2,r1nicOVtvkQ,50,b\n"})  # it ends before all that rows want of it
    report = check.check(tmp_path)
    assert (report.tables.matched, len(report.tables.missing)) == ([], 2)
    assert report.tables.orphans == [{"path": "r1nicOVtvkQ_30.wav"}]


def test_headers_are_opened_when_asked_for(lay, tmp_path):
    lay("noise.wav", **{"text.wav": "#EXTM3U\nhttp://example.invalid/x.mp3\n"})
    soundfile.write(tmp_path / "good.wav", np.zeros(8000), 8000)
    assert check.check(tmp_path).damaged == []
    seen = []
    report = check.check(tmp_path, headers=True, progress=seen.append)
    assert [row["path"] for row in report.damaged] == ["noise.wav", "text.wav"]
    assert all(row["reason"] for row in report.damaged)
    assert sum(seen) == 3 + 3  # tags and headers


def test_what_is_damaged_is_missing_with_its_captions_and_numbers(lay, tmp_path):
    rows = "1,r1nicOVtvkQ,30,a\n2,r1nicOVtvkQ,30,b\n3,UDGBjjwyaqE,20,c\n4,xBxDz0CFVn0,30,d\n5,xBxDz0CFVn0,90,e\n"
    lay("r1nicOVtvkQ_30.wav", **{"sub/train.csv": HEADER + rows})
    for name in ("UDGBjjwyaqE_20", "xBxDz0CFVn0_30"):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(80_000), 8000)
    report = check.check(tmp_path, headers=True)
    assert [clip["id"] for clip in report.tables.matched] == ["UDGBjjwyaqE", "xBxDz0CFVn0"]
    assert [
        (entry["youtube_id"], entry["start_time"], entry["captions"], entry["audiocap_ids"]) for entry in report.tables.missing
    ] == [("r1nicOVtvkQ", 30.0, ["a", "b"], ["1", "2"]), ("xBxDz0CFVn0", 90.0, ["e"], ["5"])]
    assert report.coverage == 0.5


def test_the_report_for_a_person_names_what_is_wrong(corpus):
    text = shown(check.check(corpus))
    assert "75.0 % (3 of 4 listed clips have a file)" in text
    clash = "  -bcdefghijk  b/Y-bcdefghijk_0.mp3, Y-bcdefghijk.flac"
    told = ("labels    none", "splits    train 3")
    for line in (*told, "  GONEgoneGON at 12 s  train.csv:7", "  [red]stray[/red].wav", clash, "  empty.wav  empty: zero bytes"):
        assert line in text.splitlines()


def test_the_survey_has_the_same_numbers(corpus, monkeypatch):
    result = survey.survey(corpus)
    assert result.report.counts() == check.check(corpus).counts()
    parameters = {"clips": {"default": {"clip_seconds": 5.0}}, "mixup": {"ratio": 0.5}}
    assert result.cost(parameters, 0.0)[0] == f"will make   clips of 5 s: about {result.num_clips(5.0)}"
    text = "\n".join(result.describe(SPLITS))
    assert "3 clips with a file, 1 without (missing); 1 files without a row" in text
    assert "soundmill corpus check" in text
    monkeypatch.setattr(survey, "PROBED", 3)
    assert survey.survey(corpus).probed == 3  # of 5


def test_the_survey_warns_of_splits_before_anything_runs(tmp_path):
    def surveyed():
        return survey.survey(tmp_path).warnings(SPLITS)

    for number in range(6):
        (tmp_path / "dog").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "dog" / f"AbcdefghijK_{10 * number}.wav", np.zeros(800), 8000)
    (line,) = surveyed()
    assert line.startswith("no clip is in test, so `generate` and `evaluate` take ")
    for label, count in (("rain", 20), ("bell", 1)):
        (tmp_path / label).mkdir()
        for number in range(count):
            soundfile.write(tmp_path / label / f"{number}.wav", np.zeros(800), 8000)
    assert surveyed() == ["2 of 3 labels have no clip in test: bell, dog; add recordings of them, or they are not scored"]


def shown(report: check.Report) -> str:
    """What a person reads of it."""
    console = Console(record=True, width=200, file=io.StringIO())
    check.show(report, console)
    return console.export_text()


def test_the_command_writes_what_it_is_asked_for_and_tells_what_is_no_corpus(corpus, tmp_path, root):
    report, missing = tmp_path.with_suffix(".json"), tmp_path.with_suffix(".csv")
    done = works("corpus", "check", str(corpus), "--json", str(report), "--missing", str(missing), cwd=root)
    assert "75.0 %" in done.stdout
    outcome = json.loads(report.read_text(encoding="utf-8"))
    assert all(isinstance(outcome[name], list) for name in ("matched", "missing", "orphans", "collisions", "ambiguous"))
    assert len(missing.read_text(encoding="utf-8").splitlines()) == 3
    for arguments, message in (
        ((tmp_path / "none",), "no such directory"),
        ((tmp_path / "4.ogg",), "is a file, not a directory"),
        ((corpus, "--format", "audiocap"), "did you mean 'audiocaps'"),
        ((corpus, "--missing", corpus / "a" / "missing.csv"), "write it elsewhere"),
        ((corpus, "--json", corpus / "metadata.json"), "write it elsewhere"),
    ):
        assert message in refused("corpus", "check", *map(str, arguments), cwd=root).replace("\n", " ")


def union_of(tmp_path: Path) -> Path:
    """A params.yaml of a union: AudioCaps' rows with a damaged file, one gone, one too late; one of them again; labels."""
    (tmp_path / "caps").mkdir()
    for name in ("r1nicOVtvkQ_30.wav", "UDGBjjwyaqE_20.wav"):
        soundfile.write(tmp_path / "caps" / name, np.zeros(16_000), 8000)
    os.truncate(tmp_path / "caps/UDGBjjwyaqE_20.wav", 1000)
    rows = "1,r1nicOVtvkQ,30,a\n2,UDGBjjwyaqE,20,b\n3,GONEgoneGON,12,c\n4,r1nicOVtvkQ,90,d\n"
    (tmp_path / "caps/train.csv").write_text(HEADER + rows)
    (tmp_path / "esc/dog").mkdir(parents=True)
    soundfile.write(tmp_path / "esc/dog/x.wav", np.zeros(16_000), 8000)
    (tmp_path / "again").mkdir()
    soundfile.write(tmp_path / "again/r1nicOVtvkQ_30.wav", np.ones(16_000) / 2, 8000)
    (tmp_path / "again/val.csv").write_text(HEADER + "1,r1nicOVtvkQ,30,e\n")
    formats = {"esc": "folder", "caps": "auto", "again": "audiocaps"}
    parts = {name: {"format": format, "path": name, "weight": 1.0} for name, format in formats.items()}
    params.write_yaml({"corpus": {"format": "union", "path": None, "parts": parts, **REST}}, tmp_path / "params.yaml")
    return tmp_path / "params.yaml"


def test_a_union_is_checked_as_it_will_be_read(tmp_path, root):
    path = union_of(tmp_path)
    report, missing = tmp_path / "report.json", tmp_path / "missing.csv"
    done = works("corpus", "check", str(path), "--headers", "--json", str(report), "--missing", str(missing), cwd=root)
    outcome = json.loads(report.read_text(encoding="utf-8"))
    formats = {"again": "audiocaps", "caps": "audiocaps", "esc": "folder"}
    assert (outcome["path"], outcome["format"], outcome["parts"], outcome["coverage"]) == (str(path), "union", formats, 0.5)
    result = [("again/r1nicOVtvkQ_30.wav", 1), ("caps/r1nicOVtvkQ_30.wav", 1), ("esc/dog/x.wav", 0)]
    assert [(clip["path"], clip["captions"]) for clip in outcome["matched"]] == result
    assert [(row["path"], row["reason"]) for row in outcome["damaged"]] == [("caps/UDGBjjwyaqE_20.wav", "truncated")]
    assert [entry["paths"] for entry in outcome["collisions"]] == [["again/r1nicOVtvkQ_30.wav", "caps/r1nicOVtvkQ_30.wav"]]
    with missing.open(encoding="utf-8", newline="") as file:
        rows = [tuple(row.values()) for row in csv.DictReader(file)]
    assert sorted(rows) == [("2", "UDGBjjwyaqE", "20", "b"), ("3", "GONEgoneGON", "12", "c"), ("4", "r1nicOVtvkQ", "90", "d")]
    assert "union of again (audiocaps), caps (audiocaps), esc (folder)" in done.stdout


def test_what_a_union_had_to_call_otherwise_is_missing_as_the_video_that_it_is(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / "x.wav", np.zeros(16_000), 8000)
        os.truncate(tmp_path / name / "x.wav", 1000)
        (tmp_path / name / "metadata.csv").write_text(f"file_name,youtube_id,start_time,text\nx.wav,UDGBjjwyaqE,20,{name}\n")
    parts = {name: {"format": "auto", "path": name, "weight": 1.0} for name in "ab"}
    params.write_yaml({"corpus": {"format": "union", "path": None, "parts": parts, **REST}}, tmp_path / "params.yaml")
    report = check.check_params(tmp_path / "params.yaml", headers=True)
    lost = [(entry["youtube_id"], entry["start_time"], entry["captions"]) for entry in report.tables.missing]
    assert lost == [("UDGBjjwyaqE", 20.0, ["a"]), ("UDGBjjwyaqE", 20.0, ["b"])]
    assert report.detected


def test_the_corpus_of_a_params_yaml_is_the_directory_that_it_names(corpus, tmp_path):
    path = tmp_path.parent / f"{tmp_path.name}.yaml"
    params.write_yaml({"corpus": {"format": "audiocaps", "path": tmp_path.name, "parts": {}, **REST}}, path)
    outcome, directly = check.check_params(path).as_json(), check.check(corpus, "audiocaps").as_json()
    assert (outcome.pop("path"), directly.pop("path")) == (str(path), str(corpus))
    assert outcome.pop("remarks") == [*directly.pop("remarks"), check.KEPT]
    assert outcome == directly


PART = {"format": "auto", "path": ".", "weight": 1.0}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"format": "synthetic", "embedded": ["synthetic"]}, "synthesised by the pipeline"),
        ({"parts": {}}, "set corpus.parts to"),
        ({"parts": {"a": PART}, "path": "."}, "corpus.path is null"),
        ({"format": "folder", "parts": {"a": PART}, "path": "."}, "for a union only"),
        ({"parts": {"a": 3}}, r"corpus\.parts\.a"),
        ({"parts": {"": PART, "a": PART}}, r"corpus\.parts"),
        ({"parts": {"../a": PART}}, r"corpus\.parts"),
        ({"parts": [PART]}, r"corpus\.parts"),
        ({"parts": {"a": {**PART, "format": ["esc"]}}}, r"corpus\.parts\.a\.format"),
        ({"parts": {"a": {**PART, "wieght": 1.0}}}, r"corpus\.parts\.a\.wieght: unknown key"),
        ({"parts": {"a": {**PART, "weight": 0.0}}}, r"corpus\.parts\.a\.weight: .*greater than 0"),
        ({"parts": {"a": {"format": "auto", "path": "."}}}, r"corpus\.parts\.a\.weight: missing"),
        ({"parts": {"a": {**PART, "format": "union"}}}, r"corpus\.parts\.a\.format"),
        ({"parts": {"a": {**PART, "format": "esc"}}}, r"corpus\.parts\.a: corpus\.path: .*ESC-50"),
        ({"parts": {"a": {**PART, "path": "gone"}}}, r"corpus\.parts\.a: .*gone: no such directory"),
        ({"parts": {"a": {**PART, "path": ""}}}, r"corpus\.parts\.a: .*not set"),
        ({"parts": {"a": {**PART, "path": "x" * 5000}}}, "File name too long"),
        ({"parts": {"a": {**PART, "path": "empty"}}}, r"corpus\.parts\.a: .*no recording"),
        ([1], "corpus"),
    ],
)
def test_a_params_yaml_that_the_scan_refuses_is_an_error_that_says_what_to_set(tmp_path, section, message):
    (tmp_path / "empty").mkdir()
    if isinstance(section, dict):
        section = {"format": "union", "path": None, "parts": {}, **REST} | section
    params.write_yaml({"corpus": section}, tmp_path / "params.yaml")
    with pytest.raises(UserError, match=message):
        check.check_params(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--missing", "esc/dog/missing.csv"), "write it elsewhere"),
        (("--missing", "params.yaml"), "would be overwritten"),
        (("--json", "esc/../params.yaml"), "would be overwritten"),
        (("--format", "esc"), "leave out --format and --follow-links"),
    ],
)
def test_a_check_of_params_yaml_writes_over_nothing(tmp_path, root, arguments, message):
    path = union_of(tmp_path)
    before = snapshot(tmp_path)
    option, value = arguments
    said = refused("corpus", "check", str(path), option, value if option == "--format" else str(tmp_path / value), cwd=root)
    assert message in said.replace("\n", " ")
    assert snapshot(tmp_path) == before


def test_undecided_clips_are_not_covered(lay, tmp_path):
    lay("a/x.wav", "b/x.wav", "y.wav", **{"metadata.csv": "file_name,text\nx.wav,one\nx.wav,again\ny.wav,two\ngone.wav,three\n"})
    report = check.check(tmp_path)
    assert (report.listed, report.coverage) == (3, pytest.approx(1 / 3))


def test_rows_that_start_inside_a_recording_are_counted_and_may_have_no_clip(lay, tmp_path):
    """Files cut a second before what rows say: found, but their captions are a second off, and stay without a clip."""
    videos = [f"abcdEFGH12{number}" for number in range(5)]
    lay(**{"train.csv": HEADER + "".join(f"{number},{video},30,a sound\n" for number, video in enumerate(videos))})
    for number, video in enumerate(videos):
        soundfile.write(tmp_path / f"{video}_{29 if number < 3 else 30}.wav", np.zeros(40_000), 8000)
    report = check.check(tmp_path)
    assert (report.coverage, report.inside, report.as_json()["inside"]) == (1.0, 3, 3)
    assert "3 of them start inside a longer file" in shown(report)
    ids = [row["recording_id"] for row in report.tables.recordings]
    clips = [{"clip_id": name, "recording_id": name, "start": 0.0, "seconds": 5.0} for name in ids]
    matched = catalog.match(report.tables.recordings, report.tables.captions, clips, ["{label}"])
    assert matched.matched == len(report.tables.matched) - report.inside


def test_recordings_that_a_manifest_lists_and_says_nothing_of_are_covered(lay, tmp_path):
    names = [f"{number}.wav" for number in range(10)]
    lay(*names[:9], **{"metadata.csv": "file_name,speaker\n" + "".join(f"{name},me\n" for name in names)})
    report = check.check(tmp_path)
    assert (report.coverage, report.tables.orphans, [row["id"] for row in report.tables.missing]) == (0.9, [], ["9.wav"])
    assert report.as_json()["undescribed"] == 9


def test_ids_as_table_programs_keep_them_and_rows_that_cannot_be_used(lay, tmp_path):
    rows = """1,abcdEFGH123,30,a\n2,'-0abcDEF1_g,30,b\n3,"=""-1abcDEF1_g""\",30,c\n4,#NAME?,30,d\n"""
    lay("abcdEFGH123_30.wav", **{"train.csv": HEADER + rows})
    report = check.check(tmp_path)
    assert [row["youtube_id"] for row in report.tables.missing] == ["-0abcDEF1_g", "-1abcDEF1_g"]
    assert report.as_json()["unusable"] == 1
    assert "1 rows or texts cannot be used" in shown(report)
