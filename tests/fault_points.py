"""Runs an operation again and again, failing the 1st, 2nd, 3rd … call that changes a file; run by tests/test_fault_points.py.

    python -m tests.fault_points OPERATION DIRECTORY [--sample SEED COUNT]

Prints one JSON line for each attempt. Every attempt is a fork of this process, which has run the operation once and so imported
what it needs. The calls fail in tests/fault_points.c, a library that LD_PRELOAD loads into this process and all that it starts.
"""

import argparse
import contextlib
import errno
import faulthandler
import functools
import gc
import json
import logging
import mmap
import os
import random
import re
import shutil
import sqlite3
import struct
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile
import typer

from flows import dvc as flows_dvc
from soundmill import commands, ledger, params, tracking
from soundmill.tracking import journal
from tests.flows.tiny import git, make_tiny
from tests.prepared import PLAN
from tests.processes import contents
from tests.shards.work import run_here

SOURCE = Path(__file__).with_suffix(".c")
ERRORS = (errno.EIO, errno.ENOSPC, errno.EINTR)
PATIENCE_SECONDS = 300
_STATE = struct.Struct("lll4096s16s4096s")  # `struct state`
_FAIL_AT = struct.Struct("lll")


@dataclass(frozen=True)
class Operation:
    """What is tried in a directory, like a command: it ends well, or raises SystemExit with a message."""

    prepare: Callable[[Path], None]
    run: Callable[[Path], object]
    results: Callable[[Path], dict[str, str]]  # what must be the same afterwards, as digests by name
    errors_in_turn: bool = False  # for a long one: a call fails with one of the errors, the next with another
    warm: Callable[[Path], object] | None = None  # instead of `run`, to import what it imports before the first fork


@dataclass(frozen=True)
class Attempt:
    """One call that failed, and what came of it."""

    operation: str
    number: int
    error: str
    call: str  # empty: the operation ended before its call of this number
    path: str  # below the directory
    status: int
    said: str
    differs: list[str]  # names of results that are not those of an unbroken run
    status_again: int  # of the next run, in which nothing fails; there is none if all was as in an unbroken run
    said_again: str
    differs_again: list[str]


