"""Hugging Face datasets: audiofolders with metadata of every kind, and Parquet tables with the recordings inside."""

from __future__ import annotations

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from soundmill import shards
from soundmill.corpora import inventory, registry, sources
from soundmill.errors import UserError
from tests.corpora.tiny import AUDIO, captions, cell, detected, put, recordings, scan, sound, write, write_table


def test_metadata_csv_in_any_folder_names_files_beside_itself(tmp_path):
    put(tmp_path, "train/a.wav", "train/deep/b c.wav", "validation/a.wav", "test/d.wav", "test/unnamed.wav")
    write(tmp_path, "train/metadata.csv", '\ufefffile_name,text,label\r\na.wav,"Rain, heavy",rain_sound\r\ndeep/b c.wav,Wind,\r\n')
    write(tmp_path, "validation/metadata.csv", "file_name,text,label\na.wav,A dog,dog\n")
    write(tmp_path, "test/metadata.csv", "file_name,text,label\nd.wav,A cat,cat\ngone.wav,Lost,cat\n,nothing,x\n")
    assert detected(tmp_path) == "audiofolder"
    tables = scan(tmp_path)
    assert recordings(tables, "split", "labels") == {
        "test/d.wav": ("test", ["cat"]),
        "test/unnamed.wav": ("test", []),
        "train/a.wav": ("train", ["rain sound"]),
        "train/deep/b c.wav": ("train", []),
        "validation/a.wav": ("valid", ["dog"]),
    }
    found = captions(tables)
    assert (found["train/a.wav"], found["validation/a.wav"]) == (["Rain, heavy"], ["A dog"])
    assert [row["id"] for row in tables.missing] == ["gone.wav"]
    assert [row["path"] for row in tables.orphans] == ["test/unnamed.wav"]
    assert [row["reason"] for row in tables.rejected] == ["bad id"]


def test_metadata_jsonl_at_the_top_names_files_below(tmp_path):
    put(tmp_path, "data/train/a.wav", "data/test/b.wav")
    rows = [
        {"file_name": "data/train/a.wav", "transcription": "Hello", "labels": ["speech", "indoors"], "extra": {"deep": 1}},
        {"file_name": "data/test/b.wav", "captions": ["One", "Two", 3], "caption_1": "Zero", "label": None, "genre": "rock"},
        ["no object"],
        {"file_name": "../outside.wav", "text": "x"},
    ]
    write(tmp_path, "metadata.jsonl", "\n".join(json.dumps(row) for row in rows))
    tables = scan(tmp_path)
    assert recordings(tables, "split", "labels") == {
        "data/test/b.wav": ("test", ["rock"]),
        "data/train/a.wav": ("train", ["speech", "indoors"]),
    }
    assert captions(tables)["data/test/b.wav"] == ["One", "Two", "Zero"]
    assert [row["reason"] for row in tables.rejected] == ["bad entry"]
    assert [row["id"] for row in tables.missing] == ["../outside.wav"]


