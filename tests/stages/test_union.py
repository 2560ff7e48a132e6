"""A union of folders, of recordings inside a Parquet table and of AudioCaps' csv files, through the real stages to the catalog."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from soundmill import manifest, params, shards, stage
from soundmill.decoding import decode
from stages import resample, scan, segment, splits
from tests.corpora.tiny import put, write, write_table
from tests.prepared import PLAN, execution
from tests.stages.handling import BOUNDS, CATALOG, call_catalog

RATE = 16_000
SECTIONS = {
    "clips": {"default": PLAN},
    "splits": {"valid_fraction": 0.2, "test_fraction": 0.2, "duplicates": "fail", "seed": 0},
    "catalog": CATALOG | {"caption_templates": ["{label}"]},
}


def union_of(**parts: dict) -> dict:
    return {"format": "union", "path": None, "parts": parts, "embedded": [], "external": ["union"], "shards": 3, **BOUNDS}


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    monkeypatch.chdir(root)
    return root


def settle(corpus: dict, workers: int = 1) -> None:
    params.write_yaml({"execution": execution(workers), "corpus": corpus, **SECTIONS}, Path("params.yaml"))


def call(module, *argv: str, section: str | None = None) -> dict:
    name = module.__name__.rpartition(".")[2]
    kept = ["--metrics", f"data/metrics/{name}.json", "--quarantine", f"data/quarantine/{name}.parquet"]
    stage.main(module.run, section or name, [*argv, *kept])
    return json.loads(Path(f"data/metrics/{name}.json").read_text(encoding="utf-8"))


def table(path: str) -> list[dict]:
    return pq.read_table(path).to_pylist()


@pytest.mark.slow
def test_a_union_from_scan_to_catalog(project, shared):
    esc10, home = shared / "data" / "esc10", project.parent
    folders = [next(esc10.glob(f"**/{name}")) for name in ("001 - Dog bark", "010 - Fire crackling")]
    chosen = {}
    for folder in folders:
        for fold in (1, 2, 3):
            chosen[folder.name, fold] = sorted(folder.glob(f"{fold}-*.ogg"))[:2]
    for (folder, _), (first, _) in chosen.items():
        (home / "esc" / folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(first, home / "esc" / folder)
    inside = [second for _, second in chosen.values()]
    cells = [{"bytes": path.read_bytes(), "path": path.name} for path in inside]
    write_table(home / "hf" / "data" / "train-00000-of-00001.parquet", cells[:5], rows_per_group=2, text=list("ABCDE"))
    write_table(home / "hf" / "data" / "test-00000-of-00001.parquet", [cells[5], None], text=["F", "nothing"])
    put(home / "caps", "r1nicOVtvkQ_30.wav", "aBcDeFgHiJk_0.wav", seconds=6.0, rate=22_050)
    write(
        home / "caps",
        "train.csv",
        "audiocap_id,youtube_id,start_time,caption\n1,r1nicOVtvkQ,30,A high tone\n9,gOnEcDeFgHi,0,Lost\n",
    )
    write(home / "caps", "test.csv", "audiocap_id,youtube_id,start_time,caption\n2,aBcDeFgHiJk,0,A low tone\n")
    settle(
        union_of(
            esc={"format": "auto", "path": "../esc", "weight": 2.0},
            hf={"format": "auto", "path": str(home / "hf"), "weight": 0.5},
            caps={"format": "audiocaps", "path": "../caps", "weight": 1.0},
        )
    )

    scanned = call(scan, "--corpus", "data/corpus", section="corpus")
    assert {name: (about["format"], about["weight"], about["recordings"]) for name, about in scanned["parts"].items()} == {
        "caps": ("audiocaps", 1.0, 2),
        "esc": ("esc", 2.0, 6),
        "hf": ("audiofolder", 0.5, 6),
    }
    assert scanned["recordings"] == 14
    assert scanned["missing"] == 1
    assert [row["path"] for row in table("data/quarantine/scan.parquet")] == ["hf/data/test-00000-of-00001.parquet#1"]

    ports = ("--variant", "default", "--corpus", "data/corpus", "--segments", "data/segments.parquet")
    assert call(segment, "--name", "segment", *ports, section="clips")["quarantined"] == 0
    call(resample, "--name", "resample", *ports, "--clips", "data/clips", section="clips")
    clips = {row["clip_id"]: row for path in shards.shard_paths(Path("data/clips")) for row in table(str(path))}
    verdicts = [{"clip_id": row["clip_id"], "start": row["start"], "quality": row["quality"]} for row in clips.values()]
    shards.write_rows(verdicts, Path("data/quality.parquet"), manifest.VERDICTS)
    shards.write_rows([], Path("data/duplicates.parquet"), manifest.DUPLICATES)
    ports = ("--corpus", "data/corpus", "--clips", "data/clips", "--quality", "data/quality.parquet")
    dealt = call(splits, *ports, "--duplicates", "data/duplicates.parquet", "--splits", "data/splits.parquet")
    call_catalog()
    described = table("data/catalog.parquet")

    assert dealt["splits_by"] == "given"
    assert {(row["corpus"], row["weight"]) for row in described} == {("esc", 2.0), ("hf", 0.5), ("caps", 1.0)}
    by_source = {row["source"]: row for row in described}
    split_of = {row["source"]: row["split"] for row in described}
    for (folder, fold), (first, _) in chosen.items():
        assert split_of[f"esc/{folder}/{first.name}"] in (("test",) if fold == 3 else ("train", "valid"))
        assert by_source[f"esc/{folder}/{first.name}"]["labels"] == [folder[6:].lower()]
    assert by_source["hf/data/test-00000-of-00001.parquet#0"]["captions"] == ["F"]
    assert [split_of[f"hf/data/train-00000-of-00001.parquet#{row}"] for row in range(5)].count("test") == 0
    assert split_of["hf/data/test-00000-of-00001.parquet#0"] == split_of["caps/aBcDeFgHiJk_0.wav"] == "test"
    assert by_source["caps/r1nicOVtvkQ_30.wav"]["captions"] == ["A high tone"]

    # The samples of a recording inside a table are those of the file that it was.
    for row, path in enumerate(inside[:5]):
        source = f"hf/data/train-00000-of-00001.parquet#{row}"
        clip = next(clip for clip in clips.values() if clip["source"] == source and clip["start"] == 0)
        wave, _ = soundfile.read(io.BytesIO(clip["audio"]["bytes"]), dtype="float32")
        expected = decode.read_mono(path, RATE, 60.0)[: len(wave)]
        peak = max(1.0, float(np.abs(decode.read_mono(path, RATE, 60.0)).max()))
        assert np.abs(wave[: len(expected)] - expected / peak).max() < 1.1 / 32768
    assert not list(Path("data").rglob("embedded-*"))
