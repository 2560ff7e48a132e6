"""The cache of embeddings: what is put in comes back, whoever else reads and writes."""

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from soundmill import hashing
from soundmill.evaluation import cache
from soundmill.evaluation.cache import WaveFacts
from tests.lost_bits import lose_a_bit


def embedding(key: str, patches: int) -> cache.Embedding:
    frames = np.full((patches, 3), int(key), np.float32)
    return cache.Embedding(key, WaveFacts(100 * patches, False, True, f"d{key}"), 8_000, frames, np.arange(2, dtype=np.float32))


def test_embeddings_come_back(tmp_path):
    cache.add(tmp_path, [embedding(str(index), index % 4) for index in range(40)])  # of several row groups
    cache.add(tmp_path, [embedding(str(index), 1) for index in (40, 41)])
    result = cache.Embedded(tmp_path, {"3", "37", "41", "99"})
    assert set(result.facts) == {"3", "37", "41"}
    np.testing.assert_array_equal(result.frames("37"), np.full((1, 3), 37))
    np.testing.assert_array_equal(result.frames("3"), np.full((3, 3), 3))
    np.testing.assert_array_equal(result.logits("41"), [0, 1])
    assert result.facts["3"] == cache.Facts(WaveFacts(300, False, True, "d3"), 8_000, 3)
    assert result.facts["3"].seconds == 300 / 8000
    assert cache.Embedded(tmp_path, {"0"}).frames("0").shape == (0, 0)  # too short for a patch
    assert not cache.Embedded(tmp_path / "none", {"0"}).facts


def test_two_writers_of_one_file_and_a_reader_disturb_nobody(tmp_path):
    rows = [embedding(str(index), 2) for index in range(20)]
    keys = {row.key for row in rows}

    def write_and_read(number: int) -> bool:
        cache.add(tmp_path, rows)
        result = cache.Embedded(tmp_path, keys)
        return all((result.frames(row.key) == row.frames).all() for row in rows)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(write_and_read, range(24)))
    assert [path.stem for path in tmp_path.iterdir()] == [hashing.file_digest(path) for path in tmp_path.iterdir()]
    assert len(list(tmp_path.iterdir())) == 1  # the same rows have the same bytes


def test_what_killed_runs_left_is_removed_when_nobody_adds(tmp_path):
    (tmp_path / ".adding-killed").mkdir()
    (tmp_path / ".adding-killed" / "a.parquet").write_bytes(b"half")

    def while_it_is_added():
        yield embedding("1", 1)
        cache.remove_unfinished(tmp_path)
        assert len(list(tmp_path.glob(".adding-*"))) == 2
        yield embedding("2", 1)

    cache.add(tmp_path, while_it_is_added())
    cache.remove_unfinished(tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".parquet"]
    assert set(cache.Embedded(tmp_path, {"1", "2"}).facts) == {"1", "2"}


def test_a_failed_addition_leaves_nothing_and_a_torn_file_is_dropped(tmp_path):
    def rows():
        yield embedding("1", 1)
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        cache.add(tmp_path, rows())
    cache.add(tmp_path, [])
    assert not list(tmp_path.iterdir())
    (tmp_path / "c.parquet").write_bytes(b"PAR1 torn")
    cache.add(tmp_path, [embedding("1", 1)])
    assert cache.drop_damaged(tmp_path, 1) == ["c.parquet"]
    assert "1" in cache.Embedded(tmp_path, {"1"})


def test_a_file_with_any_lost_bit_is_dropped_and_the_others_stay(tmp_path):
    rows = [embedding(str(index), index % 4) for index in range(40)]
    cache.add(tmp_path, rows[:20])
    cache.add(tmp_path, rows[20:])
    files = sorted(tmp_path.iterdir())
    whole = {path: path.read_bytes() for path in files}
    size = len(whole[files[0]])
    metadata = size - int.from_bytes(whole[files[0]][-8:-4], "little") - 8
    rng = random.Random(3)
    places = [0, *(rng.uniform(4, metadata) for _ in range(60)), *(rng.uniform(metadata, size) for _ in range(60))]
    for place in places:  # magic number, pages, and metadata with footer
        lose_a_bit(files[0], place / size)
        assert cache.drop_damaged(tmp_path, 2) == [files[0].name]
        assert cache.drop_damaged(tmp_path, 2) == []
        assert files[1].read_bytes() == whole[files[1]]
        files[0].write_bytes(whole[files[0]])
    assert set(cache.Embedded(tmp_path, {row.key for row in rows}).facts) == {row.key for row in rows}
