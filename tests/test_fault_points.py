"""Every call that changes a file fails once: a plain error, or success, and the next run ends with the bytes of an unbroken one.

`make attack` tries every call with every error, in long operations with one of them in turn, and prints the table of
docs/orchestration.md; `make test` tries a few of one operation.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import fault_points
from tests.checkouts import BIN
from tests.fault_points import Attempt
from tests.imports import ROOT
from tests.lost_bits import room_in_files

SEED, SAMPLE = 0, 6
OPERATIONS = ("train", "evaluate", "forget", "erase", "journal", "upload", "first run", "run")
REMEDIES = ("run again", "run it again", "nothing is lost")
TOLD = ("not recorded", "could not be", "is recorded, and sent to MLflow later", "was not")  # by what succeeds without a file


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = fault_points.library(tmp_path_factory.mktemp("library"))
    if not made:
        pytest.skip("needs a C compiler (Debian's gcc)")
    return made


def attempts(operation: str, whole: bool, library: Path, directory: Path) -> Iterator[Attempt]:
    with (directory / "state").open("wb") as state:
        state.truncate(2**16)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("SOUNDMILL_", "MLFLOW_", "DVC_EXP_"))},
        "LD_PRELOAD": str(library),
        "FAULT_POINTS": str(directory / "state"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "SOUNDMILL_WEIGHTS": str(directory / "none"),
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "agg",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }
    command = [sys.executable, "-m", "tests.fault_points", operation, str(directory)]
    command += [] if whole else ["--sample", str(SEED), str(SAMPLE)]
    with (directory / "stderr").open("w+") as stderr:
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True) as process:
            for line in process.stdout:
                yield Attempt(**json.loads(line))
        stderr.seek(0)
        assert process.returncode == 0, stderr.read()[-3000:]


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    """Rows of what was tried, which are printed at the end."""
    rows = ["| operation | calls | faults | errors | warned, continued | as if nothing had failed |", "|---|---|---|---|---|---|"]
    yield rows
    print("\n" + "\n".join(rows))


@pytest.mark.parametrize(
    ("operation", "whole"), [("journal", False), *(pytest.param(name, True, marks=pytest.mark.attack) for name in OPERATIONS)]
)
def test_a_call_that_fails(operation: str, whole: bool, library: Path, tmp_path: Path, table: list[str]) -> None:
    tried = list(attempts(operation, whole, library, tmp_path))
    faults = [attempt for attempt in tried if attempt.call]
    assert len(faults) == len(tried) - whole  # beyond the last call, nothing fails
    wrong = [(fault, attempt) for attempt in tried if (fault := fault_of(attempt))]
    assert not wrong, "\n".join(f"{fault}: {attempt}" for fault, attempt in wrong[:5])
    errors = sum(attempt.status for attempt in faults)
    warned = sum(bool(attempt.differs) and not attempt.status for attempt in faults)
    calls = len({attempt.number for attempt in faults})
    assert calls
    table.append(f"| `{operation}` | {calls} | {len(faults)} | {errors} | {warned} | {len(faults) - errors - warned} |")


def fault_of(attempt: Attempt) -> str:
    """What is wrong with what came of it; empty if nothing is."""
    if "Timeout (" in attempt.said + attempt.said_again:  # from faulthandler
        return "it hangs"
    if "Traceback" in attempt.said or "bug in Soundmill" in attempt.said:
        return "a traceback"
    if attempt.status not in (0, 1):
        return "neither success nor an error"
    if attempt.status and not ("/here/" in attempt.said and any(remedy in attempt.said for remedy in REMEDIES)):
        return "an error without the file or the remedy"
    if attempt.differs and not attempt.status and not any(words in attempt.said for words in TOLD):
        return "success without a file, and not a word"
    if attempt.status_again:
        return "the next run fails"
    if attempt.differs_again:
        return "other bytes after the next run"
    if not attempt.call and (attempt.status or attempt.differs):
        return "not what an unbroken run makes"
    return ""


def test_the_library_fails_the_call_it_is_told_to(library: Path, tmp_path: Path) -> None:
    """Without it, the tests above would find nothing wrong."""
    file = tmp_path / "state"
    file.write_bytes(bytes(2**16))
    code = "import pathlib, sys; [pathlib.Path(sys.argv[1], name).write_text('x') for name in '012']"
    faults = fault_points.Faults(file)
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    for directory in (outside, inside):
        directory.mkdir()
        faults.arm(4, 28, inside)  # three files are an `open` and a `write` each
        environment = {**os.environ, "LD_PRELOAD": str(library), "FAULT_POINTS": str(file)}
        done = subprocess.run([sys.executable, "-c", code, directory], env=environment, capture_output=True, text=True)
        assert (done.returncode, "No space left on device" in done.stderr) == ((1, True) if directory == inside else (0, False))
    assert faults.disarm()[1:] == ("write", str(inside / "1"))


def test_a_disk_that_takes_a_part(tmp_path: Path) -> None:
    with room_in_files(3), (tmp_path / "file").open("wb", buffering=0) as file:
        assert file.write(b"four") == 3
        with pytest.raises(OSError, match="File too large"):
            file.write(b"r")
