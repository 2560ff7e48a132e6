"""A copy of this project's current files with its own cache and data, for benchmarks of whole pipelines."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench.measure import ROOT, WORKERS, children, in_fresh_process
from flows import dvc
from soundmill import hashing, params
from soundmill.errors import UserError

DATA_STAGES = (
    *("scan", "segment", "resample", "duplicates", "quality", "splits", "zero_shot", "catalog"),
    *("rename", "mixup", "spectrogram"),
)
CODE = ("soundmill/", "stages/", "flows/", "conf/", ".dvc/", "dvc.yaml", ".dvcignore", ".gitignore", "forgotten.yaml")


def copy_code(root: Path, overrides: list[str]) -> None:
    """Copy the code of this project, and compose params.yaml."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *CODE], cwd=ROOT, capture_output=True, check=True
    )
    for name in filter(None, os.fsdecode(listed.stdout).split("\0")):
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)
    params.write_yaml(params.compose(ROOT / "conf", overrides), root / "params.yaml")
    (root / ".venv").symlink_to(ROOT / ".venv")


def commit(root: Path) -> None:
    for command in (
        ["init", "--quiet"],
        ["add", "--all"],
        ["-c", "user.name=bench", "-c", "user.email=bench@localhost", "commit", "--quiet", "-m", "start"],
    ):
        subprocess.run(["git", *command], cwd=root, check=True)


@dataclass(frozen=True)
class Checkout:
    root: Path

    @classmethod
    def make(cls, root: Path, overrides: list[str]) -> Checkout:
        """Copy the code, compose params.yaml for one family, and reduce the graph to the data stages."""
        copy_code(root, ["model=ddpm_mel", *overrides, f"execution.workers={WORKERS}"])
        graph = params.read_yaml(root / "dvc.yaml")
        graph["stages"] = {name: stage for name, stage in graph["stages"].items() if name.startswith(DATA_STAGES)}
        params.write_yaml(graph, root / "dvc.yaml")
        commit(root)
        return cls(root)

    def stages(self) -> list[tuple[str, str]]:
        """(name, command) of every stage in the order of execution."""
        commands = in_fresh_process(commands_of, self.root)
        return [(stage.name, commands[stage.name]) for stage in dvc.stages(self.root)]

    def dvc(self, *arguments: str) -> Usage:
        return run([dvc.executable(), *arguments], self.root)

    def digests(self) -> dict[str, str]:
        """Digest of every data file that the stages wrote."""
        top = self.root / "data"
        files = [path for path in top.rglob("*") if path.is_file() and not path.relative_to(top).parts[0].startswith(".")]
        return {str(path.relative_to(top)): hashing.file_digest(path) for path in sorted(files)}


@dataclass(frozen=True)
class Usage:
    """Cost of a command: wall seconds, CPU seconds of all its processes, peak memory of one process. Processes that outlive the
    command are included."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


def run(command: list[str], where: Path) -> Usage:
    """Run a command; its output is shown only if it fails."""
    # From a small process, because Linux includes the memory of the parent at the fork in a process's peak.
    return in_fresh_process(_run, command, where)


def _run(command: list[str], where: Path) -> Usage:
    PR_SET_CHILD_SUBREAPER = 36  # processes that outlive the command (the uploader) become our children, and are counted
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    with tempfile.TemporaryFile() as log:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=where, env=dvc.environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise UserError(f"{' '.join(command)} failed:\n{log.read().decode(errors='replace')[-4000:]}")
    usages = [usage]
    for pid in children():
        os.kill(pid, signal.SIGTERM)  # the uploader has finished and waits for another stage
    with suppress(ChildProcessError):
        while True:
            usages.append(os.wait4(-1, 0)[2])
    return Usage(seconds, sum(one.ru_utime + one.ru_stime for one in usages), max(one.ru_maxrss for one in usages) * 1024)


def commands_of(root: Path) -> dict[str, str]:
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        return {stage.name: stage.cmd for stage in repo.index.stages}
