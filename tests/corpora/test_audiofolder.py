"""Hugging Face datasets: audiofolders with metadata of every kind, and Parquet tables with the recordings inside."""

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from soundmill import hashing
from soundmill.corpora import inventory, registry, sources
from soundmill.errors import UserError
from tests.corpora.tiny import AUDIO, captions, cell, put, recordings, scan, sound, write, write_table


def test_metadata_csv_in_any_folder_names_files_beside_itself(tmp_path):
    put(tmp_path, "train/a.wav", "train/deep/b c.wav", "validation/a.wav", "test/d.wav", "test/unnamed.wav")
    write(tmp_path, "train/metadata.csv", '\ufefffile_name,text,label\r\na.wav,"Rain, heavy",rain_sound\r\ndeep/b c.wav,Wind,\r\n')
    write(tmp_path, "validation/metadata.csv", "file_name,text,label\na.wav,A dog,dog\n")
    write(tmp_path, "test/metadata.csv", "file_name,text,label\nd.wav,A cat,cat\ngone.wav,Lost,cat\n,nothing,x\n")
    tables = scan(tmp_path)
    found = {"test/d.wav": ("test", ["cat"]), "test/unnamed.wav": ("test", []), "validation/a.wav": ("valid", ["dog"])}
    train = {"train/a.wav": ("train", ["rain sound"]), "train/deep/b c.wav": ("train", [])}
    assert recordings(tables, "split", "labels") == found | train
    result = captions(tables)
    assert (result["train/a.wav"], result["validation/a.wav"]) == (["Rain, heavy"], ["A dog"])
    assert [row["id"] for row in tables.missing] == ["gone.wav"]
    assert [row["path"] for row in tables.orphans] == ["test/unnamed.wav"]
    assert [row["reason"] for row in tables.rejected] == ["bad id"]


def test_metadata_jsonl_at_the_top_names_files_below(tmp_path):
    put(tmp_path, "data/train/a.wav", "data/test/b.wav")
    rows = [
        {"file_name": "data/train/a.wav", "transcription": "Hello", "labels": ["speech", "indoors"], "extra": {"deep": 1}},
        {"file_name": "data/test/b.wav", "captions": ["One", "Two", 3], "caption_1": "Zero", "label": 7, "genre": "rock"},
        ["no object"],
        {"file_name": "../outside.wav", "text": "x"},
    ]
    write(tmp_path, "metadata.jsonl", "\n".join(json.dumps(row) for row in rows))
    tables = scan(tmp_path)
    found = recordings(tables, "split", "labels")
    assert found == {"data/test/b.wav": ("test", ["rock"]), "data/train/a.wav": ("train", ["speech", "indoors"])}
    assert captions(tables)["data/test/b.wav"] == ["One", "Two", "Zero"]
    assert [row["reason"] for row in tables.rejected] == ["bad entry"]
    assert [row["id"] for row in tables.missing] == ["../outside.wav"]


