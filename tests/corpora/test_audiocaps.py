"""AudioCaps: every way its files are named, every way its csv may be wrong, and the real captions."""

import csv
import re
import shutil

import pytest

from soundmill.corpora import audiocaps, inventory
from soundmill.corpora.resolver import looks_random
from soundmill.errors import UserError

HEADER = "audiocap_id,youtube_id,start_time,caption\n"


def corpus(root, files=(), **tables):
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" + name.encode())
    for name, text in tables.items():
        (root / f"{name}.csv").write_bytes(text.encode())
    return audiocaps.read(inventory.list_files(root), 8)


def recordings(tables):
    return {row["path"]: (row["recording_id"], row["start_time"], row["split"]) for row in tables.recordings}


def captions(tables):
    return [(row["recording_id"], row["start_time"], row["caption"]) for row in tables.captions]


def test_windows_of_one_recording_and_of_two_stretches_of_a_video(tmp_path):
    rows = "1,r1nicOVtvkQ,30,a\n2,r1nicOVtvkQ,35,b\n3,r1nicOVtvkQ,120,c\n4,r1nicOVtvkQ,10,d\n5,AAAAAAAAAAA,0,e\n"
    tables = corpus(tmp_path, ["r1nicOVtvkQ_30.wav", "r1nicOVtvkQ_120.wav"], test=HEADER + rows)
    assert [row[0] for row in recordings(tables).values()] == ["r1nicOVtvkQ_120", "r1nicOVtvkQ_30"]
    assert captions(tables) == [
        ("r1nicOVtvkQ_30", 30.0, "a"),
        ("r1nicOVtvkQ_30", 35.0, "b"),
        ("r1nicOVtvkQ_120", 120.0, "c"),
        ("r1nicOVtvkQ_10", 10.0, "d"),
        ("AAAAAAAAAAA_0", 0.0, "e"),
    ]
    assert tables.counts["captions_with_audio"] == 3
    assert tables.counts["captions_without_audio"] == 2


def test_audio_in_no_csv_has_no_captions(tmp_path):
    tables = corpus(tmp_path, ["noise.wav", "r1nicOVtvkQ_30.wav"], train=HEADER + "1,AAAAAAAAAAA,30,a\n")
    assert [row["split"] for row in tables.recordings] == [None, None]
    assert tables.counts["without_id"] == 1
    assert captions(tables) == [("AAAAAAAAAAA_30", 30.0, "a")]


def test_bad_rows_are_quarantined_with_their_line(tmp_path):
    rows = "1,../x,0,a\n2,r1nicOVtvkQ,soon,b\n3,r1nicOVtvkQ,-1,c\n4,r1nicOVtvkQ,nan,d\n5,r1nicOVtvkQ,30, \n6,r1nicOVtvkQ,30,ok\n"
    tables = corpus(tmp_path, ["x.wav", "r1nicOVtvkQ_30.wav"], train=HEADER + rows)
    assert [(row["path"], row["reason"], row["detail"].split(":")[0]) for row in tables.rejected] == [
        ("train.csv", "bad id", "line 2"),
        ("train.csv", "bad start time", "line 3"),
        ("train.csv", "bad start time", "line 4"),
        ("train.csv", "bad start time", "line 5"),
        ("train.csv", "empty caption", "line 6"),
    ]
    assert captions(tables) == [("r1nicOVtvkQ", 30.0, "ok")]


def test_labels_beside_captions(tmp_path):
    labels = "youtube_id,start_time,labels\nr1nicOVtvkQ,30,dog; rain;\n"
    tables = corpus(tmp_path, ["r1nicOVtvkQ_30.wav"], val=HEADER + "1,r1nicOVtvkQ,30,a\n", labels=labels)
    assert [row["labels"] for row in tables.captions] == [["dog", "rain"]]


