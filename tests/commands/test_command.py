"""What every command keeps to: help, files that cannot be written, faults of the disk; and what `soundmill doctor` says."""

import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

from soundmill import commands
from soundmill.commands import doctor
from tests.commands.running import ROOT, refused, works
from tests.mlflow_server import free_port


def commands_in(group: typer.core.TyperGroup) -> list[tuple[str, ...]]:
    """Every command by its words: ("clips", "list")."""
    found = []
    for name, command in group.commands.items():
        below = commands_in(command) if isinstance(command, typer.core.TyperGroup) else [()]
        found += [(name, *words) for words in below]
    return found


def test_help_teaches(root):
    done = works("--help", cwd=root)
    every = commands_in(typer.main.get_command(commands.app))
    assert {("doctor",), ("generate",), ("evaluate",), ("clips", "list"), ("corpus", "check"), ("weights", "fetch")} <= set(every)
    for words in every:
        assert words[0] in done.stdout
        about = CliRunner().invoke(commands.app, [*words, "--help"])
        assert about.exit_code == 0
        first_line = about.output.partition("Usage:")[2].strip().splitlines()[2]
        assert len(first_line.split()) > 3, f"{words} does not say what it does"


def test_a_file_that_cannot_be_written_is_refused_before_the_work(root, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "a.wav").write_text("")
    for arguments in (["families"], ["evaluate", "a", "b"], ["compare", "a", "b", "c"], ["corpus", "duplicates", "a"]):
        for wrong, said in (
            (tmp_path / "file" / "out.json", "can be written"),
            (tmp_path, "a directory"),
            (tmp_path / ("x" * 245), "File name too long"),
            (tmp_path / "a.wav", "a recording"),
        ):
            done = CliRunner().invoke(commands.app, [*arguments, "--json", str(wrong)])
            assert done.exit_code == 2
            assert said in " ".join(done.output.replace("│", " ").split())


def test_candidates_without_a_card_are_refused():
    assert "--candidates: only for --card" in refused("evaluate", "a", "b", "--candidates", "3", cwd=ROOT)


def test_a_device_that_is_full_is_named():
    assert refused("families", "--json", "/dev/full", cwd=ROOT) == "no space left for /dev/full; free some and run again\n"


def test_a_directory_that_was_deleted_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    assert CliRunner().invoke(commands.app, ["families"]).output == "this directory was deleted; cd into another one\n"


def test_a_half_file_of_weights_is_not_listed_as_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(tmp_path))
    (tmp_path / "yamnet.tflite").write_bytes(b"half")
    assert "!!  yamnet" in CliRunner().invoke(commands.app, ["weights", "list"]).output


def test_verifying_no_weights_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(tmp_path))
    done = CliRunner().invoke(commands.app, ["weights", "verify"])
    assert (done.exit_code, done.output) == (0, f"none in {tmp_path}; `soundmill weights fetch` downloads them\n")


def test_a_switched_off_store_is_not_said_to_keep_runs(root, monkeypatch):
    from soundmill.commands.doctor import _tracking

    monkeypatch.setenv("SOUNDMILL_TRACKING", "off")
    assert _tracking(root).remedy == "until then no run is recorded"
    assert "unset it to record runs" in refused("sync", cwd=root)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ((28, "No space left on device", "/in.wav", None, "/out.wav"), "no space left for /out.wav; free some and run again\n"),
        ((5, "Input/output error", "/out.wav"), "Input/output error (/out.wav); fix it and run again\n"),
    ],
)
def test_a_fault_of_the_disk_is_told_in_a_line(monkeypatch, fault, said):
    def fail(*_: object, **__: object) -> None:
        raise OSError(*fault)

    monkeypatch.setattr("soundmill.models.registry.describe", fail)
    done = CliRunner().invoke(commands.app, ["families"])
    assert done.exit_code == 1
    assert done.output == said


@pytest.mark.parametrize(("encoding", "shown"), [("iso-8859-1", "Kröte lód? ... -> 1/2"), ("ascii", "Krote lod? ... -> 1/2")])
def test_a_terminal_shows_what_its_character_set_can(tmp_path, encoding, shown):
    script = "from soundmill.errors import *; show_what_the_terminal_can(); print('Kröte łód鸟 … → ½')"
    variables = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=variables, capture_output=True, check=True)
    assert done.stdout.decode(encoding).strip() == shown.replace("1/2", "½" if encoding == "iso-8859-1" else "1?2")
    listed = subprocess.run([sys.executable, "-m", "soundmill", "families"], cwd=ROOT, env=variables, capture_output=True)
    assert (listed.returncode, b"Schneider" in listed.stdout) == (0, True), listed.stderr


def test_a_disk_that_is_full_is_named(tmp_path, monkeypatch):
    cache = tmp_path / ".dvc" / "cache"  # on another disk than the project
    cache.mkdir(parents=True)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=2e9 if place == cache else 50e9))
    assert (doctor._disk(tmp_path).state, doctor._disk(tmp_path).detail) == ("lacking", "2.0 GB free")
    assert doctor._temporary(tmp_path).state == "ok"
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=0.5e9))
    temporary = doctor._temporary(tmp_path)
    assert (temporary.state, temporary.remedy) == ("optional", "free some space, or set TMPDIR to another disk")


def test_a_server_that_does_not_answer_is_no_traceback_and_no_password():
    (finding,) = doctor._compared("MLflow", f"http://team:secret@127.0.0.1:{free_port()}/version", ("", ""), "…")
    assert (finding.name, finding.state) == ("MLflow", "optional")
    assert "secret" not in finding.detail
