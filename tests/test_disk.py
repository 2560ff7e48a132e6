"""Files appear whole or not at all."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from soundmill import disk


def test_a_write_that_fails_leaves_nothing_and_names_the_file(tmp_path):
    def fail(path):
        path.write_text("half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "x.json").write_text("old")
    with pytest.raises(OSError, match=re.escape(str(tmp_path / "x.json"))):
        disk.write_atomically(tmp_path / "x.json", fail)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"x.json": "old"}


def test_what_is_no_file_is_written_to_and_stays_what_it_is(tmp_path, root):
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    reader = subprocess.Popen(["cat", fifo], stdout=subprocess.PIPE)
    disk.write_atomically(fifo, lambda path: path.write_text("told"))
    assert reader.communicate()[0] == b"told"
    assert fifo.is_fifo()
    write = "disk.write_atomically(Path('/dev/stdout'), lambda path: path.write_text('told'))"
    code = f"from pathlib import Path; from soundmill import disk; {write}"
    (tmp_path / "told.txt").write_text("before, ")
    with (tmp_path / "told.txt").open("ab") as file:
        subprocess.run([sys.executable, "-c", code], cwd=root, stdout=file, check=True)
    assert (tmp_path / "told.txt").read_text() == "before, told"
    assert Path("/dev/stdout").is_symlink()


def test_what_a_device_is(tmp_path):
    (tmp_path / "file").touch()
    assert not any(map(disk.is_device, (tmp_path, tmp_path / "file", tmp_path / "new", Path("/dev/shm/new/x.json"))))
    assert all(map(disk.is_device, (Path("/dev/stdout"), Path("/dev/fd/1"), Path("/dev/null"), Path("/proc/self/fd/1"))))
