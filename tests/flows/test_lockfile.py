"""A truncated dvc.lock is detected and repaired."""

from __future__ import annotations

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


def entry(name: str, md5: str = "0123456789abcdef0123456789abcdef") -> str:
    """A stage's entry in dvc.lock, as DVC writes it."""
    out = f"    - path: data/{name}\n      hash: md5\n      md5: {md5}\n      size: 3\n"
    return f"  {name}:\n    cmd: python {name}.py\n    outs:\n{out}"


def lock_of(*entries: str) -> str:
    return "".join(["schema: '2.0'\nstages:\n", *entries])


@pytest.mark.parametrize(
    ("left", "expected", "said"),
    [
        (lock_of(entry("a"), entry("b"), entry("c")), ["a", "b", "c"], None),
        (lock_of(entry("c")), ["a", "b", "c"], "the entry of a was lost"),  # another `dvc` wrote back what was left: nothing
        (lock_of(entry("a"), entry("b", "0123"), entry("c")), ["a", "b", "c"], "is truncated"),
        (lock_of(entry("a"), entry("b"), entry("c"))[:-20], ["a", "b"], "truncated"),
        ("", ["a", "b"], "expected sections"),
    ],
)
def test_what_a_killed_dvc_took_from_the_entries_comes_back(
    tmp_path: Path, left: str, expected: list[str], said: str | None
) -> None:
    """While `c` writes its entry, the `dvc` of another stage is killed: those that had finished are whole in any case."""
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    lock = tmp_path / "dvc.lock"
    lock.write_text(lock_of(entry("a"), entry("b")))
    lockfile.keep_intact(tmp_path)
    entries, told = lockfile.Entries(tmp_path), []
    with entries.written_by("c", told.append):
        lock.write_text(left)
    assert lockfile.fault_of(lock) is None
    assert lock.read_text() == lock_of(*map(entry, expected))
    assert (entries.damages, len(told)) == (int(said is not None),) * 2
    assert not said or said in told[0]
    assert (tmp_path / lockfile.LAST_INTACT).read_bytes() == lock.read_bytes()


def test_a_stage_that_failed_leaves_its_entry_as_it_was(tmp_path: Path) -> None:
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    lock = tmp_path / "dvc.lock"
    lock.write_text(lock_of(entry("a"), entry("b")))
    lockfile.keep_intact(tmp_path)
    entries = lockfile.Entries(tmp_path)
    with pytest.raises(OSError), entries.written_by("a", print), entries.written_by("b", print):  # noqa: PT011
        lock.write_text(lock_of(entry("a", 32 * "a"), entry("b", 32 * "b")))
        raise OSError
    assert lock.read_text() == lock_of(entry("a"), entry("b"))


def test_new_entries_are_put_in_the_order_of_the_graph(tmp_path: Path) -> None:
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    lock = tmp_path / "dvc.lock"
    lock.write_text(lock_of(entry("z"), entry("old")))
    entries = lockfile.Entries(tmp_path)
    lock.write_text(lock_of(*map(entry, ("z", "old", "c", "b", "a"))))
    entries.sort(["old", "a", "z", "b", "c"])
    assert lock.read_text() == lock_of(*map(entry, ("z", "old", "a", "b", "c")))
