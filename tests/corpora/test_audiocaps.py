"""AudioCaps: every way its files are named, every way its csv may be wrong, and the real captions."""

from __future__ import annotations

import csv
import re
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soundmill.corpora import audiocaps, inventory, registry
from soundmill.corpora.resolver import clip_of_name, looks_random
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


@pytest.mark.parametrize(
    "name",
    [
        "{v}_130.wav",
        "Y{v}_130.wav",
        "{v}.wav",
        "Y{v}.flac",
        "deep/er/{v}_130.mp4",
        "{v}_130.000.wav",
        "{v}_130.000_140.000.ogg",
        "7.wav",
    ],
)
@pytest.mark.parametrize(
    "video", ["r1nicOVtvkQ", "-P10Sl4e5QO", "EoBLlcMg_30", "YcdZ1OlvapH", "--Y8IKa2A0_", "___________", "YY123456789"]
)
def test_every_naming_of_a_file_finds_its_caption(tmp_path, name, video):
    name = name.format(v=video)
    tables = corpus(tmp_path, [name], train=f"{HEADER}7,{video},130,a dog barks\n")
    assert recordings(tables) == {name: (video, 130.0, "train")}
    assert captions(tables) == [(video, 130.0, "a dog barks")]
    assert tables.recordings[0]["group"] == video


@given(st.from_regex(r"[A-Za-z0-9_-]{11}", fullmatch=True), st.integers(0, 99_999), st.booleans())
def test_names_parse_back_whatever_the_id(video, start, prefixed):
    name = f"{'Y' if prefixed else ''}{video}_{start}"
    assert clip_of_name(name) == (video, start)


@given(st.text(max_size=40))
def test_names_of_any_kind_are_an_id_or_nothing(stem):
    result = clip_of_name(stem)
    assert result is None or re.fullmatch(r"[A-Za-z0-9_-]{11}", result[0])


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


def test_a_whole_video_starts_at_its_beginning(tmp_path):
    tables = corpus(tmp_path, ["r1nicOVtvkQ.mp4"], train=HEADER + "1,r1nicOVtvkQ,30,a\n2,r1nicOVtvkQ,60,b\n")
    assert recordings(tables) == {"r1nicOVtvkQ.mp4": ("r1nicOVtvkQ", 0.0, "train")}
    assert [row[0] for row in captions(tables)] == ["r1nicOVtvkQ"] * 2


def test_collisions_get_a_hash_and_are_reported(tmp_path):
    tables = corpus(tmp_path, ["a/r1nicOVtvkQ_30.wav", "b/Yr1nicOVtvkQ_30.mp3"], train=HEADER + "1,r1nicOVtvkQ,30,a\n")
    assert tables.collisions == [{"id": "r1nicOVtvkQ", "paths": ["a/r1nicOVtvkQ_30.wav", "b/Yr1nicOVtvkQ_30.mp3"]}]
    first, second = (row["recording_id"] for row in tables.recordings)
    assert first == "r1nicOVtvkQ"
    assert re.fullmatch(r"[0-9a-f]{12}", second)
    assert captions(tables) == [("r1nicOVtvkQ", 30.0, "a")]


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


def test_a_window_in_two_splits_goes_to_the_one_that_must_not_be_trained_on(tmp_path):
    row = "1,r1nicOVtvkQ,30,a\n"
    tables = corpus(tmp_path, ["r1nicOVtvkQ_30.wav"], train=HEADER + row, val=HEADER + row, test=HEADER + row)
    assert recordings(tables)["r1nicOVtvkQ_30.wav"][2] == "test"
    assert tables.counts["recordings_in_two_splits"] == 1


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


def test_a_csv_of_two_encodings_loses_no_row_and_is_reported(tmp_path):
    rows = (HEADER + "1,r1nicOVtvkQ,30,a café\r\n").encode() + "2,AAAAAAAAAAA,0,“naïve”\r\n".encode("cp1252")
    (tmp_path / "train.csv").write_bytes(b"\xef\xbb\xbf" + rows)
    (tmp_path / "r1nicOVtvkQ.wav").write_bytes(b"RIFF")
    tables = registry.read("auto", inventory.list_files(tmp_path), 8)
    assert [row[2] for row in captions(tables)] == ["a café", "“naïve”"]
    assert "train.csv: 1 lines that are not UTF-8, read as Windows-1252 (first: line 3)" in tables.remarks


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
