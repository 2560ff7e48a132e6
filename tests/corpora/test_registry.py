"""The formats: their documentation, and that each is distinguished from every other."""

import ast
import sys
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from soundmill.corpora import inventory, metadata, registry
from soundmill.errors import UserError
from soundmill.params import read_yaml
from tests.corpora.tiny import put, scan, write


def test_the_documentation_has_the_row_of_every_format(root):
    """Beside its layout: where id, captions, labels and split come from."""
    lines = (root / "docs" / "corpora.md").read_text(encoding="utf-8").splitlines()
    assert registry.LAYOUTS.keys() == registry.ADAPTERS.keys()
    for name, layout in registry.LAYOUTS.items():
        (row,) = (line for line in lines if line.startswith(f"| `{name}` | {layout} |"))
        cells = row.strip("| ").split(" | ")
        assert (len(cells), "" in map(str.strip, cells)) == (6, False), name


CLAIMS = read_yaml(Path(__file__).with_name("claims.yaml"))  # a manifest of each format that names a recording as @
VIDEO = "r1nicOVtvkQ"
MANIFESTS = {name: {file: text.replace("@", VIDEO) for file, text in files.items()} for name, files in CLAIMS.items()}
del MANIFESTS["ljspeech"]  # which its folder tells too
MANIFESTS |= {"folder": {"notes.txt": "x", "other.json": "{}", "list.csv": "a,b\n"}}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_format_is_known_by_what_its_metadata_says_whatever_that_is_called(lay, name):
    result = lay(f"{VIDEO}.wav", **MANIFESTS[name])
    assert registry.detect(result) == name
    tables = registry.read("auto", result, 4)
    assert (tables.format, tables.recordings[0]["corpus"]) == (name, name)


@pytest.mark.parametrize("other", ["audiocap_id^youtube_id^start_time^caption\n1^r1nicOVtvkQ^30^a\n", "\ufeffx"])
def test_tables_that_no_format_is_like_are_reported(lay, other):
    """A csv with carets for commas looks like nothing; that its captions are not there is not kept quiet."""
    alone = registry.read("auto", lay("r1nicOVtvkQ.wav", **{"val.csv": other.encode("utf-16")}), 4)
    assert (alone.format, len(alone.remarks)) == ("folder", 1)
    beside = registry.read("auto", lay(**MANIFESTS["audiocaps"]), 4)
    assert (beside.format, len(beside.matched)) == ("audiocaps", 1)
    assert "not part of the format audiocaps (first: val.csv)" in beside.remarks[-1]


def test_a_parquet_without_recordings_and_one_that_cannot_be_read_are_reported(tmp_path):
    (tmp_path / "captions.parquet").write_bytes(b"PAR1 no table PAR1")
    with pytest.raises(UserError, match=r"first: captions\.parquet: unreadable table"):
        scan(tmp_path)
    pq.write_table(pa.table({"file_name": ["a.wav"], "caption": ["a dog"]}), tmp_path / "captions.parquet")
    with pytest.raises(UserError, match=r"no recording in .*1 Parquet tables without .*first: captions\.parquet"):
        scan(tmp_path)
    with pytest.raises(UserError, match=r"read as folder .*captions\.parquet"):
        scan(tmp_path, "folder")
    tables = scan(put(tmp_path, "a.wav"))
    said = "1 tables, lists or texts not read, since they are not part of the format folder (first: captions.parquet)"
    assert (tables.format, [remark.partition(";")[0] for remark in tables.remarks]) == ("folder", [said])


def test_texts_that_were_not_read_are_reported_and_readmes_are_not(tmp_path):
    put(tmp_path, "audio/a.wav", "audio/b.wav")
    for name in ("README.txt", "UrbanSound8K_README.txt", "license.txt", "LICENSE-audio.txt"):
        write(tmp_path, name, "All of it is free.")
    assert scan(tmp_path).remarks == []
    write(tmp_path, "captions/c.txt", "A dog barks")
    assert "first: captions/c.txt" in scan(tmp_path).remarks[0]


