"""A full disk and a directory that cannot be written: the stage says so, leaves no half output, and a rerun completes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from soundmill import params, stage
from stages import resample, scan, segment

PORTS = {
    "scan": ["--corpus", "data/corpus"],
    "segment": ["--variant", "default", "--corpus", "data/corpus", "--segments", "data/segments.parquet"],
    "resample": ["--variant", "default", "--corpus", "data/corpus", "--segments", "data/segments.parquet", "--clips", "data/clips"],
}
STAGES = {"scan": scan, "segment": segment, "resample": resample}
SECTIONS = {"scan": "corpus", "segment": "clips", "resample": "clips"}
LARGE, SMALL = "64m", "1m"  # of the clips' 4 MB, the small one holds a part

pytestmark = pytest.mark.slow


@pytest.fixture
def project(root: Path, tmp_path: Path) -> Path:
    """A corpus of noise, which no codec makes smaller, and the real parameters."""
    rng = np.random.default_rng(0)
    (tmp_path / "corpus").mkdir()
    for number in range(24):
        noise = rng.uniform(-0.5, 0.5, 5 * 16_000).astype(np.float32)
        soundfile.write(tmp_path / f"corpus/noise-{number}.wav", noise, 16_000)
    project = tmp_path / "project"
    (project / "data").mkdir(parents=True)
    document = params.compose(
        root / "conf", ["corpus=folder", "corpus.shards=4", "execution.workers=1", f"corpus.path={tmp_path / 'corpus'}"]
    )
    params.write_yaml(document, project / "params.yaml")
    return project


@pytest.fixture
def small_disk(project: Path) -> Iterator[Callable[[str], None]]:
    """The project's `data` on a file system of its own; called with mount options, it changes them."""

    def remount(options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", data], check=True, capture_output=True)

    data = str(project / "data")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={LARGE}", "tmpfs", data], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        yield remount
    finally:
        subprocess.run(["umount", "-l", data], check=True)


def run(project: Path, root: Path, name: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", f"stages.{name}", *PORTS[name], *kept(name)]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=120)


def finish(project: Path, *names: str) -> None:
    """In this process: only what fails is to be seen as a person sees it."""
    for name in names:
        with contextlib.chdir(project):
            stage.main(STAGES[name].run, SECTIONS[name], [*PORTS[name], *kept(name)])


def kept(name: str) -> list[str]:
    return ["--metrics", f"data/metrics/{name}.json", "--quarantine", f"data/quarantine/{name}.parquet"]


def clips_of(project: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((project / "data/clips").glob("*"))}


def test_a_full_disk_is_named_and_a_rerun_with_room_completes(project, root, small_disk):
    finish(project, "scan", "segment")
    small_disk(f"size={SMALL}")
    failed = run(project, root, "resample")
    assert failed.returncode == 1
    assert f"resample: no space left for {(project / 'data').resolve()}" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert "run again" in failed.stderr
    assert not (project / "data/clips").exists()
    assert not (project / "data/metrics/resample.json").exists()

    small_disk(f"size={LARGE}")
    finish(project, "resample")
    mended = clips_of(project)
    assert json.loads((project / "data/metrics/resample.json").read_text())["clips"] == 24
    for path in (project / "data/clips").glob("*"):
        path.unlink()
    finish(project, "resample")
    assert clips_of(project) == mended


def test_a_directory_that_cannot_be_written_is_named(project, root, small_disk):
    finish(project, "scan", "segment")
    small_disk("ro")
    failed = run(project, root, "resample")
    assert failed.returncode == 1
    assert "Read-only file system" in failed.stderr
    assert "data" in failed.stderr
    assert "Traceback" not in failed.stderr
    small_disk("rw")
    finish(project, "resample")
    assert len(clips_of(project)) == 4