def library(directory: Path) -> Path | None:
    """The library of SOURCE, compiled; None without a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        return None
    made = directory / "fault_points.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", made, SOURCE, "-ldl"], check=True)
    return made


class Faults:
    """The state that all processes share with the library."""

    def __init__(self, file: Path):
        with file.open("r+b") as opened:
            self._map = mmap.mmap(opened.fileno(), _STATE.size)

    def arm(self, number: int, error: int, below: Path) -> None:
        self._map[: _STATE.size] = _STATE.pack(0, number, error, os.fsencode(below), b"", b"")

    def disarm(self) -> tuple[int, str, str]:
        """Fail nothing from now on; returns how many calls there were, and the call that failed and its path."""
        count, _, _, _, call, path = _STATE.unpack(self._map[: _STATE.size])
        self._map[: _FAIL_AT.size] = _FAIL_AT.pack(0, 0, 0)
        return count, call.split(b"\0")[0].decode(), os.fsdecode(path.split(b"\0")[0])


def attempts(name: str, operation: Operation, directory: Path, sample: tuple[int, int] | None = None) -> Iterator[Attempt]:
    """Try every call, or only `sample`: a seed and the number of faults that it chooses."""
    faults = Faults(Path(os.environ["FAULT_POINTS"]))
    here, template, said = directory / "here", directory / "template", directory / "said.txt"
    project = here / "a project"
    project.mkdir(parents=True)
    (here / "tmp").mkdir()
    os.environ["TMPDIR"] = tempfile.tempdir = str(here / "tmp")
    status, text = _in_a_fork(lambda: operation.prepare(project), project, said)
    assert status == 0, text
    shutil.copytree(project, template, symlinks=True)
    with contextlib.chdir(project), contextlib.redirect_stdout(sys.stderr):
        (operation.warm or operation.run)(project)
    gc.freeze()  # or every fork would search, and so copy, all that was imported

    def run(number: int = -1, error: int = 0) -> tuple[int, str]:
        faults.arm(number, error, here)
        return _in_a_fork(lambda: operation.run(project), project, said)

    def restore() -> None:
        shutil.rmtree(here)
        (here / "tmp").mkdir(parents=True)
        shutil.copytree(template, project, symlinks=True)

    def differing(unbroken: dict[str, str]) -> list[str]:
        found = operation.results(project)
        return sorted(key for key in unbroken.keys() | found.keys() if unbroken.get(key) != found.get(key))

    restore()
    status, text = run()
    count, *_ = faults.disarm()
    assert status == 0, text
    unbroken = operation.results(project)
    assert unbroken
    print(f"{name}: {count} calls", file=sys.stderr, flush=True)
    every = [(number, error) for number in range(1, count + 1) for error in ERRORS]
    if sample:
        seed, size = sample
        pairs = random.Random(seed).sample(every, min(size, len(every)))
    else:
        in_turn = [(number, ERRORS[number % len(ERRORS)]) for number in range(1, count + 1)]
        pairs = in_turn if operation.errors_in_turn else every
        pairs.append((count + 1, errno.EIO))  # beyond the last call, nothing fails
    for number, error in pairs:
        restore()
        status, text = run(number, error)
        _, call, path = faults.disarm()
        differs = differing(unbroken)
        status_again, again = run() if status or differs else (0, "")
        faults.disarm()
        path = path and str(Path(path).relative_to(here))
        came = (call, path, status, text, differs, status_again, again)
        yield Attempt(name, number, errno.errorcode[error], *came, differing(unbroken))


def _in_a_fork(run: Callable[[], object], where: Path, said: Path) -> tuple[int, str]:
    """Its exit status, as Python would end with it, and what it said; of a process that was killed, the negative signal."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(output, stream)
        faulthandler.dump_traceback_later(PATIENCE_SECONDS, exit=True, file=output)
        os.chdir(where)
        status = 1
        try:
            run()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(status)
    _, ended = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(ended), said.read_text(encoding="utf-8", errors="replace")


# The operations


def files(project: Path) -> dict[str, str]:
    """Digests of all files but those with times in them."""
    changing = re.compile(r"mlflow\.db|data/\.work/digests\.sqlite|.*/(lock|pipeline\.lock|cost\.json)$")
    return {name: digest for name, digest in contents(project).items() if not changing.match(name)}


# Stages


TINY = (
    *(".steps=3", ".log_every_steps=2", ".validate_every_steps=3", ".samples_every_steps=null", ".keep_every_steps=2"),
    *(".network.widths=[8,8]", ".network.attention_levels=[]", ".picture.height=16", ".picture.width=16", ".picture.patch=[2,2]"),
)


def prepare_training(project: Path) -> None:
    from tests.stages.families import ROWS, pictures

    (project / "inputs").mkdir(parents=True)
    pictures(project / "inputs", ROWS["ddpm_mel"], None)
    params.write_yaml(ROWS["ddpm_mel"].composed(*TINY), project / "params.yaml")


def train(project: Path) -> None:
    import stages.train
    from tests.stages.of_waves import train_arguments

    stages.train.main(train_arguments("ddpm_mel", project, project / "inputs"))


def prepare_evaluation(project: Path) -> None:
    from tests.stages.test_evaluate import fill, train_tagger, write_params

    train_tagger(project.parent / "tagger")
    fill(project, project.parent / "tagger", count=28)
    write_params(project, bootstrap=2, probe_clips=10, examples=1)


def evaluate(project: Path) -> None:
    from soundmill import stage
    from stages import evaluate
    from tests.stages.test_evaluate import evaluate_arguments

    stage.main(evaluate.run, "evaluate", evaluate_arguments(), code_by_name=evaluate.code_by_name)


