"""The measurement of duplicates, shrunken: every kind of copy is planted, found and reported."""

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_copies_are_planted_and_found(root, shared, tmp_path):
    command = [sys.executable, "-m", "bench.duplicates", "--results", str(tmp_path), "--recordings", "2", "--largest", "1000"]
    done = subprocess.run(
        [*command, "--audio", str(shared / "data" / "esc10" / "002 - Rain")], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    document = json.loads((tmp_path / "duplicates.json").read_text())
    (table,) = document["recall"].values()
    assert len(table) == 10
    assert all(row["planted"] == row["found"] == 2 and row["score_lowest"] > 0.4 for row in table.values())
    assert document["growth"][0]["recall"] == 1.0
    assert document["growth"][0]["alarms"] == 0
    assert list(document["alarms"].values()) == [[]]
