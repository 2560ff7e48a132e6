"""Items of a shard are reused by their keys, and give the bytes of a run from scratch."""

import random
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from soundmill import manifest, shards


@st.composite
def changes(draw) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Items (name, number of rows) of two runs: some stay, some go, come, change or move."""
    names = st.lists(st.sampled_from([f"item {n}" for n in range(60)]), unique=True, max_size=40)
    before = [(name, draw(st.integers(0, 5))) for name in draw(names)]
    after = [(name, dict(before).get(name, draw(st.integers(0, 5)))) for name in draw(names)]
    return before, [(name, count + draw(st.sampled_from([0, 0, 0, 1]))) for name, count in after]


def write_items(items: list[tuple[str, int]], output: Path, previous: Path | None, written: list[str]) -> shards.Report:
    with shards.ItemWriter(output, manifest.MIXES, previous) as writer:
        for name, count in items:
            key = f"{name}/{count}"
            assert (key in writer) == (previous is not None and key in {item[0] for item in shards.read_items(previous)})
            if not writer.copy(key):
                written.append(name)
                with writer.item(key) as report:
                    report.count("rows", count)
                    report.details.append(name)
                    if count == 5:
                        report.reject(name, "bad")
                        continue
                    for number in range(count):
                        rng = random.Random(f"{key}/{number}")
                        audio = {"bytes": rng.randbytes(300), "path": f"{name}.flac"}
                        words = {
                            "clip_id": f"{name}_{number}",
                            "caption": None if number else "é",
                            "labels": ["a"] * number or None,
                        }
                        writer.write({"audio": audio, "ratio": rng.random() if number % 2 else None, **words})
    return writer.report


def finished(output: Path, report: shards.Report) -> Path:
    shards.write_report(output, report)
    return output


@given(changes())
def test_reused_items_give_the_bytes_and_the_report_of_a_run_from_scratch(items):
    before, after = items
    with tempfile.TemporaryDirectory() as folder:
        old, new, fresh = (Path(folder) / name for name in ("old.parquet", "new.parquet", "fresh.parquet"))
        finished(old, write_items(before, old, None, []))
        output: list[str] = []
        report = write_items(after, new, old, output)
        assert report == write_items(after, fresh, None, [])
        assert new.read_bytes() == fresh.read_bytes()
        assert sorted(output) == sorted(name for name, count in after if (name, count) not in before or count == 5)
        if before == after and all(count < 5 for _, count in before):
            assert new.samefile(old)


def test_many_items_are_copied_over_row_groups(tmp_path):
    before = [(f"item {number}", 1 + number % 3) for number in range(300)]
    after = [*before[:100], ("new", 3), *before[101:250], *reversed(before[250:])]
    old, new, fresh = (tmp_path / name for name in ("old.parquet", "new.parquet", "fresh.parquet"))
    finished(old, write_items(before, old, None, []))
    output: list[str] = []
    assert write_items(after, new, old, output) == write_items(after, fresh, None, [])
    assert output == ["new"]
    assert new.read_bytes() == fresh.read_bytes()
    assert pq.read_metadata(new).num_row_groups > 8
