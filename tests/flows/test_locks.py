"""Who holds DVC's locks and the pipeline's own: with the real `dvc` in a tiny project."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows import dvc, locks, trials
from soundmill.commands import doctor
from soundmill.errors import UserError
from tests.flows.tiny import dvc_command


@pytest.mark.slow
def test_who_holds_the_lock_is_said_and_waited_for(tiny, set_param):
    set_param("first", seconds=60.0)
    environment = dvc.environment()
    typed = subprocess.Popen([dvc.executable(), "repro"], cwd=tiny, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        for line in typed.stdout:
            if line.startswith("working"):
                break
        (holder,) = locks.holders(tiny)
        assert holder.pid == typed.pid
        code = "import sys, pathlib; from flows import locks; locks.wait_until_free(pathlib.Path(sys.argv[1]), 0, print)"
        other = subprocess.run([sys.executable, "-c", code, tiny], capture_output=True, text=True)  # not the parent of `typed`
        assert re.search(rf"in use by process {typed.pid} \(.*dvc repro\)", other.stderr), other.stderr
        said: list[str] = []
        os.kill(typed.pid, signal.SIGKILL)  # what it leaves in DVC's rwlock is a dead process
        typed.wait()
        locks.wait_until_free(tiny, 30, said.append)
    finally:
        typed.kill()
    assert locks.holders(tiny) == []


def test_a_number_taken_over_by_another_process_holds_nothing(tiny):
    lock = tiny / ".dvc" / "tmp" / "rwlock"
    lock.parent.mkdir(exist_ok=True)
    lock.write_text(json.dumps({"write": {"/x": {"pid": os.getpid(), "cmd": "dvc repro"}}}))
    assert [holder.pid for holder in locks.holders(tiny)] == [os.getpid()]
    long_ago = time.time() - 10 * 365 * 86400
    os.utime(lock, (long_ago, long_ago))
    assert locks.holders(tiny) == []
    lock.write_text("{ half")
    assert locks.holders(tiny) == []


def test_a_process_that_ended_and_that_nobody_asks_after_holds_nothing(tiny):
    """A `dvc` whose parent was killed stays in the list of processes in a container without an init."""
    ended = subprocess.Popen(["true"])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # ended, and still listed
    lock = tiny / ".dvc" / "tmp" / "rwlock"
    lock.parent.mkdir(exist_ok=True)
    lock.write_text(json.dumps({"write": {"/x": {"pid": ended.pid, "cmd": "dvc repro"}}}))
    assert Path(f"/proc/{ended.pid}").exists()
    assert locks.holders(tiny) == []
    ended.wait()


def test_locks_that_a_killed_dvc_left_empty_are_moved_away(tiny):
    """Plain `dvc repro` refuses them; doctor gives the remedy; the flow applies it, unless a `dvc` runs."""
    lock = tiny / ".dvc" / "tmp" / "rwlock"
    lock.parent.mkdir(exist_ok=True)
    lock.touch()
    refused = dvc_command(tiny, "repro", "first")
    assert "Unable to read RWLock-file" in refused.stderr
    (finding,) = (found for found in doctor.examine(tiny) if found.name == "changes")
    assert (finding.state, finding.remedy) == ("lacking", f"while no dvc runs here: `rm {shlex.quote(str(lock))}`")

    other = subprocess.Popen(["python -m dvc", "60"], executable="/bin/sleep", cwd=tiny)
    try:
        with pytest.raises(UserError, match=f"unreadable, and process {other.pid} "):
            dvc.repro(tiny, "first", print)
    finally:
        other.kill()
        other.wait()
    said: list[str] = []
    assert dvc.repro(tiny, "first", said.append) == "ran"
    assert said == [
        ".dvc/tmp/rwlock was unreadable because `dvc` was killed: moved to rwlock.unreadable next to it",
        "working on 1",
    ]
    assert [found.state for found in doctor.examine(tiny) if found.name == "changes"] == ["ok"]


def test_parameters_are_not_changed_beside_a_pipeline(tiny):
    before = (tiny / "params.yaml").read_bytes()
    with locks.only_one(tiny, 0, print), pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        trials.run_pipeline(tiny, {"first": {"number": 9}}, ["first"], "a point")
    assert (tiny / "params.yaml").read_bytes() == before
