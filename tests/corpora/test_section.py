"""Several corpora as one: paths, ids, groups, splits and weights of the parts, and everything reported once."""

import pytest

from soundmill.corpora import inventory, registry
from soundmill.corpora.registry import UnionPart, unite
from tests.corpora.tiny import captions, cell, put, recordings, write, write_table

HEADER = "audiocap_id,youtube_id,start_time,caption\n"


def part(root, name: str, weight: float = 1.0, format: str = "auto") -> UnionPart:
    result = inventory.list_files(root)
    return UnionPart(name, weight, result, registry.read(format, result, 8))


def test_every_part_keeps_what_it_knows_in_any_order(tmp_path):
    """A video in two parts is one group under two ids, and captions describe recordings of their own part alone."""
    put(tmp_path / "esc", "001 - Dog bark/1-100-A.wav", "001 - Dog bark/2-200-A.wav", "002 - Rain/3-300-A.wav")
    put(tmp_path / "caps", "audio/r1nicOVtvkQ_30.wav", "audio/aBcDeFgHiJk_0.wav")
    write(tmp_path, "caps/train.csv", HEADER + "1,r1nicOVtvkQ,30,A woman talks\n2,zZcDeFgHiJk,0,Lost\n")
    write(tmp_path, "caps/test.csv", HEADER + "3,aBcDeFgHiJk,0,Rain falls\n")
    put(tmp_path / "mine", "a/r1nicOVtvkQ_30.wav", "a/r1nicOVtvkQ_90.wav", "b/zZcDeFgHiJk_0.wav")
    write(tmp_path, "mine/b/notes.pdf", b"%PDF")
    (tmp_path / "mine" / "b" / "empty.wav").touch()
    parts = [part(tmp_path / "esc", "esc", 2.0), part(tmp_path / "caps", "caps", 0.5), part(tmp_path / "mine", "mine")]
    result, tables = unite(parts)
    assert unite(reversed(parts))[1] == tables
    assert recordings(tables, "split", "fold", "weight", "corpus") == {
        "caps/audio/aBcDeFgHiJk_0.wav": ("test", None, 0.5, "caps"),
        "caps/audio/r1nicOVtvkQ_30.wav": ("train", None, 0.5, "caps"),
        "esc/001 - Dog bark/1-100-A.wav": ("train", 1, 2.0, "esc"),
        "esc/001 - Dog bark/2-200-A.wav": ("train", 2, 2.0, "esc"),
        "esc/002 - Rain/3-300-A.wav": ("test", 3, 2.0, "esc"),
        "mine/a/r1nicOVtvkQ_30.wav": (None, None, 1.0, "mine"),
        "mine/a/r1nicOVtvkQ_90.wav": (None, None, 1.0, "mine"),
        "mine/b/zZcDeFgHiJk_0.wav": (None, None, 1.0, "mine"),
    }
    assert [row["path"] for row in result.rejected] == ["mine/b/empty.wav"]
    assert result.ignored == {".csv": 2, ".pdf": 1}
    assert result.num_files == sum(part.inventory.num_files for part in parts) == 12
    assert tables.format == "union"
    rows = {row["path"]: row for row in tables.recordings}
    first, second = rows["caps/audio/r1nicOVtvkQ_30.wav"], rows["mine/a/r1nicOVtvkQ_30.wav"]
    assert first["group"] == second["group"] == "r1nicOVtvkQ"
    assert (first["recording_id"], second["recording_id"]) == ("r1nicOVtvkQ", "r1nicOVtvkQ_30")
    assert captions(tables) == {
        "caps/audio/r1nicOVtvkQ_30.wav": ["A woman talks"],
        "caps/audio/aBcDeFgHiJk_0.wav": ["Rain falls"],
        None: ["Lost"],  # its video lies in another part, cut by somebody else
    }
    assert [entry["origins"] for entry in tables.missing] == [["caps/train.csv:3"]]
    assert {entry["path"] for entry in tables.matched} >= {"caps/audio/r1nicOVtvkQ_30.wav", "esc/002 - Rain/3-300-A.wav"}


def test_ids_that_collide_are_resolved_and_reported_and_names_alone_are_no_collision(tmp_path):
    names = ("x/r1nicOVtvkQ_30.wav", "dog/1.wav")
    _, tables = unite(part(put(tmp_path / name, *names), name) for name in ("one", "two"))
    assert len({row["recording_id"] for row in tables.recordings}) == 4
    videos = [row for row in tables.recordings if row["path"].endswith("_30.wav")]
    assert [row["recording_id"] == "r1nicOVtvkQ_30" for row in videos] == [True, False]
    assert tables.collisions == [{"id": "r1nicOVtvkQ_30", "paths": ["one/x/r1nicOVtvkQ_30.wav", "two/x/r1nicOVtvkQ_30.wav"]}]
    assert {row["group"] for row in videos} == {"r1nicOVtvkQ"}


def test_folds_of_a_part_that_calls_all_of_it_train_become_splits(tmp_path):
    """As `datasets` wants ESC-50: one file of Parquet, which is called train."""
    place = tmp_path / "hf" / "data" / "train-00000-of-00001.parquet"
    write_table(place, [cell(n) for n in range(3)], fold=[1, 5, 2], text=["A", "B", "C"])
    _, tables = unite([part(tmp_path / "hf", "hf"), part(put(tmp_path / "mine", "train/x.wav", "test/y.wav"), "mine")])
    result = {row["path"]: row["split"] for row in tables.recordings}
    of_hf = [split for path, split in sorted(result.items()) if path.startswith("hf/")]
    assert (of_hf, result["mine/train/x.wav"], result["mine/test/y.wav"]) == (["train", "test", "train"], "train", "test")


@pytest.mark.parametrize(("folds", "splits"), [((1, 2, 3), ["train", "train", "test"]), ((2, 2, 2), [None] * 3)])
def test_folds_become_splits_where_they_can(tmp_path, folds, splits):
    names = [f"001 - Dog/{fold}-{number}00-A.wav" for number, fold in enumerate(folds, start=1)]
    _, tables = unite([part(put(tmp_path, *names), "esc", format="esc")])
    assert [row["split"] for row in tables.recordings] == splits
    assert [row["fold"] for row in tables.recordings] == list(folds)


def test_another_stretch_of_a_parts_video_keeps_its_id_and_is_no_collision(tmp_path):
    for name, start in (("one", 30), ("two", 50), ("zoo", 30)):
        put(tmp_path / name, f"r1nicOVtvkQ_{start}.wav")
        write(tmp_path / name, "train.csv", f"audiocap_id,youtube_id,start_time,caption\n1,r1nicOVtvkQ,{start},{name}\n")
    _, tables = unite(part(tmp_path / name, name) for name in ("one", "two", "zoo"))
    ids = {row["path"]: row["recording_id"] for row in tables.recordings}
    assert (ids["one/r1nicOVtvkQ_30.wav"], ids["two/r1nicOVtvkQ_50.wav"]) == ("r1nicOVtvkQ", "r1nicOVtvkQ_50")
    assert [entry["paths"] for entry in tables.collisions] == [["one/r1nicOVtvkQ_30.wav", "zoo/r1nicOVtvkQ_30.wav"]]
