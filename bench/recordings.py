"""Recordings for benchmarks: real ones if available, else the embedded corpus."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from bench.measure import ROOT
from soundmill.errors import UserError

SHARED = ROOT.parent / "shared" / "data" / "esc10"
EXTENSIONS = {".ogg", ".flac", ".wav", ".mp3"}


def find(directory: Path | None, work: Path) -> tuple[list[Path], str]:
    """Recordings in stable order and their description: from `directory`, $SOUNDMILL_BENCH_AUDIO, or ESC-10 next to the checkout,
    else the embedded corpus, written below `work`."""
    place = directory or (Path(named) if (named := os.environ.get("SOUNDMILL_BENCH_AUDIO")) else SHARED)
    if not place.is_dir():
        if place != SHARED:
            raise UserError(f"{place}: no such directory; name one with recordings, or omit the option")
        return embedded(work / "embedded"), "the embedded corpus (no real recordings were found)"
    found = sorted(path for path in place.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    if not found:
        raise UserError(f"{place}: no {', '.join(sorted(EXTENSIONS))} below it")
    return found, f"{len(found)} recordings of {place.name}"


def embedded(directory: Path) -> list[Path]:
    """The recordings of the embedded corpus, written by its stage."""
    from bench.project import Project

    project = Project.make(directory, ["corpus=synthetic"])
    project.run("corpus")
    return sorted((project.root / "data/corpus/audio").rglob("*.*"))


def repeat(recordings: list[Path], count: int, directory: Path) -> None:
    """Write `count` copies of the recordings, in turn, with different names."""
    directory.mkdir(parents=True)
    for index in range(count):
        source = recordings[index % len(recordings)]
        shutil.copyfile(source, directory / f"recording-{index:05d}{source.suffix.lower()}")
