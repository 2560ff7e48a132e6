"""Stages up to `rename` over small tables, called in the process of a test."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from soundmill import manifest, params, shards, stage
from stages import catalog, rename, resample, scan, segment, splits
from tests import prepared
from tests.prepared import PLAN, execution, json_lines
from tests.processes import files_below

CORPUS = {
    "format": "synthetic",
    "path": None,
    "embedded": ["synthetic"],
    "external": [],
    "shards": 3,
    "recordings": 16,
    "valid_fraction": 0.2,
    "test_fraction": 0.2,
    "window_seconds": 5.0,
    "min_seconds": 1.0,
    "seed": 7,
}
SPLITS = {"valid_fraction": 0.1, "test_fraction": 0.1, "duplicates": "fail", "seed": 0}
CATALOG = {
    "caption_templates": ["the sound of {label}"],
    "min_tag_score": 0.2,
    "min_caption_score": None,
    "only": [],
    "report": {"examples": 8, "megabytes": 10.0},
}
NAMING = {
    "clips": {"default": PLAN},
    "splits": SPLITS,
    "catalog": CATALOG,
    "rename": {"clips": "default", "dataset": "audiocaps", "location": "data/audiocaps/audio", "naming": "start"},
}
RATE = 16_000


def settle(project: Path, workers: int = 1, **sections) -> None:
    params.write_yaml({**sections, "execution": execution(workers)}, project / "params.yaml")


def call(module, *argv: str, section: str | None = None) -> dict:
    """Run a stage in this process; returns its metrics."""
    name = module.__name__.rpartition(".")[2]
    kept = ["--metrics", f"data/metrics/{name}.json", "--quarantine", f"data/quarantine/{name}.parquet"]
    stage.main(module.run, section or name, [*argv, *kept])
    return json.loads(Path(f"data/metrics/{name}.json").read_text(encoding="utf-8"))


def failure(capsys, module, *argv: str, section: str | None = None) -> str:
    with pytest.raises(SystemExit) as end:
        call(module, *argv, section=section)
    assert isinstance(end.value.code, str)
    assert "Traceback" not in end.value.code + capsys.readouterr().err
    return end.value.code


def tree(directory: Path) -> dict[str, bytes]:
    """The content of every file below it, by its path, but of what stages have in `.work`."""
    return {name: data for name, data in files_below(directory) if ".work" not in Path(name).parts}


def table(path: str) -> list[dict]:
    return pq.read_table(path).to_pylist()


def json_rows(split: str) -> list[dict[str, str]]:
    return json_lines(Path(f"data/audiocaps/{split}.json"))


PLANNED = ("--variant", "default", "--name", "segment", "--corpus", "data/corpus", "--segments", "data/segments.parquet")


def scanned(*more: str) -> dict:
    return call(scan, "--name", "scan", "--corpus", "data/corpus", *more, section="corpus")


def cut_clips() -> None:
    """Plan and cut the corpus below `data/`."""
    call(segment, *PLANNED, section="clips")
    call(resample, *PLANNED, "--name", "resample", "--clips", "data/clips", section="clips")


def from_corpus_to_names() -> dict:
    cut_clips()
    return call_rename()


def verdicts(**rejected: str) -> None:
    """Write what `quality` would say of the clips below data/clips: clip id (its letters and digits) → the rule it breaks."""
    rows = []
    for path in shards.shard_paths(Path("data/clips")):
        for row in shards.read_rows(path, manifest.CLIPS, ["clip_id", "source", "start"]):
            rule = rejected.get("".join(filter(str.isalnum, row["clip_id"])))
            rows.append({**row, "quality": {"seconds": 5.0}, "rejected": rule})
    shards.write_rows(rows, Path("data/quality.parquet"), manifest.VERDICTS)


def call_splits(*pairs: dict) -> dict:
    if not Path("data/quality.parquet").exists():
        verdicts()
    shards.write_rows(pairs, Path("data/duplicates.parquet"), manifest.DUPLICATES)
    ports = ("--corpus", "data/corpus", "--clips", "data/clips", "--quality", "data/quality.parquet")
    if Path("data/refused.parquet").exists():
        ports += ("--refused", "data/refused.parquet")
    return call(splits, *ports, "--duplicates", "data/duplicates.parquet", "--splits", "data/splits.parquet")


def call_catalog() -> dict:
    """The catalog and its page; unless `zero_shot` has run, nothing was compared."""
    scores = "data/zero_shot.parquet" if Path("data/zero_shot.parquet").exists() else "data/quality.parquet"
    ports = ("--corpus", "data/corpus", "--clips", "data/clips", "--quality", "data/quality.parquet")
    tables = ("--scores", scores, "--splits", "data/splits.parquet")
    return call(catalog, *ports, *tables, "--catalog", "data/catalog.parquet", "--report", "data/catalog.html")


def call_rename(*pairs: dict) -> dict:
    """Splits by these pairs of duplicates, the catalog, and the named files; returns all their metrics."""
    metrics = call_splits(*pairs) | call_catalog()
    named = call(rename, "--clips", "data/clips", "--catalog", "data/catalog.parquet", "--audiocaps", "data/audiocaps")
    return metrics | {key: value for key, value in named.items() if key != "clips"}


TERMS = {"allow": None, "unknown": "keep", "ai_refused": "keep"}
BOUNDS = {"follow_links": False, "max_seconds": 7200.0, "terms": TERMS}


def external(path: str | None, name: str = "folder") -> dict:
    return {"format": name, "path": path, "parts": {}, "embedded": [], "external": [name], "shards": 4, **BOUNDS}


def clip(clip_id: str, recording_id: str, start: float, seconds: float = 0.1) -> dict:
    wave = np.random.default_rng(len(clip_id)).integers(-32768, 32768, round(seconds * RATE)).astype(np.int16)
    where = {"recording_id": recording_id, "source": f"{recording_id}.wav", "start": start}
    return prepared.sound(clip_id, wave / np.float32(32768), RATE, digest="d", quality={"seconds": seconds}, **where)


def refusal(capsys, *pairs: dict) -> str:
    """What splits, catalog or rename says that ends badly."""
    with pytest.raises(SystemExit) as end:
        call_rename(*pairs)
    assert "Traceback" not in str(end.value.code) + capsys.readouterr().err
    return str(end.value.code)


def duplicate(a: str, b: str) -> dict:
    return {"a": min(a, b), "b": max(a, b), "score": 1.0, "kind": "sound"}