def test_metadata_parquet_with_class_numbers(tmp_path):
    put(tmp_path, "a.wav", "b.wav")
    features = {"file_name": {"dtype": "string"}, "label": {"names": ["dog", "cat_meow"], "_type": "ClassLabel"}}
    table = pa.table({"file_name": ["a.wav", "b.wav"], "label": [1, 7], "fold": [3, None], "split": ["validation", "odd"]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "metadata.parquet")
    found = recordings(scan(tmp_path), "labels", "fold", "split")
    assert found == {"a.wav": (["cat meow"], 3, "valid"), "b.wav": (["7"], None, None)}


def test_recordings_inside_tables_with_their_splits_and_captions(tmp_path):
    columns = {"text": ["Rain", None, "Nothing", " "], "label": ["rain", "dog", "x", None]}
    place = tmp_path / "data" / "train-00000-of-00002.parquet"
    write_table(place, [cell(0), cell(1), None, cell(2)], rows_per_group=2, **columns)
    write_table(tmp_path / "data" / "test-00000-of-00001.parquet", [cell(3)], column="sound", captions=[["A", "B"]])
    tables = scan(tmp_path)
    assert recordings(tables, "split", "labels", "size") == {
        "data/test-00000-of-00001.parquet#0": ("test", [], len(sound(3))),
        "data/train-00000-of-00002.parquet#0": ("train", ["rain"], len(sound(0))),
        "data/train-00000-of-00002.parquet#1": ("train", ["dog"], len(sound(1))),
        "data/train-00000-of-00002.parquet#3": ("train", [], len(sound(2))),
    }
    assert captions(tables)["data/test-00000-of-00001.parquet#0"] == ["A", "B"]
    assert [(row["path"], row["reason"]) for row in tables.rejected] == [("data/train-00000-of-00002.parquet#2", "empty")]
    assert (tables.orphans, len(tables.named)) == ([], 1)
    assert len({row["recording_id"] for row in tables.recordings}) == 4
    raw_paths = [row["raw_path"] for row in tables.recordings]
    assert sources.embedded_path(b"data/train-00000-of-00002.parquet", 3) in raw_paths


def test_rows_with_the_same_recording_are_one_with_several_captions(tmp_path):
    videos, texts = ["r1nicOVtvkQ"] * 3 + ["-0abCdeFghI"], ["A woman talks", "Water pours", "Later", "Rain"]
    columns = {"audiocap_id": [1, 2, 3, 4], "youtube_id": videos, "start_time": [30, 30, 130, 0], "caption": texts}
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
    rejected = {row["path"]: row["reason"] for row in tables.rejected}
    unreadable = dict.fromkeys(("cut.parquet", "empty.parquet", "text.parquet"), "unreadable table")
    assert rejected == unreadable | {"long.parquet": "caption too long"}


def test_text_that_a_small_table_repeats_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("soundmill.corpora.tables.MAX_TEXT", 1_000_000)
    write_table(tmp_path / "train.parquet", [cell(n) for n in range(40)], text=["x" * 50_000] * 40)
    assert (tmp_path / "train.parquet").stat().st_size < 500_000
    with pytest.raises(UserError, match=r"train\.parquet: captions and labels of more than 1000000 characters"):
        scan(tmp_path)
    write_table(tmp_path / "train.parquet", [cell(0)], text=["A dog"], labels=[["x" * 50_000] * 40])
    with pytest.raises(UserError, match=r"train\.parquet: captions and labels"):
        scan(tmp_path)


def test_recordings_are_read_again_only_where_their_table_changed(tmp_path, monkeypatch):
    corpus, cache = tmp_path / "corpus", tmp_path / "digests.sqlite"
    for number, name in enumerate(("train", "test")):
        write_table(corpus / f"{name}.parquet", [cell(number)], text=[name])
        os.utime(corpus / f"{name}.parquet", ns=(1, 1))
    monkeypatch.setattr(hashing.time, "time_ns", lambda: (corpus / "test.parquet").stat().st_ctime_ns + 3_000_000_000)
    read = []
    digest_cells = sources.digest_cells
    monkeypatch.setattr(sources, "digest_cells", lambda file: read.append(file.metadata.num_rows) or digest_cells(file))

    def scanned() -> list[dict]:
        return registry.read("audiofolder", inventory.list_files(corpus, cache=cache), 4).recordings

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
    (row,) = tables.recordings
    assert (row["recording_id"], row["start_time"], row["group"]) == ("r1nicOVtvkQ", 130.0, "r1nicOVtvkQ")
    assert [(entry["youtube_id"], entry["start_time"]) for entry in tables.missing] == [("UDGBjjwyaqE", 20.0)]


def test_labels_that_people_can_read_win_over_machine_ids(tmp_path):
    """The columns of AudioSet on the Hub."""
    columns = {
        "video_id": ["--PJHxphWEs", "-0RWZT-miFs", "r1nicOVtvkQ"],
        "labels": [["/m/09x0r", "/t/dd00088"], ["/m/0k4j", "/m/0_ksk"], ["/m/04rlf"]],
        "human_labels": [["Speech", "Gush"], None, []],
    }
    write_table(tmp_path / "data" / "bal_train" / "00.parquet", [cell(n) for n in range(3)], **columns)
    tables = scan(tmp_path)
    assert [(row["recording_id"], row["labels"], row["split"], row["group"]) for row in tables.recordings] == [
        ("--PJHxphWEs", ["Speech", "Gush"], "train", "--PJHxphWEs"),
        ("-0RWZT-miFs", [], "train", "-0RWZT-miFs"),
        ("r1nicOVtvkQ", [], "train", "r1nicOVtvkQ"),
    ]
    assert tables.counts["labels_without_name"] == 3
    assert [remark.partition("(")[0] for remark in tables.remarks] == ["3 labels are machine ids of AudioSet classes "]
    write(tmp_path, "class_labels_indices.csv", 'index,mid,display_name\n0,/m/0k4j,Car\n1,/m/0_ksk,"Car alarm"\n2,/m/04rlf,Music\n')
    tables = scan(tmp_path)
    assert list(recordings(tables, "labels").values()) == [["Speech", "Gush"], ["Car", "Car alarm"], ["Music"]]
    assert tables.remarks == []


def test_the_clip_and_the_split_as_musiccaps_tells_them(tmp_path):
    columns = {"ytid": ["r1nicOVtvkQ", "UDGBjjwyaqE"], "start_s": [30, 90], "is_audioset_eval": [True, False]}
    write_table(tmp_path / "train-00000-of-00001.parquet", [cell(0), cell(1)], **columns)
    result = [(row["recording_id"], row["start_time"], row["split"]) for row in scan(tmp_path).recordings]
    assert result == [("r1nicOVtvkQ_30", 30.0, "test"), ("UDGBjjwyaqE_90", 90.0, "train")]


def test_a_video_in_a_column_and_its_start_in_the_name(tmp_path):
    cells = [{"bytes": sound(n), "path": f"r1nicOVtvkQ_{30 * n}.wav"} for n in range(2)]
    write_table(tmp_path / "all.parquet", cells, video_id=["r1nicOVtvkQ"] * 2, text=["A", "B"])
    assert [row["recording_id"] for row in scan(tmp_path).recordings] == ["r1nicOVtvkQ_0", "r1nicOVtvkQ_30"]


def test_a_word_in_the_name_of_a_recording_is_no_split(tmp_path):
    put(tmp_path, "sound_1.wav", "Mic test, one two.wav", "steam_train.wav", "eval.wav", "eval_board/a.wav")
    write(tmp_path, "metadata.csv", 'file_name,text\nsound_1.wav,A\n"Mic test, one two.wav",B\nsteam_train.wav,C\neval.wav,D\n')
    assert set(recordings(scan(tmp_path), "split").values()) == {None}


def test_a_class_folder_called_train_is_no_split(tmp_path):
    put(tmp_path, "train/0.wav", "dog/0.wav", "cat/0.wav")
    write(tmp_path, "metadata.csv", "file_name,label\ntrain/0.wav,train\ndog/0.wav,dog\n")
    tables = scan(tmp_path)
    assert recordings(tables, "split") == {"cat/0.wav": None, "dog/0.wav": None, "train/0.wav": None}
    assert [remark.partition(",")[0] for remark in tables.remarks] == [
        "1 recordings (first: train/0.wav) are in folders named after splits that are not read as splits"
    ]


def test_folders_of_splits_in_each_of_several_folders(tmp_path):
    put(tmp_path, "de/train-a/a.wav", "de/test-a/b.wav", "en/train/c.wav")
    for folder, name in (("de/train-a", "a"), ("de/test-a", "b"), ("en/train", "c")):
        write(tmp_path, f"{folder}/metadata.csv", f"file_name,text\n{name}.wav,{name}\n")
    assert recordings(scan(tmp_path), "split") == {
        "de/test-a/b.wav": "test",
        "de/train-a/a.wav": "train",
        "en/train/c.wav": "train",
    }
    put(tmp_path, "fr/d.wav")
    assert set(recordings(scan(tmp_path), "split").values()) == {None}


def test_splits_of_a_manifest_whose_files_lie_elsewhere(tmp_path):
    put(tmp_path, "wavs/a.wav", "wavs/b.wav")
    write(tmp_path, "metadata.csv", "file_name,text\ntrain/a.wav,A\ntest/b.wav,B\n")
    assert recordings(scan(tmp_path), "split") == {"wavs/a.wav": "train", "wavs/b.wav": "test"}


def test_recordings_of_one_original_are_a_group(tmp_path):
    slices = ["100032-3-0-0.wav", "100032-3-0-1.wav", "24074-1-0-3.wav", "no slice.wav"]
    originals = {"slice_file_name": slices, "fsID": [100032, 100032, None, None]}
    write_table(tmp_path / "us8k" / "train.parquet", [cell(n) for n in range(4)], **originals)
    write_table(tmp_path / "esc" / "train.parquet", [cell(4), cell(5)], src_file=[100032, 210], category=["dog", "rain"])
    put(tmp_path, "a.wav", "b.wav")
    write(tmp_path, "metadata.csv", "file_name,freesound_id,text\na.wav,100032,A\nb.wav,0,B\n")
    assert recordings(scan(tmp_path), "group") == {
        "a.wav": "100032",
        "b.wav": None,
        "esc/train.parquet#0": "100032",
        "esc/train.parquet#1": "210",
        "us8k/train.parquet#0": "100032",
        "us8k/train.parquet#1": "100032",
        "us8k/train.parquet#2": "24074",
        "us8k/train.parquet#3": None,
    }


ALIKE = {"bytes": sound(0), "path": "Santa Motor.wav"}
OF_VIDEO = [{"bytes": sound(n), "path": "r1nicOVtvkQ.wav"} for n in range(2)]


@pytest.mark.parametrize(
    ("cells", "columns", "counts"),
    [
        ([ALIKE] * 5, {}, [5]),
        ([ALIKE, {**ALIKE, "bytes": sound(1)}, ALIKE, {"bytes": b"", "path": None}], {}, [2, 1]),
        ([{**ALIKE, "path": None}, {**ALIKE, "path": None}, {**OF_VIDEO[1], "path": None}], {}, [2, 1]),
        ([ALIKE, {**ALIKE, "path": "Another name.wav"}], {}, [1, 1]),
        (OF_VIDEO, {}, [1, 1]),
        (OF_VIDEO, {"ytid": ["r1nicOVtvkQ"] * 2, "start_s": [30, 90], "end_s": [40, 100]}, [1, 1]),
        ([OF_VIDEO[0]] * 2, {"youtube_id": ["r1nicOVtvkQ"] * 2, "start_time": [30, 30]}, [2]),
    ],
)
def test_a_look_finds_what_the_pipeline_finds(tmp_path, cells, columns, counts):
    write_table(tmp_path / "a.parquet", cells[:1], text=["a"], **{name: values[:1] for name, values in columns.items()})
    more = {name: values[1:] for name, values in columns.items()}
    write_table(tmp_path / "b.parquet", cells[1:], text=list("bcdef")[: len(cells) - 1], **more)
    looked, scanned = registry.read("auto", inventory.list_files(tmp_path, digests=False), 4), scan(tmp_path)
    assert list(map(len, captions(looked).values())) == counts
    assert captions(looked) == captions(scanned)
    for report in ("matched", "missing", "orphans", "collisions", "ambiguous", "rejected"):
        assert getattr(looked, report) == getattr(scanned, report)


@pytest.mark.parametrize("names", [("audio/bal_train/a.wav", "audio/eval_test/c.wav"), ("audio/train_1.wav", "audio/test_2.wav")])
def test_words_in_all_names_side_by_side_tell_the_splits(lay, names):
    result = lay(*names, **{"metadata.csv": "file_name,text\n" + "".join(f"{name},a sound\n" for name in names)})
    assert recordings(registry.read("audiofolder", result, 1), "split") == dict(zip(names, ["train", "test"], strict=True))


@pytest.mark.parametrize(
    ("cell", "texts"),
    [
        ("""['one', "it's two"]""", ["one", "it's two"]),
        ('["one", "two"]', ["one", "two"]),
        ("[]", []),
        ("['one' 'two']", ["one", "two"]),
        ("[music]", ["[music]"]),
        ("[1, 2]", []),
        ("['one', None, nan,'two', 3.5]", ["one", "two"]),
        ("[x for x in y]", ["[x for x in y]"]),
        ("[" * 5000 + "a]", ["[" * 5000 + "a]"]),
        ("[{{}}]", []),
        ("[0x" + "f" * 5000 + "]", ["[0x" + "f" * 5000 + "]"]),
    ],
)
def test_a_list_of_captions_in_a_cell_is_several(tmp_path, cell, texts):
    put(tmp_path, "a.wav")
    write(tmp_path, "metadata.csv", 'file_name,captions,label\na.wav,"' + cell.replace('"', '""') + '",dog\n')
    assert captions(scan(tmp_path)).get("a.wav", []) == texts


@pytest.mark.parametrize(
    ("columns", "cells", "outcome"),
    [
        ("label,fold", "\"['dog', 'cat']\",1.0", (["dog", "cat"], 1)),
        ("labels,fold", '"[""rain""]",2.5', (["rain"], None)),
        ("labels,fold", "\"['dog', None, nan]\",1", (["dog"], 1)),
        ("labels,fold", '"[""dog"", null, 3.0, 0.5]",1', (["dog", "3", "0.5"], 1)),
        ("labels,category", '"/m/09x0r,/t/dd00088",loud_speech', (["loud speech"], None)),
        ("labels,category", "/m/09x0r;Gush,", (["Gush"], None)),
    ],
)
def test_labels_in_a_cell_are_several_and_a_fold_may_be_written_as_a_float(tmp_path, columns, cells, outcome):
    put(tmp_path, "a.wav")
    write(tmp_path, "metadata.csv", f"file_name,{columns}\na.wav,{cells}\n")
    assert recordings(scan(tmp_path), "labels", "fold") == {"a.wav": outcome}
