"""Folder and ESC corpora, the table builder they share, and the guess at a directory's format."""

import re

import pytest

from soundmill.corpora import inventory, registry
from soundmill.corpora.folder import class_label
from soundmill.corpora.resolver import looks_random
from tests.corpora.tiny import put, scan


def make(root, *names: str, **texts: str):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"sound of " + name.encode())
    for name, text in texts.items():
        (root / name.replace("__", "/").replace("_csv", ".csv").replace("_txt", ".txt")).write_text(text, encoding="utf-8")
    return inventory.list_files(root)


def rows(tables, *keys):
    return {row["path"]: tuple(row[key] for key in keys) if len(keys) > 1 else row[keys[0]] for row in tables.recordings}


def test_class_folders_become_labels(tmp_path):
    tables = registry.read("folder", make(tmp_path, "001 - Dog bark/a.wav", "rain_drops/deep/b.ogg", "c.wav"), 4)
    assert rows(tables, "labels") == {"001 - Dog bark/a.wav": ["dog bark"], "rain_drops/deep/b.ogg": ["rain drops"], "c.wav": []}
    ids = [row["recording_id"] for row in tables.recordings]
    assert all(re.fullmatch(r"[0-9a-f]{12}", recording_id) for recording_id in ids)
    assert len(set(ids)) == 3
    assert all(0 <= row["shard"] < 4 and row["split"] is None and row["fold"] is None for row in tables.recordings)


@pytest.mark.parametrize(
    ("folder", "label"),
    [
        ("001 - Dog bark", "dog bark"),
        ("dog_bark", "dog bark"),
        ("12.Rain", "rain"),
        ("Café", "café"),
        ("007", "007"),
        ("808 kick", "kick"),
        ("_", "_"),
    ],
)
def test_labels_are_cleaned_names_and_never_empty(folder, label):
    assert class_label(folder.encode()) == label


def test_a_plain_directory_has_no_labels_even_inside_one_folder_called_audio(tmp_path):
    tables = registry.read("folder", make(tmp_path, "audio/a.wav", "audio/b.wav"), 1)
    assert rows(tables, "labels") == {"audio/a.wav": [], "audio/b.wav": []}


SPLIT_TREE = ("train/dog/a.wav", "train/cat/b.wav", "test/dog/c.wav")
SPLIT_ROWS = {"train/dog/a.wav": ("train", ["dog"]), "train/cat/b.wav": ("train", ["cat"]), "test/dog/c.wav": ("test", ["dog"])}


@pytest.mark.parametrize("above", ["", "data/", "audio/", "clips/", "mycorpus/", "mycorpus/audio/"])
@pytest.mark.parametrize("beside", ["", "stray.wav", "unlabeled/x/u.wav", "data/u.wav", "train.wav"])
def test_split_folders_wherever_they_lie(tmp_path, above, beside):
    result = make(tmp_path, *(above + name for name in SPLIT_TREE), *filter(None, [beside]))
    tables = registry.read("folder", result, 1)
    expected = {above + name: outcome for name, outcome in SPLIT_ROWS.items()}
    assert rows(tables, "split", "labels") == expected | ({beside: (None, [])} if beside else {})
    assert [remark.partition(" are")[0] for remark in tables.remarks] == ([f"1 recordings (first: {beside})"] if beside else [])


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("train/a.wav", "dog/b.wav", "cat/c.wav"), ["cat", "dog", "train"]),
        (("dog/train/a.wav", "dog/test/b.wav", "cat/train/c.wav"), ["cat", "dog", "dog"]),
        (("dev/a.wav", "test/b.wav", "cat/c.wav", "dog/d.wav"), ["cat", "dev", "dog", "test"]),
    ],
)
def test_folders_named_after_splits_among_classes_are_classes_and_reported(tmp_path, names, labels):
    tables = registry.read("folder", make(tmp_path, *names), 1)
    assert sorted(label for row in tables.recordings for label in row["labels"]) == labels
    assert {row["split"] for row in tables.recordings} == {None}
    (remark,) = tables.remarks
    assert "in folders named after splits that are not read as splits" in remark


@pytest.mark.parametrize(
    ("names", "labels", "remark"),
    [
        (["animals-master/dog/1.wav", "animals-master/cat/1.wav"], {"dog", "cat"}, "animals-master,"),
        (["Speech/v0.02/yes/1.wav", "Speech/v0.02/no/1.wav", "Speech/v0.02/no/deep/2.wav"], {"yes", "no"}, "Speech/v0.02,"),
        (["x-main/train/dog/1.wav", "x-main/test/dog/1.wav"], {"dog"}, None),
        (["x/train/set/dog/1.wav", "x/test/set/cat/1.wav"], {"dog", "cat"}, " set,"),
        (["dog/1.wav", "dog/2.wav"], {"dog"}, None),
        (["dog/near/1.wav", "dog/far/1.wav", "dog/2.wav"], {"dog"}, None),
        (["dog/near/1.wav", "dog/near/2.wav"], {"dog"}, None),
        (["audio/dog/1.wav", "audio/cat/1.wav"], {"dog", "cat"}, None),
        (["x/dog/1.wav", "x/cat/1.wav", "y/1.wav"], {"x", "y"}, None),
    ],
)
def test_the_folder_that_a_corpus_was_packed_into_is_no_class(tmp_path, names, labels, remark):
    put(tmp_path, *names)
    tables = scan(tmp_path)
    assert tables.format == "folder"
    assert {label for row in tables.recordings for label in row["labels"]} == labels
    assert [remark in text for text in tables.remarks] == ([True] if remark else [])


