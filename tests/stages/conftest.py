from pathlib import Path

import pytest

from soundmill import manifest, shards
from tests.stages.handling import NAMING, clip, settle


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """An empty project; what it runs writes below `data/` there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def data(trainings, request) -> Path:
    """What the family that the module names trains on."""
    return trainings.data(request.module.TRAINED)


@pytest.fixture(scope="module")
def trained(trainings, request) -> Path:
    """Its checkpoint in `model`, not to be changed."""
    return trainings.trained(request.module.TRAINED)


@pytest.fixture
def small(project) -> Path:
    """Three AudioCaps recordings with four clips in two shards, before `rename`."""
    names = [("-aaaaaaaaaa", 30.0, "train"), ("bbbbbbbbbbb", 0.0, "test"), ("0123456789ab", 0.0, None)]
    recordings = []
    for number, (name, start, split) in enumerate(names):
        whose = {"recording_id": name, "path": f"{name}.wav", "raw_path": name.encode(), "shard": min(number, 1)}
        recordings.append({**whose, "start_time": start, "labels": [], "split": split})
    captions = [
        {"recording_id": "-aaaaaaaaaa", "start_time": 30.0, "caption": 'first "é"', "labels": ["dog"], "origin": "train.csv:2"},
        {"recording_id": "-aaaaaaaaaa", "start_time": 35.0, "caption": "second", "labels": ["rain"], "origin": "train.csv:3"},
        {"recording_id": "bbbbbbbbbbb", "start_time": 0.0, "caption": "one", "labels": [], "origin": "test.csv:2"},
        {"recording_id": "bbbbbbbbbbb", "start_time": 0.0, "caption": "other", "labels": [], "origin": "test.csv:3"},
        {"recording_id": "ccccccccccc_0", "start_time": 0.0, "caption": "lost", "labels": [], "origin": "test.csv:4"},
    ]
    clips = [
        [clip("-aaaaaaaaaa_30", "-aaaaaaaaaa", 0.0), clip("-aaaaaaaaaa_35", "-aaaaaaaaaa", 5.0)],
        [clip("bbbbbbbbbbb_0", "bbbbbbbbbbb", 0.0), clip("0123456789ab_0", "0123456789ab", 0.0)],
    ]
    shards.write_rows(recordings, project / "data/corpus/recordings.parquet", manifest.RECORDINGS)
    shards.write_rows(captions, project / "data/corpus/captions.parquet", manifest.CAPTIONS)
    for number, rows in enumerate(clips):
        shards.write_rows(rows, project / "data/clips" / shards.shard_name(number), manifest.CLIPS)
    settle(project, **NAMING)
    return project
