import contextlib
import os
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess

from typer.testing import CliRunner

from soundmill import commands
from tests.imports import ROOT


def soundmill(*arguments: str, cwd: Path) -> CompletedProcess[str]:
    """Run the command in the directory `cwd`; in this process, for one of its own imports torch anew."""
    with contextlib.chdir(cwd):
        done = CliRunner().invoke(commands.app, arguments, catch_exceptions=False)
    return CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


def soundmill_alone(*arguments: str, cwd: Path) -> CompletedProcess[str]:
    """Run the command in a process of its own, as a person does."""
    command = [sys.executable, "-m", "soundmill", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def works(*arguments: str, cwd: Path) -> CompletedProcess[str]:
    done = soundmill(*arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr + done.stdout
    return done


def refused(*arguments: str, cwd: Path) -> str:
    """What it says when it refuses, in a plain error."""
    done = soundmill(*arguments, cwd=cwd)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr + done.stdout
    return done.stderr