@pytest.mark.parametrize(
    "header", ["youtube_id,start_time,caption", "\ufeffaudiocap_id,youtube_id,start_time,caption", "ytid,start_seconds,Caption"]
)
def test_headers_of_all_versions(tmp_path, header):
    cells = "1," * header.count("audiocap_id") + "r1nicOVtvkQ,30,a"
    tables = corpus(tmp_path, ["r1nicOVtvkQ_30.wav"], train=f"{header}\r\n{cells}\r\n")
    assert captions(tables) == [("r1nicOVtvkQ", 30.0, "a")]


def test_a_csv_that_lacks_a_column_is_an_error_that_names_file_and_column(tmp_path):
    with pytest.raises(UserError, match=r"train\.csv.*youtube_id, start_time, caption; start_time missing"):
        corpus(tmp_path, ["a.wav"], train="audiocap_id,youtube_id,caption\n")


def test_no_csv_at_all_and_strange_ones(tmp_path):
    with pytest.raises(
        UserError, match=r"no csv with the columns youtube_id, start_time, caption .*credits\.csv \(artist, title\)"
    ):
        corpus(tmp_path, ["a.wav"], credits="artist,title\n")
    tables = corpus(tmp_path, train=HEADER)
    assert tables.counts["other_csv"] == 1


@pytest.mark.parametrize(
    ("name", "split"),
    [
        (b"train.csv", "train"),
        (b"x/val.csv", "valid"),
        (b"audiocaps_valid.csv", "valid"),
        (b"TEST.csv", "test"),
        (b"train_test.csv", None),
        (b"contest.csv", None),
    ],
)
def test_split_of_a_file(name, split):
    assert audiocaps.split_of_file(name) == split


def test_real_captions(shared, tmp_path):
    """All 57,188 rows are read, and recordings under each naming find theirs."""
    source = shared / "data" / "audiocaps"
    for name in ("train.csv", "val.csv", "test.csv"):
        shutil.copy(source / name, tmp_path / name)
    with (source / "test.csv").open(encoding="utf-8") as file:
        test = list(csv.DictReader(file))
    with (source / "train.csv").open(encoding="utf-8") as file:
        train = list(csv.DictReader(file))
    windows = {(row["youtube_id"], row["start_time"]) for row in test[:40]}
    windows |= {(row["youtube_id"], row["start_time"]) for row in train if row["youtube_id"].startswith("Y")}
    windows |= {(row["youtube_id"], row["start_time"]) for row in train if re.search(r"_\d*$", row["youtube_id"])}
    forms = ["{0}_{1}.wav", "Y{0}_{1}.wav", "{0}.flac", "sub/Y{0}.m4a"]
    (tmp_path / "sub").mkdir()
    for number, window in enumerate(sorted(windows)):
        (tmp_path / forms[number % 4].format(*window)).write_bytes(b"RIFF")

    tables = audiocaps.read(inventory.list_files(tmp_path), 16)
    assert not tables.rejected
    assert not tables.collisions
    assert len(tables.captions) == 49_838 + 2_475 + 4_875
    assert {(row["recording_id"], f"{row['start_time']:g}") for row in tables.recordings} == windows
    ids = {row["recording_id"] for row in tables.recordings}
    assert {row["recording_id"] for row in tables.captions} >= ids
    first = test[0]["youtube_id"]
    assert sum(row["recording_id"] == first for row in tables.captions) == 5
    assert sum(looks_random(row["youtube_id"]) for row in train) > 0.98 * len(train)


def test_a_list_of_failed_downloads_beside_captions_is_let_be_and_numbers_may_be_floats(tmp_path):
    text = HEADER + "91139.0,r1nicOVtvkQ,30,a dog\n"
    tables = corpus(tmp_path, ["audio/91139.wav"], train=text, failed="youtube_id,start_time,error\nEoBLlcMg_30,10,gone\n")
    assert [row[2] for row in captions(tables)] == ["a dog"]
    assert (tables.counts["other_csv"], tables.missing, len(tables.recordings)) == (1, [], 1)
    assert tables.recordings[0]["recording_id"] == "r1nicOVtvkQ"
