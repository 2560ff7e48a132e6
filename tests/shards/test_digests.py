"""Folders are known by their files, tables by their rows."""

from __future__ import annotations

import os

import pyarrow as pa

from soundmill import shards


def test_a_folder_is_known_by_its_files(tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("b", "a"):
        (tmp_path / "folder" / name).write_text(name)
    before = shards.signature(tmp_path / "folder")
    assert [name for name, *_ in before] == ["a", "b"]
    os.utime(tmp_path / "folder" / "b", ns=(0, 0))
    assert shards.signature(tmp_path / "folder") != before


def test_a_table_is_known_by_its_rows():
    table = pa.table({"name": ["a", None, "c"] * 50, "shard": pa.array([0, 1, 2] * 50, pa.int32())})
    split = pa.concat_tables([table.slice(0, 70), table.slice(70)])
    assert shards.table_digest(split) == shards.table_digest(table)
    assert len({shards.table_digest(part) for part in shards.by_shard(split).values()}) == 3
    for column in ("name", "shard"):
        changed = table.set_column(table.schema.get_field_index(column), column, table[column].take(pa.array([1, *range(1, 150)])))
        assert shards.table_digest(changed) != shards.table_digest(table)
