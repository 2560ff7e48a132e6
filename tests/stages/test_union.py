"""A union of a folder, of recordings inside a Parquet table and of AudioCaps' csv files, through the real stages to the catalog."""

from pathlib import Path

from soundmill import manifest, shards
from stages import scan, splits
from tests.corpora.tiny import cell, put, write, write_table
from tests.prepared import PLAN
from tests.stages.handling import BOUNDS, CATALOG, SPLITS, call, call_catalog, cut_clips, settle, table


def test_a_union_from_scan_to_catalog(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "esc", *(f"001 - Dog bark/{fold}-{fold}00-A.wav" for fold in (1, 2, 3)), seconds=2.0)
    write_table(tmp_path / "hf/data/train-00000-of-00001.parquet", [cell(0), cell(1)], rows_per_group=1, text=["A", "B"])
    write_table(tmp_path / "hf/data/test-00000-of-00001.parquet", [cell(2), None], text=["F", "nothing"])
    put(tmp_path / "caps", "r1nicOVtvkQ_30.wav", "aBcDeFgHiJk_0.wav", seconds=6.0)
    header = "audiocap_id,youtube_id,start_time,caption\n"
    write(tmp_path, "caps/train.csv", f"{header}1,r1nicOVtvkQ,30,A high tone\n9,gOnEcDeFgHi,0,Lost\n")
    write(tmp_path, "caps/test.csv", f"{header}2,aBcDeFgHiJk,0,A low tone\n")
    parts = {
        "esc": {"format": "auto", "path": "esc", "weight": 2.0},
        "hf": {"format": "auto", "path": str(tmp_path / "hf"), "weight": 0.5},
        "caps": {"format": "audiocaps", "path": "caps", "weight": 1.0},
    }
    corpus = {"format": "union", "path": None, "parts": parts, "embedded": [], "external": ["union"], "shards": 3, **BOUNDS}
    settle(tmp_path, corpus=corpus, clips={"default": PLAN | {"tail": "pad"}}, splits=SPLITS, catalog=CATALOG)

    scanned = call(scan, "--corpus", "data/corpus", section="corpus")
    assert {name: (about["format"], about["weight"], about["recordings"]) for name, about in scanned["parts"].items()} == {
        "caps": ("audiocaps", 1.0, 2),
        "esc": ("esc", 2.0, 3),
        "hf": ("audiofolder", 0.5, 3),
    }
    assert (scanned["recordings"], scanned["missing"]) == (8, 1)
    assert [row["path"] for row in table("data/quarantine/scan.parquet")] == ["hf/data/test-00000-of-00001.parquet#1"]

    cut_clips()
    verdicts = [{name: row[name] for name in ("clip_id", "start", "quality")} for row in table("data/clips")]
    shards.write_rows(verdicts, Path("data/quality.parquet"), manifest.VERDICTS)
    shards.write_rows([], Path("data/duplicates.parquet"), manifest.DUPLICATES)
    ports = ("--corpus", "data/corpus", "--clips", "data/clips", "--quality", "data/quality.parquet")
    dealt = call(splits, *ports, "--duplicates", "data/duplicates.parquet", "--splits", "data/splits.parquet")
    call_catalog()
    assert dealt["splits_by"] == "given"
    found = {
        row["source"]: (row["weight"], row["split"] == "test", row["labels"] + row["captions"])
        for row in table("data/catalog.parquet")
        if row["start"] == 0
    }
    dog = ["dog bark", "the sound of dog bark"]
    assert found == {
        "caps/aBcDeFgHiJk_0.wav": (1.0, True, ["A low tone"]),
        "caps/r1nicOVtvkQ_30.wav": (1.0, False, ["A high tone"]),
        "esc/001 - Dog bark/1-100-A.wav": (2.0, False, dog),
        "esc/001 - Dog bark/2-200-A.wav": (2.0, False, dog),
        "esc/001 - Dog bark/3-300-A.wav": (2.0, True, dog),
        "hf/data/test-00000-of-00001.parquet#0": (0.5, True, ["F"]),
        "hf/data/train-00000-of-00001.parquet#0": (0.5, False, ["A"]),
        "hf/data/train-00000-of-00001.parquet#1": (0.5, False, ["B"]),
    }
    assert not list(Path("data").rglob("embedded-*"))