def test_containers_below_splits_are_no_classes(tmp_path):
    tables = registry.read("folder", make(tmp_path, "train/audio/dog/a.wav", "test/audio/dog/b.wav"), 1)
    assert rows(tables, "split", "labels") == {
        "train/audio/dog/a.wav": ("train", ["dog"]),
        "test/audio/dog/b.wav": ("test", ["dog"]),
    }


def test_texts_without_recording_are_missing(tmp_path):
    result = make(
        tmp_path, "d/a.wav", d__a_txt="A dog", d__b_txt="A cat", d__README_txt="Free", d__list_txt="a\nb\n", notes_txt="x"
    )
    tables = registry.read("folder", result, 1)
    assert [(row["id"], row["captions"], row["origins"]) for row in tables.missing] == [("d/b", ["A cat"], ["d/b.txt:1"])]
    assert len(tables.matched) == 1
    (remark,) = tables.remarks  # of a list, and of a text in a folder without captions
    assert remark.startswith("2 tables, lists or texts not read, since they are not part of the format folder (first: d/list.txt)")


def test_texts_with_the_extension_of_their_recording(tmp_path):
    (tmp_path / "b.wav.txt").write_text("A cat")
    (tmp_path / "a.wav.txt").write_text("A dog")
    (tmp_path / "c.wav.txt").write_text("A cow")
    tables = registry.read("folder", make(tmp_path, "a.wav", "b.wav"), 1)
    assert [row["caption"] for row in tables.captions] == ["A dog", "A cat", "A cow"]
    assert ([row["id"] for row in tables.missing], tables.remarks) == (["c.wav"], [])


def test_sidecar_texts_are_captions(tmp_path):
    (tmp_path / "d").mkdir()
    result = make(tmp_path, "d/a.wav", "d/a.mp3", "b.wav", "c.wav", d__a_txt="\ufeffA dog\n barks. ", b_txt=" \n", other_txt="x")
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe\x00")
    result = inventory.list_files(tmp_path)
    tables = registry.read("folder", result, 1)
    ids = {row["path"]: row["recording_id"] for row in tables.recordings}
    assert {(row["recording_id"], row["caption"], row["start_time"], row["origin"]) for row in tables.captions} == {
        (ids["d/a.wav"], "A dog barks.", None, "d/a.txt"),
        (ids["d/a.mp3"], "A dog barks.", None, "d/a.txt"),
        ("missing:other", "x", None, "other.txt:1"),
    }
    assert {row["path"]: row["reason"] for row in tables.rejected} == {"b.txt": "empty caption", "c.txt": "unreadable caption"}


def test_youtube_names_in_a_plain_folder_keep_their_ids(tmp_path):
    tables = registry.read(
        "folder", make(tmp_path, "r1nicOVtvkQ_130.wav", "r1nicOVtvkQ_10.wav", "drum_kick_a_12.wav", "Drum_kicker_2.wav"), 1
    )
    result = rows(tables, "recording_id", "start_time", "group")
    assert result["r1nicOVtvkQ_130.wav"] == ("r1nicOVtvkQ_130", 130.0, "r1nicOVtvkQ")
    assert result["r1nicOVtvkQ_10.wav"] == ("r1nicOVtvkQ_10", 10.0, "r1nicOVtvkQ")
    assert result["drum_kick_a_12.wav"][1:] == result["Drum_kicker_2.wav"][1:] == (0.0, None)
    assert not looks_random("kick_drum_a")
    assert registry.read("folder", inventory.list_files(tmp_path), 1).remarks == []


def test_words_that_are_taken_for_a_youtube_id_are_reported(tmp_path):
    tables = registry.read("folder", make(tmp_path, "RainAtNight_1.wav", "RainAtNight_2.wav", "r1nicOVtvkQ_10.wav"), 1)
    (remark,) = tables.remarks
    assert remark.startswith("2 recordings (first: RainAtNight_1.wav) are named like a clip of a YouTube video")


def test_esc10_folders(tmp_path):
    tables = registry.read(
        "esc", make(tmp_path, "001 - Dog bark/1-100032-A.ogg", "001 - Dog bark/3-9-B.ogg", "010 - Fire crackling/odd.ogg"), 1
    )
    assert rows(tables, "labels", "fold", "group") == {
        "001 - Dog bark/1-100032-A.ogg": (["dog bark"], 1, "100032"),
        "001 - Dog bark/3-9-B.ogg": (["dog bark"], 3, "9"),
        "010 - Fire crackling/odd.ogg": (["fire crackling"], None, None),
    }