@pytest.mark.parametrize("path", ["{}/secret.wav", "../outside/secret.wav", "a/../../outside/secret.wav", "{}/secret"])
@pytest.mark.parametrize("name", CLAIMS)
def test_no_manifest_names_a_file_into_the_corpus(tmp_path, name, path):
    corpus = put(tmp_path / "corpus", "good.wav")
    outside = put(tmp_path / "outside", "secret.wav")
    for file, text in {"secret.json": '{"data": [{"wav": "good.wav", "caption": "secret"}]}', "secret.txt": "secret"}.items():
        write(outside, file, text)
    for file, text in CLAIMS[name].items():
        write(corpus, file, text.replace("@", path.format(outside)))
    tables = scan(corpus, name)
    assert [(row["path"], row["labels"]) for row in tables.recordings] == [("good.wav", [])]
    assert not [row for row in tables.captions if row["recording_id"] == tables.recordings[0]["recording_id"]]
    assert tables.missing or tables.rejected


@pytest.mark.parametrize("brackets", ["[" * 100_000, "[" * 100_000 + "]" * 100_000, '{"a": ' * 100_000])
@pytest.mark.parametrize("name", [name for name, files in CLAIMS.items() if any("json" in file for file in files)])
def test_a_manifest_that_nests_too_deep_is_named(tmp_path, name, brackets):
    corpus = put(tmp_path, "good.wav")
    for file, text in CLAIMS[name].items():
        write(corpus, file, text.replace('"secret"', brackets).replace('"@"', '"good.wav"').replace('"a"}', f"{brackets}}}"))
    if name == "audiocraft":  # a file beside one recording costs that its caption, and nothing else
        assert [(row["path"], row["reason"]) for row in scan(corpus).rejected] == [("good.json", "unreadable caption")]
        write(corpus, "data.jsonl", f'{{"path": "good.wav", "duration": 1.0, "sample_rate": 16000, "x": {brackets}}}')
    for format in ("auto", name):
        with pytest.raises(UserError, match=r"\.jsonl?(:1)?: not readable as JSON"):
            scan(corpus, format)


def test_a_path_of_another_machine_is_found_by_its_tail(tmp_path):
    corpus = put(tmp_path, "audio/x.wav")
    for name in ("tango_json", "audiocraft", "audiofolder", "audioldm"):
        for file, text in CLAIMS[name].items():
            write(corpus, f"{name}/{file}", text.replace("@", "/home/somebody/data/audio/x.wav"))
        assert [entry["path"] for entry in scan(corpus, name).matched] == ["audio/x.wav"], name


def test_adapters_read_files_by_the_inventory_alone():
    """What its walk refuses, as a link out of the corpus, is then read by none."""
    ways = {"open", "scandir", "listdir", "walk", "stat", "glob", "rglob", "iterdir", "read_text", "read_bytes", "exists", "isfile"}
    for name, adapter in registry.ADAPTERS.items():
        module = adapter if isinstance(adapter, ModuleType) else sys.modules[type(adapter).__module__]
        tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
        called = {getattr(node.func, "id", getattr(node.func, "attr", "")) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert not called & ways, name


def test_detection_opens_no_recording(lay, monkeypatch):
    result = lay(f"{VIDEO}.wav", **MANIFESTS["audiocaps"])
    opened = []
    for module in (inventory, metadata.buckets):
        monkeypatch.setattr(
            module, "open", lambda path, *rest, **more: opened.append(path) or open(path, *rest, **more), raising=False
        )
    assert registry.detect(result) == "audiocaps"
    assert opened
    assert not [path for path in opened if bytes(path).endswith(b".wav")]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("amphion", r"no JSON list of `Uid` and `Caption`"),
        ("audiocraft", r"duration, path, sample_rate.*data\.jsonl\.gz"),
        ("audioldm", "no json with AudioLDM's splits"),
        ("clotho", r"caption_1, file_name.*clotho_captions_development\.csv"),
        ("esc", r"corpus\.path.*filename, fold, category.*001 - Dog bark"),
        ("ljspeech", r"corpus\.path: no `metadata\.csv`.*choose another corpus\.format"),
        ("musiccaps", "csv with the columns youtube_id, start_time, caption"),
        ("nsynth", r"corpus\.path: no `examples\.json`.*choose another corpus\.format"),
        ("sc09", r"corpus\.path: no file like.*choose another corpus\.format"),
        ("speech_commands", r"corpus\.path: no file like.*choose another corpus\.format"),
        ("tango_json", "no JSON lines with captions and location"),
        ("wavecaps", r"corpus\.format: 'wavecaps'.*did you mean 'wavcaps'"),
    ],
)
def test_another_layout_is_an_error_that_describes_the_expected_one(tmp_path, name, expected):
    with pytest.raises(UserError, match=expected):
        scan(put(tmp_path, "a.wav"), name)