def test_metadata_parquet_with_class_numbers(tmp_path):
    put(tmp_path, "a.wav", "b.wav")
    features = {"file_name": {"dtype": "string"}, "label": {"names": ["dog", "cat_meow"], "_type": "ClassLabel"}}
    table = pa.table({"file_name": ["a.wav", "b.wav"], "label": [1, 7], "fold": [3, None], "split": ["validation", "odd"]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "metadata.parquet")
    assert detected(tmp_path) == "audiofolder"
    assert recordings(scan(tmp_path), "labels", "fold", "split") == {
        "a.wav": (["cat meow"], 3, "valid"),
        "b.wav": (["7"], None, None),
    }


def test_recordings_inside_tables_with_their_splits_and_captions(tmp_path):
    write_table(
        tmp_path / "data" / "train-00000-of-00002.parquet",
        [cell(0), cell(1), None, cell(2)],
        rows_per_group=2,
        text=["Rain", None, "Nothing", " "],
        label=["rain", "dog", "x", None],
    )
    write_table(tmp_path / "data" / "test-00000-of-00001.parquet", [cell(3)], column="sound", captions=[["A", "B"]])
    assert detected(tmp_path) == "audiofolder"
    tables = scan(tmp_path)
    assert recordings(tables, "split", "labels", "size") == {
        "data/test-00000-of-00001.parquet#0": ("test", [], len(sound(3))),
        "data/train-00000-of-00002.parquet#0": ("train", ["rain"], len(sound(0))),
        "data/train-00000-of-00002.parquet#1": ("train", ["dog"], len(sound(1))),
        "data/train-00000-of-00002.parquet#3": ("train", [], len(sound(2))),
    }
    assert captions(tables)["data/test-00000-of-00001.parquet#0"] == ["A", "B"]
    assert [(row["path"], row["reason"]) for row in tables.rejected] == [("data/train-00000-of-00002.parquet#2", "empty")]
    assert [row["path"] for row in tables.orphans] == ["data/train-00000-of-00002.parquet#3"]
    assert len({row["recording_id"] for row in tables.recordings}) == 4
    raw_paths = [row["raw_path"] for row in tables.recordings]
    assert sources.embedded_path(b"data/train-00000-of-00002.parquet", 3) in raw_paths


def test_rows_with_the_same_recording_are_one_with_several_captions(tmp_path):
    columns = {
        "audiocap_id": [1, 2, 3, 4],
        "youtube_id": ["r1nicOVtvkQ", "r1nicOVtvkQ", "r1nicOVtvkQ", "-0abCdeFghI"],
        "start_time": [30, 30, 130, 0],
        "caption": ["A woman talks", "Water pours", "Later", "Rain"],
    }
    write_table(tmp_path / "test-00000-of-00001.parquet", [cell(0), cell(0), cell(1), cell(0)], **columns)
    tables = scan(tmp_path)
    assert [(row["recording_id"], row["start_time"], row["group"]) for row in tables.recordings] == [
        ("r1nicOVtvkQ_30", 30.0, "r1nicOVtvkQ"),
        ("r1nicOVtvkQ_130", 130.0, "r1nicOVtvkQ"),
        ("-0abCdeFghI_0", 0.0, "-0abCdeFghI"),
    ]
    assert captions(tables)["test-00000-of-00001.parquet#0"] == ["A woman talks", "Water pours"]
    assert tables.counts["repeated_recordings"] == 1


def test_a_cell_without_bytes_may_name_a_file(tmp_path):
    put(tmp_path, "audio/a.wav")
    write_table(tmp_path / "train.parquet", [{"bytes": None, "path": "audio/a.wav"}, cell(1)], text=["A", "B"])
    tables = scan(tmp_path)
    assert recordings(tables, "split") == {"audio/a.wav": "train", "train.parquet#1": "train"}
    assert captions(tables) == {"audio/a.wav": ["A"], "train.parquet#1": ["B"]}


def test_tables_that_are_damaged_or_hostile_cost_themselves_alone(tmp_path):
    write_table(tmp_path / "good.parquet", [cell(0)], text=["Good"])
    write_table(tmp_path / "cut.parquet", [cell(n) for n in range(8)], text=list("abcdefgh"))
    raw = (tmp_path / "cut.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(raw[:4] + bytes(len(raw) // 2) + raw[4 + len(raw) // 2 :])
    write(tmp_path, "text.parquet", b"PAR1 no table PAR1")
    write_table(tmp_path / "long.parquet", [cell(1)], text=["x" * 100_000])
    pq.write_table(pa.table({"audio": pa.nulls(500_000, AUDIO)}), tmp_path / "empty.parquet")
    os.mkfifo(tmp_path / "pipe.parquet")
    tables = scan(tmp_path)
    assert captions(tables) == {"good.parquet#0": ["Good"]}
    assert {row["path"]: row["reason"] for row in tables.rejected} == {
        "cut.parquet": "unreadable table",
        "empty.parquet": "unreadable table",
        "text.parquet": "unreadable table",
        "long.parquet": "caption too long",
    }


def test_text_that_a_small_table_repeats_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("soundmill.corpora.tables.MAX_TEXT", 1_000_000)
    write_table(tmp_path / "train.parquet", [cell(n) for n in range(40)], text=["x" * 50_000] * 40)
    assert (tmp_path / "train.parquet").stat().st_size < 500_000
    with pytest.raises(UserError, match=r"train\.parquet: captions and labels of more than 1000000 characters"):
        scan(tmp_path)
    write_table(tmp_path / "train.parquet", [cell(0)], text=["A dog"], labels=[["x" * 50_000] * 40])
    with pytest.raises(UserError, match=r"train\.parquet: captions and labels"):
        scan(tmp_path)


def test_a_look_without_digests_opens_no_recording(tmp_path, monkeypatch):
    write_table(tmp_path / "train.parquet", [cell(n) for n in range(3)], text=list("abc"))
    monkeypatch.setattr(sources, "read_cells", lambda *_: pytest.fail("a recording was read"))
    tables = registry.read("auto", inventory.take(tmp_path, digests=False), 1)
    assert [row["path"] for row in tables.recordings] == [f"train.parquet#{row}" for row in range(3)]


def test_tables_without_recordings_are_no_dataset(tmp_path):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"neither a metadata\.csv"):
        scan(tmp_path, "audiofolder")
    with pytest.raises(UserError, match=r"corpus\.path: no recording in"):
        scan(tmp_path)


def test_half_characters_and_endless_numbers_cost_themselves_alone(tmp_path):
    put(tmp_path, "a.wav", "b.wav")
    rows = [
        {"file_name": "\ud800.wav", "text": "x"},
        {"file_name": "a.wav", "text": "half \ud800 a character", "fold": "9" * 5000},
        {"file_name": "b.wav", "text": "B", "fold": "7", "split": "\ud800"},
    ]
    write(tmp_path, "metadata.jsonl", "\n".join(json.dumps(row) for row in rows))
    tables = scan(tmp_path)
    assert captions(tables) == {"a.wav": ["half ? a character"], "b.wav": ["B"]}
    assert recordings(tables, "fold") == {"a.wav": None, "b.wav": 7}
    assert [row["reason"] for row in tables.rejected] == ["bad id"]


def test_recordings_are_read_again_only_where_their_table_changed(tmp_path, monkeypatch):
    corpus, cache = tmp_path / "corpus", tmp_path / "digests.sqlite"
    for number, name in enumerate(("train", "test")):
        write_table(corpus / f"{name}.parquet", [cell(number)], text=[name])
        os.utime(corpus / f"{name}.parquet", ns=(1, 1))
    monkeypatch.setattr(shards.time, "time_ns", lambda: (corpus / "test.parquet").stat().st_ctime_ns + 3_000_000_000)
    read = []
    digest_cells = sources.digest_cells
    monkeypatch.setattr(sources, "digest_cells", lambda file: read.append(file.metadata.num_rows) or digest_cells(file))

    def scanned() -> list[dict]:
        return registry.read("audiofolder", inventory.take(corpus, cache=cache), 4).recordings

    first = scanned()
    assert scanned() == first
    assert len(read) == 2
    write_table(corpus / "test.parquet", [cell(0), cell(5)], text=["x", "y"])
    assert [row["digest"] for row in scanned()][:2] != [row["digest"] for row in first]
    assert read == [1, 1, 2]


def test_the_clip_that_a_csv_tells_beside_the_name(tmp_path):
    put(tmp_path, "audio/0.wav")
    rows = "audio/0.wav,r1nicOVtvkQ,130,a\naudio/2.wav,UDGBjjwyaqE,20,c\n"
    write(tmp_path, "metadata.csv", "file_name,youtube_id,start_time,text\n" + rows)
    tables = scan(tmp_path)
    assert [(row["recording_id"], row["start_time"], row["group"]) for row in tables.recordings] == [
        ("r1nicOVtvkQ", 130.0, "r1nicOVtvkQ")
    ]
    assert [(entry["youtube_id"], entry["start_time"]) for entry in tables.missing] == [("UDGBjjwyaqE", 20.0)]
