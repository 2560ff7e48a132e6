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
from tests.corpora.tiny import put, scan, write


def test_the_documentation_has_the_row_of_every_format(root):
    """Beside its layout: where id, captions, labels and split come from."""
    lines = (root / "docs" / "corpora.md").read_text(encoding="utf-8").splitlines()
    for about in (adapter.FORMAT for adapter in registry.ADAPTERS.values()):
        (row,) = (line for line in lines if line.startswith(f"| `{about.name}` | {about.layout} |"))
        cells = row.strip("| ").split(" | ")
        assert (len(cells), "" in map(str.strip, cells)) == (6, False), about.name


CLAIMS = {  # a manifest of each format that names a recording as @
    "audiocaps": {"train.csv": "audiocap_id,youtube_id,start_time,caption\n1,@,30,secret\n"},
    "tango_json": {"train.json": '{"dataset": "a", "location": "@", "captions": "secret"}\n'},
    "panns": {"train.csv": "file_name,caption_1,caption_2\n@,secret,secret\nYr1nicOVtvkQ.wav,a,b\nYr1nicOVtvkR.wav,a,b\n"},
    "clotho": {"clotho_captions_development.csv": "file_name,caption_1\n@,secret\n"},
    "wavcaps": {"sb.json": '[{"id": "@", "caption": "secret"}, {"id": "", "audio": "@", "caption": "secret"}]'},
    "amphion": {"test.json": '[{"Dataset": "AudioCaps", "Uid": "@", "Caption": "secret"}]'},
    "musiccaps": {"m.csv": "ytid,start_s,end_s,aspect_list,caption\n@,30,40,[],secret\n"},
    "audioldm": {
        "root.json": '{"metadata": {"path": {"a": {"train": "train.json", "test": "@.json"}}}}',
        "train.json": '{"data": [{"wav": "@", "caption": "secret"}]}',
    },
    "audiocraft": {"data.jsonl": '{"path": "@", "duration": 1.0, "sample_rate": 16000}\n', "good.json": '{"description": "a"}'},
    "audiofolder": {"metadata.csv": "file_name,text\n@,secret\n", "more/metadata.jsonl": '{"file_name": "@", "text": "secret"}\n'},
    "esc": {"esc50.csv": "filename,fold,target,category\n@,1,0,secret\n"},
    "urbansound8k": {"u.csv": "slice_file_name,fsID,start,end,salience,fold,classID,class\n@,1,0,1,1,1,3,secret\n"},
    "class_table": {"Metadata_Train.csv": "FileName,Class\n@,secret\n"},
    "bbc": {"BBCSoundEffects.csv": "location,description,secs,category,CDNumber,CDName,tracknum\n@,secret,1,secret,1,x,1\n"},
    "audioset": {"eval_segments.csv": '# YTID, start_seconds, end_seconds, positive_labels\n@, 30.000, 40.000, "/m/09x0r"\n'},
    "nsynth": {"nsynth-train/examples.json": '{"@": {"instrument_family_str": "secret"}}'},
    "ljspeech": {"metadata.csv": "@|secret|secret\n"},
}
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


@pytest.mark.parametrize("other", ["audiocap_id|youtube_id|start_time|caption\n1|r1nicOVtvkQ|30|a\n", "\ufeffx"])
def test_tables_that_no_format_is_like_are_reported(lay, other):
    """A csv with strokes for commas looks like nothing; that its captions are not there is not kept quiet."""
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
    assert (tables.format, [remark.partition(";")[0] for remark in tables.remarks]) == (
        "folder",
        ["1 tables, lists or texts not read, since they are not part of the format folder (first: captions.parquet)"],
    )


def test_texts_that_were_not_read_are_reported_and_readmes_are_not(tmp_path):
    put(tmp_path, "audio/a.wav", "audio/b.wav")
    for name in ("README.txt", "UrbanSound8K_README.txt", "license.txt", "LICENSE-audio.txt"):
        write(tmp_path, name, "All of it is free.")
    assert scan(tmp_path).remarks == []
    write(tmp_path, "captions/a.txt", "A dog barks")
    assert "first: captions/a.txt" in scan(tmp_path).remarks[0]


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
    real = open
    for module in (inventory, metadata.buckets):
        monkeypatch.setattr(
            module, "open", lambda path, *rest, **more: opened.append(path) or real(path, *rest, **more), raising=False
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
        ("gtzan", r"corpus\.path: no file like.*choose another corpus\.format"),
        ("ljspeech", r"corpus\.path: no `metadata\.csv`.*choose another corpus\.format"),
        ("musiccaps", "caption, start_s, ytid"),
        ("nsynth", r"corpus\.path: no `examples\.json`.*choose another corpus\.format"),
        ("sc09", r"corpus\.path: no file like.*choose another corpus\.format"),
        ("speech_commands", r"corpus\.path: no file like.*choose another corpus\.format"),
        ("tango_json", "no JSON lines with captions and location"),
        ("urbansound8k", r"corpus\.path: no csv.*choose another corpus\.format"),
        ("wavecaps", r"corpus\.format: 'wavecaps'.*did you mean 'wavcaps'"),
    ],
)
def test_another_layout_is_an_error_that_describes_the_expected_one(tmp_path, name, expected):
    with pytest.raises(UserError, match=expected):
        scan(put(tmp_path, "a.wav"), name)