def test_esc10_in_a_folder_of_its_own(tmp_path):
    tables = registry.read(
        "auto", make(tmp_path, "ESC-10-master/001 - Dog bark/1-1-A.ogg", "ESC-10-master/002 - Rain/1-2-A.ogg"), 1
    )
    assert (tables.format, [row["labels"] for row in tables.recordings]) == ("esc", [["dog bark"], ["rain"]])


def test_esc50_table(tmp_path):
    (tmp_path / "meta").mkdir()
    meta = (
        "filename,fold,target,category,esc10,src_file,take\n1-100032-A-0.wav,1,0,dog,True,100032,A\n"
        "5-9-A-14.wav,5,14,chirping_birds,False,9,A\n4-1-A-1.wav,4,1,rooster,True,1,A\n../x.wav,1,0,dog,,,\n1-2-A-0.wav,one,0,dog,,,\n"
    )
    result = make(tmp_path, "audio/1-100032-A-0.wav", "audio/5-9-A-14.wav", "audio/2-2-A-2.wav", meta__esc50_csv=meta)
    tables = registry.read("esc", result, 1)
    assert rows(tables, "labels", "fold") == {
        "audio/1-100032-A-0.wav": (["dog"], 1),
        "audio/2-2-A-2.wav": ([], 2),
        "audio/5-9-A-14.wav": (["chirping birds"], 5),
    }
    assert [row["path"] for row in tables.orphans] == ["audio/2-2-A-2.wav"]
    assert [(row["id"], row["origins"]) for row in tables.missing] == [("4-1-A-1.wav", ["meta/esc50.csv:4"])]
    assert [row["reason"] for row in tables.rejected] == ["bad file name", "bad fold"]


ESC50 = "filename,fold,target,category,esc10,src_file,take\n"


def test_esc50_without_its_audio_is_all_missing(tmp_path):
    result = make(tmp_path, esc50_csv=ESC50 + "1-1-A-0.wav,1,0,dog,True,1,A\n2-2-A-1.wav,2,1,rooster,True,2,A\n")
    tables = registry.read("auto", result, 1, needs_audio=False)
    assert (tables.format, tables.recordings, [row["id"] for row in tables.missing]) == ("esc", [], ["1-1-A-0.wav", "2-2-A-1.wav"])


def test_esc50_twice_is_a_collision_and_one_folder_is_described(tmp_path):
    """`2-…` sorts after `16000`, `1-…` before it: the first in the order of paths would be one of either folder."""
    names = ("1-1-A-0.wav", "2-2-A-1.wav", "dog.wav")
    meta = ESC50 + "1-1-A-0.wav,1,0,dog,,1,A\n2-2-A-1.wav,2,1,rooster,,2,A\ndog.wav,2,0,dog,,3,A\n"
    result = make(tmp_path, *(f"audio/{folder}{name}" for folder in ("", "16000/") for name in names), esc50_csv=meta)
    tables = registry.read("esc", result, 1)
    assert rows(tables, "labels", "fold", "group") == {
        "audio/1-1-A-0.wav": (["dog"], 1, "1"),
        "audio/16000/1-1-A-0.wav": ([], 1, "1"),
        "audio/2-2-A-1.wav": (["rooster"], 2, "2"),
        "audio/16000/2-2-A-1.wav": ([], 2, "2"),
        "audio/dog.wav": (["dog"], 2, "dog.wav"),
        "audio/16000/dog.wav": ([], 2, "dog.wav"),
    }
    assert tables.collisions == [{"id": name, "paths": [f"audio/{name}", f"audio/16000/{name}"]} for name in names]
    assert (tables.missing, tables.orphans, tables.ambiguous, len(tables.matched)) == ([], [], [], 3)


def test_esc50_rows_of_one_file_are_reported(tmp_path):
    meta = ESC50 + "1-1-A-0.wav,1,0,dog,,1,A\n1-1-A-0.wav,2,1,rooster,,1,A\n"
    tables = registry.read("esc", make(tmp_path, "audio/1-1-A-0.wav", esc50_csv=meta), 1)
    assert tables.collisions == [{"id": "1-1-A-0.wav", "origins": ["esc50.csv:2", "esc50.csv:3"]}]
    assert rows(tables, "labels", "fold") == {"audio/1-1-A-0.wav": (["dog", "rooster"], 1)}


def test_real_esc10(shared):
    tables = registry.read("esc", inventory.list_files(shared / "data" / "esc10", digests=False), 16)
    assert len(tables.recordings) == 240
    assert sorted(row["fold"] for row in tables.recordings) == [1] * 80 + [2] * 80 + [3] * 80
    assert len({row["labels"][0] for row in tables.recordings}) == 10
    assert all(row["group"] for row in tables.recordings)
