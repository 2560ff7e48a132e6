"""Log-mels in shards: what was written is read, and shards that do not belong together are refused by name."""

import numpy as np
import pytest

from soundmill import manifest, shards
from soundmill.audio import log_mels
from soundmill.errors import UserError
from tests.mels import TANGO, spec_with


def write(path, clips, spec=TANGO, metadata=True):
    about = {log_mels.SPEC_KEY: spec.model_dump_json().encode()} if metadata else None
    rows = [
        {"clip_id": name, "log_mel": v.astype("<f2").tobytes(), "num_mels": v.shape[0], "num_frames": v.shape[1], "digest": ""}
        for name, v in clips.items()
    ]
    shards.write_rows(rows, path, manifest.SPECTROGRAMS.with_metadata(about))


def test_shards_round_trip(tmp_path):
    clips = {"b": np.full((64, 3), 1.5), "a": np.full((64, 4), -2.0), "c": np.full((64, 3), 0.25)}
    write(tmp_path / "shard-00000.parquet", {k: clips[k] for k in "ba"})
    write(tmp_path / "shard-00001.parquet", {"c": clips["c"]})
    assert log_mels.read_spec(tmp_path) == TANGO
    read = dict(log_mels.iterate_log_mels(tmp_path))
    assert list(read) == ["b", "a", "c"] == [row["clip_id"] for row in log_mels.iterate_index(tmp_path)]
    for clip_id, values in read.items():
        assert values.dtype == np.float16
        np.testing.assert_array_equal(values, clips[clip_id])
    assert [row["num_frames"] for row in log_mels.iterate_index(tmp_path)] == [3, 4, 3]


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match="no shards"):
        log_mels.read_spec(tmp_path)
    write(tmp_path / "shard-00000.parquet", {"a": np.zeros((64, 3)), "b": np.zeros((64, 4))})
    write(tmp_path / "shard-00001.parquet", {"c": np.zeros((64, 3))}, spec=spec_with(mel_scale="htk"))
    with pytest.raises(UserError, match="another mel_spec"):
        log_mels.read_spec(tmp_path)
    write(tmp_path / "shard-00001.parquet", {"c": np.zeros((64, 3))}, metadata=False)
    with pytest.raises(UserError, match="shard-00001"):
        log_mels.read_spec(tmp_path)
