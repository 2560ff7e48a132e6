"""The embedded corpus: the same bytes by any number of workers, and a caption of its own for every clip."""

import os
import shutil
from pathlib import Path

import pytest

from soundmill import hashing, manifest
from stages import corpus
from tests.stages.handling import CORPUS, NAMING, call, from_corpus_to_names, json_rows, rows_of_csv, settle, table, tree


@pytest.fixture(scope="module")
def embedded(tmp_path_factory) -> Path:
    """A project with a small embedded corpus made by two workers."""
    project = tmp_path_factory.mktemp("embedded")
    settle(project, 2, corpus=CORPUS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        call(corpus, "--corpus", "data/corpus")
    return project


@pytest.mark.slow
def test_the_embedded_corpus_is_the_same_bytes_with_one_worker_or_two(project, embedded):
    settle(project, 1, corpus=CORPUS)
    metrics = call(corpus, "--corpus", "data/corpus", "--refused", "data/refused.parquet")
    assert metrics["recordings"] == 16
    assert metrics["labels"] == 12
    assert metrics["quarantined"] == metrics["collisions"] == 0
    assert metrics["captions"] == metrics["captions_with_audio"]
    first = tree(Path("data/corpus"))
    assert tree(embedded / "data" / "corpus") == first
    assert {Path(name).suffix for name in first} == {".wav", ".flac", ".ogg", ".mp3", ".m4a", ".csv", ".parquet"}

    recordings, captions = table("data/corpus/recordings.parquet"), table("data/corpus/captions.parquet")
    for row in recordings:
        path = Path("data/corpus/audio") / os.fsdecode(row["raw_path"])
        assert hashing.file_digest(path) == row["digest"]
        assert path.stat().st_size == row["size"]
    assert {tuple(row[name] for name in manifest.TERMS) for row in recordings} == {
        ("CC0-1.0", "Soundmill", None, "allowed", "synthesised")
    }
    assert table("data/refused.parquet") == []
    split_of = {row["recording_id"]: row["split"] for row in recordings}
    for split in ("valid", "test"):
        assert len({label for row in captions if split_of[row["recording_id"]] == split for label in row["labels"]}) == 12
    assert len({row["group"] for row in recordings}) == 15  # one video gave two recordings
    assert all(manifest.naming_stem(row["recording_id"]) == row["group"] for row in recordings)


@pytest.mark.slow
def test_every_clip_of_the_embedded_corpus_has_its_own_caption(project, embedded):
    shutil.copytree(embedded / "data" / "corpus", project / "data" / "corpus")
    settle(project, 2, **NAMING)
    metrics = from_corpus_to_names()
    assert metrics["missing"] == metrics["orphans"] == 0
    assert metrics["captioned_by"] == {"window": metrics["clips"]}
    assert metrics["splits_by"] == "given"
    assert metrics["labels_absent_from_train"] == []
    captions = {
        (row["youtube_id"], float(row["start_time"])): row["caption"]
        for name in ("train", "val", "test")
        for row in rows_of_csv(f"data/corpus/{name}.csv")
    }
    told = {Path(row["location"]).stem: row["captions"] for split in manifest.SPLITS for row in json_rows(split)}
    assert told == {f"{video}_{start:g}": caption for (video, start), caption in captions.items()}
