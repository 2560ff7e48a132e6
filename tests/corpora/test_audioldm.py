"""AudioLDM's metadata: a root json, a json for every split, machine ids for labels."""

import json

import pytest

from tests.corpora.tiny import captions, detected, put, recordings, scan, write


def entry(wav, **values):
    return {"wav": wav, "seg_label": "", **values}


@pytest.fixture
def corpus(tmp_path):
    part = "dataset/audioset/zip_audios/unbalanced_train_segments/unbalanced_train_segments_part36"
    put(tmp_path, f"{part}/Yr1nicOVtvkQ.wav", "dataset/audioset/wav/40020.wav", "dataset/audioset/wav/40021.wav")
    metadata = "dataset/metadata/audiocaps"
    root = {
        "audiocaps": "./data/dataset/audioset",
        "comments": {},
        "metadata": {
            "path": {
                "audiocaps": {
                    "train": f"./data/{metadata}/datafiles/train.json",
                    "val": f"./data/{metadata}/testset/val.json",
                    "test": f"./data/{metadata}/testset/gone.json",
                    "class_label_indices": f"./data/{metadata}/class_labels_indices.csv",
                }
            }
        },
    }
    write(tmp_path, "dataset/metadata/dataset_root.json", json.dumps(root))
    train = [
        entry(part.removeprefix("dataset/audioset/") + "/Yr1nicOVtvkQ.wav", labels="/m/02jz0l,/m/09x0r", caption="Water pours"),
        entry("wav/40020.wav", labels="", caption_1="One", captions=["Two", "Three"]),
        entry("wav/gone.wav", labels="", caption="Lost"),
        "nonsense",
    ]
    write(tmp_path, f"{metadata}/datafiles/train.json", json.dumps({"data": train}))
    write(
        tmp_path,
        f"{metadata}/testset/val.json",
        json.dumps({"data": [entry("wav/40021.wav", labels="/m/unknown", caption="Four")]}),
    )
    write(
        tmp_path, f"{metadata}/class_labels_indices.csv", 'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/02jz0l,"Water, tap"\n'
    )
    return tmp_path


def test_splits_are_where_the_root_lists_them(corpus):
    assert detected(corpus) == "audioldm"
    tables = scan(corpus)
    by_name = {path.rpartition("/")[2]: values for path, values in recordings(tables, "split", "labels", "group").items()}
    assert by_name == {
        "Yr1nicOVtvkQ.wav": ("train", ["Water, tap", "Speech"], "r1nicOVtvkQ"),
        "40020.wav": ("train", [], None),
        "40021.wav": ("valid", [], None),
    }
    assert sorted(text for texts in captions(tables).values() for text in texts) == [
        "Four",
        "Lost",
        "One",
        "Three",
        "Two",
        "Water pours",
    ]
    assert captions(tables)["dataset/audioset/wav/40020.wav"] == ["One", "Two", "Three"]
    assert tables.counts["labels_without_name"] == 1
    assert any("1 labels are machine ids" in remark for remark in tables.remarks)
    assert [row["id"] for row in tables.missing] == ["wav/gone.wav"]
    assert {(row["reason"], row["detail"].partition(":")[0]) for row in tables.rejected} == {
        ("missing manifest", "test"),
        ("bad entry", "data[3]"),
    }
    assert not [remark for remark in tables.remarks if "not read" in remark]


def test_an_object_that_is_no_list_is_quarantined(corpus):
    write(corpus, "dataset/metadata/audiocaps/datafiles/train.json", '{"items": []}')
    rejected = [(row["path"].rpartition("/")[2], row["reason"], row["detail"]) for row in scan(corpus).rejected]
    assert ("train.json", "bad entry", "line 1: no `wav`") in rejected
