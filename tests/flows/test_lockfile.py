"""A truncated dvc.lock is detected and repaired."""

from pathlib import Path

import pytest

from flows import lockfile
from soundmill.commands import doctor

GOOD = """schema: '2.0'
stages:
  first:
    cmd: python first.py
    deps:
    - {path: first.py, hash: md5, md5: 0123456789abcdef0123456789abcdef, size: 3}
    outs:
    - {path: data/first, hash: md5, md5: 0123456789abcdef0123456789abcdef.dir, size: 3, nfiles: 1}
"""


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (GOOD, None),
        ("schema: '2.0'\n", None),
        (GOOD[: GOOD.index("cdef.dir")], "not readable as YAML"),
        (GOOD.replace("abcdef.dir", "ab"), "the hash of data/first is truncated"),
        (GOOD.replace(", md5: 0123456789abcdef0123456789abcdef.dir, size: 3, nfiles: 1", ""), "data/first has no hash"),
        (GOOD.replace("    cmd: python first.py\n", ""), "no command"),
        ("", "expected sections"),
        (GOOD[:-1], "last line is truncated"),
        (GOOD.replace("schema: '2.0'", "schema: '2"), "not readable"),
    ],
)
def test_a_cut_lock_file_is_noticed(tmp_path: Path, text: str, fault: str | None) -> None:
    path = tmp_path / "dvc.lock"
    path.write_text(text)
    found = lockfile.fault_of(path)
    assert found is None if fault is None else fault in str(found)
    finding = doctor._dvc_lock(tmp_path)
    assert (finding.state, finding.detail) == (
        ("ok", f"{text.count('cmd:')} stages built") if fault is None else ("lacking", found)
    )


def test_the_last_whole_lock_file_comes_back(tmp_path: Path) -> None:
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    lock = tmp_path / "dvc.lock"
    assert lockfile.keep_intact(tmp_path) is None  # none yet
    lock.write_text(GOOD)
    assert lockfile.keep_intact(tmp_path) is None
    lock.write_text(GOOD[:150])
    assert "restored the last intact one" in str(lockfile.keep_intact(tmp_path))
    assert lock.read_text() == GOOD
    (tmp_path / lockfile.LAST_INTACT).unlink()
    lock.write_text(GOOD[:150])
    assert "it is rebuilt" in str(lockfile.keep_intact(tmp_path))
    assert not lock.exists()
