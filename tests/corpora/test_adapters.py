"""Folder and ESC corpora, the table builder they share, and the guess at a directory's format."""

from __future__ import annotations

import re

import pytest

from soundmill.corpora import inventory, registry
from soundmill.corpora.folder import class_label
from soundmill.corpora.resolver import looks_random
from soundmill.errors import UserError


def make(root, *names: str, **texts: str):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"sound of " + name.encode())
    for name, text in texts.items():
        (root / name.replace("__", "/").replace("_csv", ".csv").replace("_txt", ".txt")).write_text(text, encoding="utf-8")
    return inventory.take(root)


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


def test_one_class_is_a_class(tmp_path):
    assert rows(registry.read("folder", make(tmp_path, "dogs/a.wav"), 1), "labels") == {"dogs/a.wav": ["dogs"]}


def test_split_folders_above_class_folders(tmp_path):
    tables = registry.read("folder", make(tmp_path, "train/dog/a.wav", "Val/dog/b.wav", "test/c.wav"), 1)
    assert rows(tables, "split", "labels") == {
        "Val/dog/b.wav": ("valid", ["dog"]),
        "test/c.wav": ("test", []),
        "train/dog/a.wav": ("train", ["dog"]),
    }


def test_sidecar_texts_are_captions(tmp_path):
    (tmp_path / "d").mkdir()
    found = make(tmp_path, "d/a.wav", "d/a.mp3", "b.wav", "c.wav", d__a_txt="\ufeffA dog\n barks. ", b_txt=" \n", other_txt="x")
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe\x00")
    found = inventory.take(tmp_path)
    tables = registry.read("folder", found, 1)
    ids = {row["path"]: row["recording_id"] for row in tables.recordings}
    assert {(row["recording_id"], row["caption"], row["start_time"], row["origin"]) for row in tables.captions} == {
        (ids["d/a.wav"], "A dog barks.", None, "d/a.txt"),
        (ids["d/a.mp3"], "A dog barks.", None, "d/a.txt"),
    }
    assert {row["path"]: row["reason"] for row in tables.rejected} == {"b.txt": "empty caption", "c.txt": "unreadable caption"}


def test_youtube_names_in_a_plain_folder_keep_their_ids(tmp_path):
    tables = registry.read(
        "folder", make(tmp_path, "r1nicOVtvkQ_130.wav", "r1nicOVtvkQ_10.wav", "drum_kick_a_12.wav", "Drum_kicker_2.wav"), 1
    )
    found = rows(tables, "recording_id", "start_time", "group")
    assert found["r1nicOVtvkQ_130.wav"] == ("r1nicOVtvkQ_130", 130.0, "r1nicOVtvkQ")
    assert found["r1nicOVtvkQ_10.wav"] == ("r1nicOVtvkQ_10", 10.0, "r1nicOVtvkQ")
    assert found["drum_kick_a_12.wav"][1:] == found["Drum_kicker_2.wav"][1:] == (0.0, None)
    assert not looks_random("kick_drum_a")


def test_esc10_folders(tmp_path):
    tables = registry.read(
        "esc", make(tmp_path, "001 - Dog bark/1-100032-A.ogg", "001 - Dog bark/3-9-B.ogg", "010 - Fire crackling/odd.ogg"), 1
    )
    assert rows(tables, "labels", "fold", "group") == {
        "001 - Dog bark/1-100032-A.ogg": (["dog bark"], 1, "100032"),
        "001 - Dog bark/3-9-B.ogg": (["dog bark"], 3, "9"),
        "010 - Fire crackling/odd.ogg": (["fire crackling"], None, None),
    }


def test_esc50_table(tmp_path):
    (tmp_path / "meta").mkdir()
    meta = (
        "filename,fold,target,category,esc10,src_file,take\n1-100032-A-0.wav,1,0,dog,True,100032,A\n"
        "5-9-A-14.wav,5,14,chirping_birds,False,9,A\n4-1-A-1.wav,4,1,rooster,True,1,A\n../x.wav,1,0,dog,,,\n1-2-A-0.wav,one,0,dog,,,\n"
    )
    found = make(tmp_path, "audio/1-100032-A-0.wav", "audio/5-9-A-14.wav", "audio/2-2-A-2.wav", meta__esc50_csv=meta)
    tables = registry.read("esc", found, 1)
    assert rows(tables, "labels", "fold") == {
        "audio/1-100032-A-0.wav": (["dog"], 1),
        "audio/2-2-A-2.wav": ([], 2),
        "audio/5-9-A-14.wav": (["chirping birds"], 5),
    }
    assert tables.counts == {"without_row": 1, "rows_without_audio": 1}
    assert [row["reason"] for row in tables.rejected] == ["bad file name", "bad fold"]


def test_esc_of_something_else_is_an_error_that_says_what_esc_is(tmp_path):
    with pytest.raises(UserError, match=r"corpus\.path.*filename, fold, category.*001 - Dog bark"):
        registry.read("esc", make(tmp_path, "dog/a.wav"), 1)


def test_unknown_format_names_the_choices(tmp_path):
    with pytest.raises(UserError, match=r"corpus\.format: 'wavecaps'.*did you mean 'wavcaps'.*auto,.*audiocaps.*folder"):
        registry.read("wavecaps", make(tmp_path, "a.wav"), 1)


def detect(directory):
    return registry.detect(inventory.take(directory, digests=False))


def test_detection(tmp_path, shared):
    esc10 = shared / "data" / "esc10"
    assert detect(esc10) == "esc"
    assert detect(shared / "data" / "cc0_samples") == "folder"
    make(tmp_path / "esc50", "audio/1-2-A-0.wav")
    (tmp_path / "esc50" / "esc50.csv").write_text("filename,fold,target,category\n")
    assert detect(tmp_path / "esc50") == "esc"
    make(tmp_path / "ac", "x/a.wav")
    (tmp_path / "ac" / "captions.csv").write_text("audiocap_id,youtube_id,start_time,caption\n")
    assert detect(tmp_path / "ac") == "audiocaps"


def test_real_esc10(shared):
    tables = registry.read("esc", inventory.take(shared / "data" / "esc10", digests=False), 16)
    assert len(tables.recordings) == 240
    assert sorted(row["fold"] for row in tables.recordings) == [1] * 80 + [2] * 80 + [3] * 80
    assert len({row["labels"][0] for row in tables.recordings}) == 10
    assert all(row["group"] for row in tables.recordings)
