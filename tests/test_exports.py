"""Exports: every format holds the same samples, captions, labels and splits, and other tools and our own adapters read them."""

import csv
import gzip
import json
import os
import re
import tarfile
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import soundfile

from soundmill import clips, exports, manifest, params, shards
from soundmill.audio import flac
from soundmill.commands.project import check_apart
from soundmill.corpora import inventory, registry
from soundmill.errors import UserError
from soundmill.exports.captioned import NotExpressible
from tests.prepared import RATE, ROWS, VIDEO, json_lines, prepare, wave_of
from tests.stages.handling import tree


@pytest.fixture
def tables(tmp_path: Path) -> clips.Tables:
    return prepare(tmp_path)


@pytest.mark.parametrize("name", sorted(exports.FORMATS))
def test_every_format_holds_the_samples_and_is_made_alike_twice(tables, tmp_path, name):
    result = exports.export(tables, name, tmp_path / "out", RATE)
    left = {clip_id for clip_id, _ in result.left_out}
    assert result.written == len(ROWS) - len(left) > 0
    assert "zzzzzzzzzzz_0" not in left
    assert (tmp_path / "out" / exports.LEFT_OUT).exists() == bool(left)
    first = tree(tmp_path / "out")
    sounds = [data for path, data in first.items() if path.endswith((".wav", ".flac"))]
    if sounds:
        assert len(sounds) == result.written
        for path in (tmp_path / "out").rglob("*.[wf][al]*"):
            samples, rate = soundfile.read(path, dtype="int16")
            assert rate == RATE
            assert any(np.array_equal(samples, flac.to_pcm16(wave_of(number))) for number in range(len(ROWS))), path
    (tmp_path / "out").rename(tmp_path / "before")
    exports.export(tables, name, tmp_path / "out", RATE)
    assert tree(tmp_path / "out") == first


def test_a_full_disk_is_told_with_the_file(tables, tmp_path, monkeypatch):
    monkeypatch.setitem(exports.FORMATS, "clotho", partial(exports.Files, lambda clip: "/dev/full", exports.captioned.write_clotho))
    with pytest.raises(OSError, match=r"No space left on device: .*out"):
        exports.export(tables, "clotho", tmp_path / "out", RATE)
    assert not list(tmp_path.glob("*out*"))


def test_tango_json_is_what_tango_s_loader_reads(tables, tmp_path):
    exports.export(tables, "tango", tmp_path / "out", RATE)
    rows = json_lines(tmp_path / "out/train.json")
    assert [row["captions"] for row in rows] == ["a dog barks, then “rain” falls", "an engine idles", "a car waits\tnearby"]
    for row in rows:
        info = soundfile.info(row["location"])
        assert (info.samplerate, info.channels) == (16_000, 1)
        assert Path(row["location"]).stem in {clip_id for clip_id, *_ in ROWS}


