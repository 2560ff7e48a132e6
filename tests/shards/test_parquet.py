"""Shards hold their rows in bounded groups, in bytes that depend on the rows alone."""

import pickle

import pyarrow as pa
import pytest

from soundmill import shards
from soundmill.errors import UserError
from tests.lost_bits import room_in_files
from tests.shards.work import SCHEMA


def test_shard_of_known_answers():
    assert [shards.shard_of(f"clip-{n}", 8) for n in range(6)] == [shards.shard_of(f"clip-{n}".encode(), 8) for n in range(6)]
    counts = [0] * 8
    for n in range(8000):
        counts[shards.shard_of(str(n), 8)] += 1
    assert min(counts) > 850


@pytest.mark.parametrize("room", [100, 400])  # within the rows, within the foot
def test_a_shard_that_the_disk_does_not_take_is_named_and_leaves_nothing(tmp_path, room):
    rows = [{"name": f"clip {n}", "data": bytes(range(256))} for n in range(2)]
    with room_in_files(room), pytest.raises(OSError, match="File too large") as failed:
        shards.write_rows(rows, tmp_path / "a.parquet", SCHEMA)
    assert failed.value.filename == str(tmp_path / "a.parquet")
    assert list(tmp_path.iterdir()) == []


def test_rows_round_trip_in_groups_bytes_are_stable_and_only_wanted_rows_are_read(tmp_path):
    rows = [{"name": f"clip {n}", "data": bytes([n % 256]) * n} for n in range(200)]
    for name in ("a.parquet", "b.parquet"):
        assert shards.write_rows(iter(rows), tmp_path / name, SCHEMA) == 200
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert list(shards.read_rows(tmp_path / "a.parquet", SCHEMA)) == rows
    assert [row["name"] for row in shards.read_rows(tmp_path / "a.parquet", SCHEMA, ["name"])] == [r["name"] for r in rows]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]
    rows = shards.read_rows(tmp_path / "a.parquet", SCHEMA, ["name"], rows=[199, 3, 64, 3])
    assert [row["name"] for row in rows] == ["clip 3", "clip 64", "clip 199"]
    assert list(shards.read_rows(tmp_path / "a.parquet", SCHEMA, rows=[])) == []


def test_a_failed_write_leaves_the_old_file_and_a_wrong_schema_names_file_and_column(tmp_path):
    path = tmp_path / "a.parquet"
    shards.write_rows([{"name": "old", "data": b""}], path, SCHEMA)
    with pytest.raises(ZeroDivisionError), shards.ShardWriter(path, SCHEMA) as writer:
        writer.write({"name": "new", "data": b""})
        raise ZeroDivisionError
    assert [row["name"] for row in shards.read_rows(path, SCHEMA)] == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["a.parquet"]
    other = pa.schema([("name", pa.int64())])
    with pytest.raises(UserError, match=r"a\.parquet: column 'name' must be int64, found string"):
        list(shards.read_rows(tmp_path / "a.parquet", other))
    with pytest.raises(UserError, match="no shards"):
        shards.shard_paths(tmp_path / "absent")
    path.write_bytes(path.read_bytes()[:-9])
    for read in (shards.read_table, lambda *args: list(shards.read_rows(*args))):
        with pytest.raises(UserError, match=r"a\.parquet: cannot be read \(.*rebuild it"):
            read(path, SCHEMA)
    with pytest.raises(UserError, match=r"a\.parquet: cannot be read"):
        shards.common_metadata(tmp_path, b"key")


def test_optional_columns_of_older_files_are_null(tmp_path):
    path = tmp_path / "a.parquet"
    shards.write_rows([{"name": "x", "data": b""}], path, SCHEMA)
    newer = SCHEMA.append(pa.field("licence", pa.string())).with_metadata({"optional": "licence"})
    assert shards.read_table(path, newer).to_pylist() == [{"name": "x", "data": b"", "licence": None}]
    assert shards.read_table(path, newer, ["licence"]).to_pylist() == [{"licence": None}]
    assert list(shards.read_rows(path, newer, ["name"])) == [{"name": "x"}]
    assert list(shards.read_rows(path, newer)) == [{"name": "x", "data": b"", "licence": None}]
    with pytest.raises(UserError, match="column 'licence' must be string, found no such column"):
        shards.read_table(path, newer.remove_metadata())
    shards.write_rows([{"name": "x", "data": b"", "licence": "CC0-1.0"}], path, newer)
    assert shards.read_table(path, newer, ["licence"]).to_pylist() == [{"licence": "CC0-1.0"}]
    wrong = pa.schema([("licence", pa.int32())], {"optional": "licence"})
    with pytest.raises(UserError, match="column 'licence' must be int32, found string"):
        shards.read_table(path, wrong)


def test_rows_of_a_shard_keep_their_order_and_weigh_no_more_than_they_are():
    table = pa.concat_tables(
        pa.table({"shard": pa.array([2, 0, 2, 5], pa.int32()), "name": [f"{part}{row}" for row in range(4)]})
        for part in "abc" * 500
    )
    result = shards.by_shard(table)
    assert list(result) == [0, 2, 5]
    assert result[2]["name"].to_pylist() == [f"{part}{row}" for part in "abc" * 500 for row in (0, 2)]
    assert len(pickle.dumps(result[0])) < len(pickle.dumps(table)) / 3
    assert shards.by_shard(table.slice(0, 0)) == {}


def test_a_table_is_known_by_its_rows():
    table = pa.table({"name": ["a", None, "c"] * 50, "shard": pa.array([0, 1, 2] * 50, pa.int32())})
    split = pa.concat_tables([table.slice(0, 70), table.slice(70)])
    assert shards.table_digest(split) == shards.table_digest(table)
    assert len({shards.table_digest(part) for part in shards.by_shard(split).values()}) == 3
    for column in ("name", "shard"):
        changed = table.set_column(table.schema.get_field_index(column), column, table[column].take(pa.array([1, *range(1, 150)])))
        assert shards.table_digest(changed) != shards.table_digest(table)