def work_alone() -> None:
    """Do everything in this process or a fork of it, with no pool and no uploader beside it.

    What takes most of an attempt's time and writes nothing is left out: drawing in pictures, which stay blank, and most of the
    subsets whose mean is KID.
    """
    import dvc.cli

    from soundmill import drawing
    from soundmill.metrics import pairwise
    from soundmill.shards import run

    os.environ["DVC_NO_ANALYTICS"] = "1"
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):  # to import what DVC imports late
        dvc.cli.main(["init", "--no-scm", "--quiet"])
        dvc.cli.main(["gc", "--workspace", "--force", "--quiet"])
    flows_dvc._run = run_dvc
    run._run_here = run_here
    journal.start = lambda home: None
    os.cpu_count = lambda: 1
    drawing.Figure.draw = lambda self, renderer: None
    pairwise.SUBSETS = 2


def run_dvc(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`dvc` as `flows.dvc` starts it, but as a fork, for a start takes a second."""
    import dvc.cli

    outputs = [os.memfd_create(name) for name in ("stdout", "stderr")]
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 255
        try:
            for stream, output in enumerate(outputs, 1):
                os.dup2(output, stream)
            os.environ |= flows_dvc.environment()
            os.chdir(root)
            status = dvc.cli.main(list(arguments))
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
        os._exit(status)
    _, ended = os.waitpid(child, 0)
    texts = []
    for output in outputs:
        with open(output, encoding="utf-8") as file:
            file.seek(0)
            texts.append(file.read())
    return subprocess.CompletedProcess(["dvc", *arguments], os.waitstatus_to_exitcode(ended), *texts)


# Forgetting


def prepare_forgetting(project: Path) -> None:
    """A project in git, of a recording, a copy of it and another."""
    from tests.stages.handling import external, settle
    from tests.test_forgetting import RATE, make

    os.environ["SOUNDMILL_TRACKING"] = "off"
    rng = np.random.default_rng(0)
    noise, other = (0.1 * rng.standard_normal(RATE * 6) for _ in range(2))
    (project / "sounds").mkdir()
    for name, wave in (("a.wav", noise), ("copy.wav", 0.5 * noise), ("other.wav", other)):
        soundfile.write(project / "sounds" / name, wave, RATE)
    (project / "dvc.yaml").write_text("stages: {}\n")
    (project / ".gitignore").write_text("/data\n/sounds\n")
    ledger.write([], project / ledger.FILE)
    settle(project, corpus=external("sounds"), clips={"default": PLAN | {"tail": "keep"}, "hifi": PLAN | {"clip_seconds": 2.0}})
    git(project, "init", "-q")
    git(project, "add", "-A")
    git(project, "commit", "-qm", "start")
    make()


def forget(project: Path) -> None:
    soundmill("forget", "a.wav", "--reason", "asked for")


def prepare_erasing(project: Path) -> None:
    """Forgotten, and made again without it; a killed stage's scratch and a file of a run still hold it."""
    from tests.test_forgetting import make

    prepare_forgetting(project)
    forget(project)
    make()
    held = project / "data/.work/train/0123"
    held.mkdir(parents=True)
    (held / "last.ckpt").write_bytes(b"weights")
    kept = project / "mlartifacts/1/run/artifacts/sounds"
    kept.mkdir(parents=True)
    shutil.copy(project / "sounds/copy.wav", kept / "another name.wav")


def erase(project: Path) -> None:
    soundmill("forget", "--erase", "--yes")


def soundmill(*words: str) -> None:
    call(commands.app, *words)


@functools.cache
def command(app: typer.Typer) -> typer.core.TyperGroup:
    return typer.main.get_command(app)


def call(app: typer.Typer, *words: str) -> None:
    """Run a command in this process; one that ends well returns."""
    try:
        command(app).main(words, prog_name="soundmill")
    except SystemExit as end:
        if end.code:
            raise


# Tracking


def prepare_journal(project: Path) -> None:
    (project / "params.yaml").write_text("train: {rate: 1e-4}\n")
    (project / "a.wav").write_bytes(b"RIFF")


def record(project: Path) -> None:
    with tracking.stage_run(project, "train/tiny", {"rate": 1e-4}, family="tiny") as run:
        for step in range(3):
            run.log_curve({"loss": 1 / (step + 1)}, step)
        run.log_file(project / "a.wav", "sounds")
        run.log_metrics_tree({"score": 0.5})


def last_journal(project: Path) -> dict[str, str]:
    """The lines and files of the last run, without times and ids."""
    folders = journal.folders(tracking.store(project).journals)
    if not folders:
        return {}
    lines = (folders[-1] / journal.EVENTS).read_text(encoding="utf-8").splitlines()
    found = {f"line {number}": re.sub(r'"time": \d+', "", line) for number, line in enumerate(lines)}
    return found | {name: digest for name, digest in contents(folders[-1]).items() if name != journal.EVENTS}


def prepare_upload(project: Path) -> None:
    from mlflow import MlflowClient

    prepare_journal(project)
    (project / "dvc.yaml").write_text("stages: {}\n")
    record(project)
    MlflowClient(f"sqlite:///{project}/mlflow.db").search_experiments()  # makes the tables, which takes seconds


def warm_upload(project: Path) -> None:
    """In a copy, for MLflow keeps the file open, and every attempt replaces it."""
    with tempfile.TemporaryDirectory() as place:
        copy = shutil.copytree(project, Path(place) / "project")
        with contextlib.chdir(copy):
            upload(copy)


def upload(project: Path) -> None:
    logging.disable()  # what MLflow logs is not said to a user: the uploader has a log of its own
    journal.POLL_SECONDS = 0.0
    journal.start = lambda home: journal.upload(tracking.store(home), idle_seconds=0, try_seconds=0)
    soundmill("sync")


def uploaded(project: Path) -> dict[str, str]:
    """What MLflow has of all runs."""
    with contextlib.closing(sqlite3.connect(project / "mlflow.db")) as store:
        columns = {"runs": "name, status, lifecycle_stage", "metrics": "key, value, step", "params": "key, value", "tags": "key"}
        rows = {table: sorted(map(str, store.execute(f"SELECT {names} FROM {table}"))) for table, names in columns.items()}
    kept = [(Path(name).name, digest) for name, digest in contents(project / "mlartifacts").items()]
    return {table: str(found) for table, found in rows.items()} | {"artifacts": str(sorted(kept))}


# `soundmill run`, before its pipeline


def prepare_run(project: Path) -> None:
    """A project with a workspace, of whose code a file is gone since, another new, and a third changed."""
    prepare_first_run(project)
    (project / "gone.py").write_text("")
    run(project)
    (project / "gone.py").unlink()
    (project / "new.py").write_text("")
    (project / "first.py").write_text((project / "first.py").read_text() + "# changed\n")


def prepare_first_run(project: Path) -> None:
    project.rmdir()
    make_tiny(project)


def run(project: Path) -> None:
    """What `soundmill run` writes itself; a tiny project has no corpus for the rest of it."""
    from flows import checkout

    def make() -> None:
        document = params.read_yaml(project / "params.yaml") | {"families": {"mine": {}}}
        checkout.workspace(project, "mine", document)

    app = typer.Typer(cls=commands.Group, pretty_exceptions_enable=False)
    app.callback()(lambda: None)
    app.command("run")(make)
    call(app, "run")


def workspace(project: Path) -> dict[str, str]:
    found = contents(project / "workspaces/mine")
    return {name: digest for name, digest in found.items() if not name.startswith((".git/", ".dvc/tmp/pipeline.lock"))}


OPERATIONS = {
    "train": Operation(prepare_training, train, files, errors_in_turn=True),
    "evaluate": Operation(prepare_evaluation, evaluate, files, errors_in_turn=True),
    "forget": Operation(prepare_forgetting, forget, files),
    "erase": Operation(prepare_erasing, erase, files, errors_in_turn=True),
    "journal": Operation(prepare_journal, record, last_journal),
    "upload": Operation(prepare_upload, upload, uploaded, errors_in_turn=True, warm=warm_upload),
    "run": Operation(prepare_run, run, workspace),
    "first run": Operation(prepare_first_run, run, workspace),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("operation", choices=OPERATIONS)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--sample", type=int, nargs=2)
    args = parser.parse_args()
    operation = OPERATIONS[args.operation]
    work_alone()
    for attempt in attempts(args.operation, operation, args.directory.resolve(), args.sample):
        print(json.dumps(asdict(attempt)), flush=True)


if __name__ == "__main__":
    main()
