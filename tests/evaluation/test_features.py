"""Embedding jobs: where their waves come from, and that a sound that cannot be scored is named."""

from __future__ import annotations

import numpy as np
import pytest

from soundmill import manifest, shards
from soundmill.audio.decode import encode_flac, write_wav
from soundmill.errors import UserError
from soundmill.evaluation import features
from soundmill.evaluation.embedders.base import Embeddings


def tone(frequency: float, num_samples: int = 16_000) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * frequency * np.arange(num_samples) / 16_000)).astype(np.float32)


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "shard-00000.parquet"
    rows = [
        {
            "clip_id": f"clip{index}",
            "audio": {"bytes": encode_flac(tone(100 * (index + 1)), 16_000), "path": f"clip{index}.flac"},
            "source": "",
            "start": 0.0,
            "digest": "",
            "recording_id": "",
            "num_samples": 16_000,
        }
        for index in range(4)
    ]
    shards.write_rows(rows, path, manifest.CLIPS)
    return path


def test_saved_features_come_back(tmp_path):
    frames = [np.full((size, 2), size, np.float32) for size in (3, 1, 2)]
    features.save(["a", "b", "c"], Embeddings(frames, np.eye(3, dtype=np.float32)), tmp_path / "first.npz")
    features.save(["d"], Embeddings(frames[:1], np.ones((1, 3), np.float32)), tmp_path / "second.npz")
    found = features.read([tmp_path / "first.npz", tmp_path / "second.npz"])
    assert sorted(found.frames) == sorted(found.logits) == ["a", "b", "c", "d"]
    for name, part in zip("abc", frames, strict=True):
        np.testing.assert_array_equal(found.frames[name], part)
    np.testing.assert_array_equal(found.logits["b"], [0, 1, 0])
    assert found.pooled(["a", "c"]).shape == (5, 2)
    np.testing.assert_array_equal(found.means(["c", "b"]), [[2, 2], [1, 1]])


def test_clips_of_a_shard(shard, tmp_path):
    found = dict(features.clips_of(shard, {"clip1", "clip3"}))
    assert list(found) == ["clip1", "clip3"]
    np.testing.assert_allclose(found["clip3"], tone(400), atol=1e-4)
    with pytest.raises(UserError, match="no such shard"):
        list(features.clips_of(tmp_path / "shard-00009.parquet", {"clip1"}))


def test_plan_holds_every_sound_once_per_embedder(shard, tmp_path):
    files = {"generated": [tmp_path / f"{index}.wav" for index in range(150)], "codec": [tmp_path / "x.wav"]}
    tasks = features.plan(["tagger", "yamnet"], tmp_path, 16_000, {shard: {"clip0", "clip1"}}, files, 0)
    assert sum(map(features.size, tasks)) == 2 * (2 + 150 + 1 + 2 * 150)
    assert {task.role for task in tasks} == {"real", "generated", "codec", "silence", "noise"}
    reordered = {"generated": files["generated"][::-1], "codec": files["codec"]}
    assert features.plan(["tagger", "yamnet"], tmp_path, 16_000, {shard: {"clip1", "clip0"}}, reordered, 0) == tasks


def test_made_up_waves_are_as_long_as_the_files_and_depend_on_the_id(tmp_path):
    write_wav(tmp_path / "a.wav", tone(200, 20_000), 16_000)
    write_wav(tmp_path / "b.wav", tone(200, 12_000), 16_000)
    paths = (tmp_path / "a.wav", tmp_path / "b.wav")
    noise = dict(features.waves_of(features.Task("yamnet", tmp_path, 16_000, "noise", files=paths, seed=1)))
    assert {name: len(wave) for name, wave in noise.items()} == {"a": 20_000, "b": 12_000}
    assert noise["a"].std() == pytest.approx(features.NOISE_LEVEL, rel=0.05)
    assert not np.array_equal(noise["a"][:100], noise["b"][:100])
    alone = dict(features.waves_of(features.Task("yamnet", tmp_path, 16_000, "noise", files=paths[1:], seed=1)))
    np.testing.assert_array_equal(alone["b"], noise["b"])
    silence = dict(features.waves_of(features.Task("yamnet", tmp_path, 16_000, "silence", files=paths)))
    assert not silence["a"].any()
    real = dict(features.waves_of(features.Task("yamnet", tmp_path, 16_000, "generated", files=paths)))
    np.testing.assert_allclose(real["b"], tone(200, 12_000), atol=1e-4)


def test_a_file_that_cannot_be_decoded_is_named(tmp_path):
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    with pytest.raises(UserError, match=r"broken\.wav: cannot be scored"):
        features.read_file(tmp_path / "broken.wav", 16_000)


def test_embedding_a_task(shard, shared, tmp_path, monkeypatch):
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(shared / "models"))
    task = features.Task("yamnet", tmp_path, 16_000, "real", shard=shard, clip_ids=frozenset({"clip0", "clip2"}))
    report = features.embed(task, tmp_path / "out.npz")
    assert [row["id"] for row in report.details] == ["clip0", "clip2"]
    assert features.read([tmp_path / "out.npz"]).frames["clip2"].shape == (1, 1024)
    with pytest.raises(UserError, match="clip clip9 of the catalog is not in it"):
        features.embed(
            features.Task("yamnet", tmp_path, 16_000, "real", shard=shard, clip_ids=frozenset({"clip0", "clip9"})),
            tmp_path / "out.npz",
        )
    # Clips at another rate are resampled before they are judged.
    half = features.Task("yamnet", tmp_path, 8_000, "real", shard=shard, clip_ids=frozenset({"clip0"}))
    features.embed(half, tmp_path / "half.npz")
    assert features.read([tmp_path / "half.npz"]).frames["clip0"].shape == (3, 1024)