def test_audiocaps_rows_join_by_id_and_count_up(tables, tmp_path):
    exports.export(tables, "audiocaps", tmp_path / "out", RATE)
    with (tmp_path / "out/train.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["youtube_id"], row["start_time"]) for row in rows] == [(VIDEO, "30"), *[("abcdefghijk", "5.5")] * 2]
    for split in ("train", "val", "test"):
        with (tmp_path / f"out/{split}.csv").open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                assert (tmp_path / f"out/audio/{row['youtube_id']}_{row['start_time']}.wav").exists()


def test_labels_never_become_a_path_outside(tables, tmp_path):
    exports.export(tables, "folder", tmp_path / "out", RATE)
    assert (tmp_path / "out/valid/rain_shower/Yabcdefghij_10.wav").exists()
    assert exports.folder_of("../../etc") == "_.._etc"
    assert exports.folder_of("..") == "_"
    assert exports.folder_of("dog bark") == "dog bark"
    with pytest.raises(NotExpressible, match="more than 200 bytes"):
        exports.folder_of("x" * 300)


def test_webdataset_is_read_in_order_by_any_tar_reader(tables, tmp_path):
    exports.export(tables, "webdataset", tmp_path / "out", RATE)
    with tarfile.open(tmp_path / "out/train-000000.tar") as archive:
        names = archive.getnames()
        assert names[:3] == [f"{VIDEO}_30.flac", f"{VIDEO}_30.json", f"{VIDEO}_30.txt"]
        assert json.load(archive.extractfile("abcdefghijk_5p5.json"))["captions"] == ["an engine idles", "a car waits\tnearby"]
        assert {member.mtime for member in archive.getmembers()} == {0}
    for path in (tmp_path / "out").glob("*.tar"):  # `datasets` wants the same members of the same types in all of them
        with tarfile.open(path) as archive:
            keys = {member.partition(".")[0] for member in archive.getnames()}
            assert set(archive.getnames()) == {f"{key}.{kind}" for key in keys for kind in ("flac", "json", "txt")}
            for key in keys:
                fact = json.load(archive.extractfile(f"{key}.json"))
                assert isinstance(fact["labels"][0], str)
                assert fact["text"] == fact["captions"][0] == archive.extractfile(f"{key}.txt").read().decode()  # as CLAP looks


AS_AUDIOCAPS = [  # one caption in train, five elsewhere; no label in one split, no caption in another
    ("abcdefghijk_1", "train", ["a dog barks"], []),
    ("abcdefghijl_1", "train", ["a cat, a dog"], []),
    ("abcdefghijm_1", "valid", ["a", "b", "c", "d", "e"], ["dog", "cat"]),
    ("abcdefghijn_1", "test", [], ["dog"]),
]


def test_every_row_tells_datasets_the_types(tmp_path, monkeypatch):
    """It looks no further than 10,000 lines of a csv, or 10 MB of JSON lines."""
    texts = [(["a"], []), ([], []), (["b", "c"], ["dog"])]
    rows = [(f"abcdefghij{number}_1", "train", *told) for number, told in enumerate(texts)]
    tables = with_rows(tmp_path, monkeypatch, *rows)
    exports.export(tables, "audiofolder", tmp_path / "json", RATE)
    lines = [json.loads(line) for line in (tmp_path / "json/train/metadata.jsonl").read_text().splitlines()]
    texts = [(line["captions"], line["labels"]) for line in sorted(lines, key=lambda line: line["file_name"])]
    assert texts == [(["a"], [""]), ([""], [""]), (["b", "c"], ["dog"])]
    exports.export(tables, "audiofolder_csv", tmp_path / "csv", RATE)
    with (tmp_path / "csv/train/metadata.csv").open(newline="") as file:
        assert next(csv.reader(file))[1:] == ["labels", "caption_1", "caption_2"]
        assert [cells[1:] for cells in sorted(csv.reader(file))] == [[" ", "a", " "], [" ", " ", " "], ["dog", "b", "c"]]


@pytest.mark.parametrize("name", ["audiofolder", "audiofolder_csv"])
def test_what_stands_for_no_text_is_read_back_as_none(tmp_path, monkeypatch, name):
    exports.export(with_rows(tmp_path, monkeypatch, *AS_AUDIOCAPS), name, tmp_path / "out", RATE)
    tables = registry.read("auto", inventory.list_files(tmp_path / "out"), 1)
    assert tables.format == "audiofolder"
    ids = {row["recording_id"]: row["path"] for row in tables.recordings}
    captions = sorted((ids[row["recording_id"]].partition("/")[0], row["caption"]) for row in tables.captions)
    assert captions == [("train", "a cat, a dog"), ("train", "a dog barks")] + [("validation", letter) for letter in "abcde"]
    labels = {row["path"].partition("/")[0]: row["labels"] for row in tables.recordings}
    assert labels == {"train": [], "validation": ["dog", "cat"], "test": ["dog"]}
    assert (tables.rejected, tables.remarks) == ([], [])


# What audiocraft's MusicInfo.from_dict asks for, where its fields are required; `keywords` may be absent.
MUSIC_INFO = {"title", "artist", "key", "bpm", "genre", "moods", "description", "name", "instrument"}


def test_audiocraft_clotho_and_lhotse_have_every_field_sound_and_caption(tables, tmp_path):
    exports.export(tables, "audiocraft", tmp_path / "out", RATE)
    for path in (tmp_path / "out/audio").glob("*.json"):
        facts = json.loads(path.read_text())
        assert MUSIC_INFO <= facts.keys()
        assert {name for name in MUSIC_INFO if facts[name] is not None} == {"description", "name"}
    exports.export(tables, "clotho", tmp_path / "clotho", RATE)
    for part in ("development", "validation", "evaluation"):
        places = [tmp_path / f"clotho/clotho_{what}_{part}.csv" for what in ("captions", "metadata")]
        captions, facts = (list(csv.DictReader(path.open())) for path in places)
        assert [row["file_name"] for row in facts] == [row["file_name"] for row in captions]
        assert set(facts[0]) == {"file_name", "keywords", "sound_id", "sound_link", "start_end_samples", "manufacturer", "license"}
        assert all(row["keywords"] for row in facts)
    exports.export(tables, "lhotse", tmp_path / "lhotse", RATE)
    packed = [(tmp_path / f"lhotse/soundmill_{kind}_train.jsonl.gz").read_bytes() for kind in ("recordings", "supervisions")]
    recordings, supervisions = ([json.loads(line) for line in gzip.decompress(one).splitlines()] for one in packed)
    (recording,) = (row for row in recordings if row["id"] == "abcdefghijk_5.5")
    samples, rate = soundfile.read(recording["sources"][0]["source"], dtype="int16")
    assert (rate, len(samples)) == (recording["sampling_rate"], recording["num_samples"]) == (RATE, RATE * recording["duration"])
    assert np.array_equal(samples, flac.to_pcm16(wave_of(1)))
    texts = [row["text"] for row in supervisions if row["recording_id"] == "abcdefghijk_5.5"]
    assert texts == ["an engine idles", "a car waits\tnearby"]


def test_what_cannot_be_said_is_left_out_and_named(tables, tmp_path):
    result = exports.export(tables, "esc", tmp_path / "out", RATE)
    said = "{} labels, but the format has one"
    assert dict(result.left_out) == {"abcdefghijk_5.5": said.format(2), "000000000001_2": said.format(0)}
    assert "abcdefghijk_5.5\t2 labels" in (tmp_path / "out" / exports.LEFT_OUT).read_text()


def test_mistakes_are_named_and_a_directory_with_something_in_it_is_left_alone(tables, tmp_path):
    for name, split, words in (("audiocap", None, "did you mean 'audiocaps'"), ("tango", "tests", "--split tests")):
        with pytest.raises(UserError, match=words):
            exports.export(tables, name, tmp_path / "out", RATE, split=split)
        assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        exports.export(tables, "tango", tmp_path / "out", RATE)
    assert tree(tmp_path / "out") == {"mine.txt": b"mine"}


def test_nothing_to_express_is_an_error_and_leaves_nothing(tables, tmp_path):
    rows = [{**row, "captions": [], "labels": []} for row in shards.read_rows(tables.catalog, manifest.CATALOG)]
    shards.write_rows(rows, tables.catalog, manifest.CATALOG)
    with pytest.raises(UserError, match="no caption"):
        exports.export(tables, "tango", tmp_path / "out", RATE)
    assert list(tmp_path.glob("*out*")) == []


def with_rows(directory: Path, monkeypatch: pytest.MonkeyPatch, *rows: tuple, groups: dict[str, str] | None = None) -> clips.Tables:
    """Prepared clips of these (clip id, split, captions, labels), their recordings in these groups."""
    monkeypatch.setattr("tests.prepared.ROWS", rows)
    tables = prepare(directory)
    found = [{**row, "group": (groups or {}).get(row["recording_id"])} for row in clips.find(tables)]
    shards.write_rows(found, tables.catalog, manifest.CATALOG)
    return tables


def test_what_never_parts_is_in_one_fold_and_bears_one_name(tmp_path, monkeypatch):
    names = [f"{number:012x}" for number in range(12)]
    rows = [(f"{name}_0", "train", [], [label]) for name, label in zip(names, cycle(["dog bark", "dog_bark", "cat"]), strict=False)]
    tables = with_rows(tmp_path, monkeypatch, *rows, groups={name: f"original-{number // 4}" for number, name in enumerate(names)})
    exports.export(tables, "urbansound8k", tmp_path / "us", RATE)
    exports.export(tables, "esc", tmp_path / "esc", RATE)
    kinds = (("us/metadata/UrbanSound8K.csv", "fsID", "class", "classID"), ("esc/meta/esc50.csv", "src_file", "category", "target"))
    for table, origin, label, number in kinds:
        with (tmp_path / table).open() as file:
            rows = list(csv.DictReader(file))
        pairs = {(row[origin], row["fold"]) for row in rows}
        assert sorted(origin for origin, _ in pairs) == ["original-0", "original-1", "original-2"]
        assert {(row[label], row[number]) for row in rows} == {("cat", "0"), ("dog_bark", "1")}


def test_labels_that_would_share_a_folder_have_their_own_and_several_captions_are_left_out(tmp_path, monkeypatch):
    labels = ["a/b", "a_b", "कुत्ता", "🐶", "🐱"]
    rows = [(f"{number:012x}_0", "train", ["one"], [label]) for number, label in enumerate(labels)]
    tables = with_rows(tmp_path, monkeypatch, *rows, ("00000000000f_0", "train", ["one", "two"], ["bell"]))
    result = exports.export(tables, "folder", tmp_path / "out", RATE)
    found = {path.parent.name for path in (tmp_path / "out").rglob("*.wav")}
    assert len(found) == len(labels)
    assert {re.sub(" [0-9a-f]{8}$", "", name) for name in found} == {"a_b", "कुत्ता", "_"}
    assert result.left_out == [("00000000000f_0", "2 captions, but the format has one text")]


def test_a_link_where_an_export_is_made_is_not_followed(tables, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "letter.txt").write_text("dear")
    (tmp_path / "old").mkdir()
    for link in (tmp_path / "old" / exports.PARTIAL, tmp_path / f"{exports.PARTIAL}-new"):
        link.symlink_to(precious)
    for name in ("old", "new"):
        with pytest.raises(UserError, match="name a directory that can be created"):
            exports.export(tables, "tango", tmp_path / name, RATE)
    assert tree(precious) == {"letter.txt": b"dear"}


def test_a_moved_export_leaves_another_ones_work_alone(tables, tmp_path):
    (tmp_path / "out").mkdir()
    another = tmp_path / "out" / exports.PARTIAL / "clip.wav"

    def move_and_begin_another(count: int) -> None:
        if not another.exists():
            (tmp_path / "out").rename(tmp_path / "moved")
            another.parent.mkdir(parents=True)
            another.write_bytes(b"another's")

    with pytest.raises(UserError, match="was moved or removed during the export"):
        exports.export(tables, "tango", tmp_path / "out", RATE, progress=lambda n: another.exists() or move_and_begin_another(n))
    assert another.read_bytes() == b"another's"


def test_an_export_into_an_old_directory_that_is_cut_short_at_its_end_leaves_it_empty(tables, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    replace, calls = os.replace, []

    def cut_short(source, target):
        calls.append(source)
        if len(calls) == 3:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(exports.os, "replace", cut_short)
        with pytest.raises(KeyboardInterrupt):
            exports.export(tables, "tango", tmp_path / "out", RATE)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_label_with_the_mark_between_labels_is_left_out_of_csv(tmp_path, monkeypatch):
    rows = [("000000000000_0", "train", ["x"], ["a;b", "c"]), ("000000000001_0", "train", ["y"], ["c"])]
    result = exports.export(with_rows(tmp_path, monkeypatch, *rows), "audiofolder_csv", tmp_path / "out", RATE)
    assert [clip_id for clip_id, _ in result.left_out] == ["000000000000_0"]


def test_clips_of_another_rate_than_the_parameters_say_are_not_exported(tables, tmp_path):
    with pytest.raises(UserError, match="has 16000 Hz, but `clips` in"):
        exports.export(tables, "lhotse", tmp_path / "out", 2 * RATE)
    with pytest.raises(UserError, match="has 16000 Hz"):
        clips.export(tables, [ROWS[0][0]], tmp_path / "wavs", 2 * RATE)


def test_an_empty_directory_stays_the_same_one(tables, tmp_path):
    """It may be a volume, or where somebody's shell is."""
    (tmp_path / "new").mkdir()
    before = (tmp_path / "new").stat().st_ino
    exports.export(tables, "tango", tmp_path / "new", RATE)
    assert (tmp_path / "new").stat().st_ino == before
    exports.export(tables, "tango", tmp_path / "other", RATE)
    alike = {name: data.replace(b"/other/", b"/new/") for name, data in tree(tmp_path / "other").items()}
    assert alike == tree(tmp_path / "new")


def test_two_exports_to_one_place_do_not_mix_and_what_a_killed_one_left_is_not_in_the_next(tables, tmp_path):
    def start_another(count: int) -> None:
        with pytest.raises(UserError, match="another export is writing there"):
            exports.export(tables, "lhotse", tmp_path / "out", RATE)

    assert exports.export(tables, "tango", tmp_path / "out", RATE, progress=start_another).written
    assert (tmp_path / "out/train.json").exists()
    left = tmp_path / f"{exports.PARTIAL}-other" / "audio"
    left.mkdir(parents=True)
    (left / "strange.wav").write_bytes(b"x")
    exports.export(tables, "tango", tmp_path / "other", RATE)
    assert "audio/strange.wav" not in tree(tmp_path / "other")
    assert not left.parent.exists()


@pytest.mark.parametrize("name", ["x" * 300, "bad\udcff"])
def test_a_name_that_cannot_be_is_told(tables, tmp_path, name):
    with pytest.raises(UserError, match=r"too long|not UTF-8"):
        exports.export(tables, "tango", tmp_path / name, RATE)


@pytest.mark.parametrize("place", ["corpus/out", "corpus", "part/deep/out", "project/data/out", "project/elsewhere"])
def test_an_export_into_the_corpus_or_the_pipelines_own_data_is_refused(tmp_path, place):
    root = tmp_path / "project"
    (root / "data").mkdir(parents=True)
    parts = {"a": {"format": "auto", "path": str(tmp_path / "part"), "weight": 1.0}}
    params.write_yaml({"corpus": {"path": "../corpus", "parts": parts}}, root / "params.yaml")
    for odd in ({}, {"corpus": None}, {"corpus": {"path": 12, "parts": {"a": None}}}):
        params.write_yaml(odd, tmp_path / "params.yaml")
        check_apart(tmp_path / "elsewhere", tmp_path)
    if place == "project/elsewhere":
        check_apart(tmp_path / place, root)
    else:
        with pytest.raises(UserError, match="which the pipeline reads or writes; choose a directory"):
            check_apart(tmp_path / place, root)
