"""The recordings that are measured on: real ones where there are some, the embedded corpus's otherwise."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from bench.measure import ROOT
from soundmill.errors import UserError

SHARED = ROOT.parent / "shared" / "data" / "esc10"
EXTENSIONS = {".ogg", ".flac", ".wav", ".mp3"}


def find(directory: Path | None, work: Path) -> tuple[list[Path], str]:
    """(recordings in stable order, what they are): of `directory`, of $SOUNDMILL_BENCH_AUDIO, of ESC-10 beside the checkout, else
    made by the embedded corpus, below `work`."""
    place = directory or (Path(named) if (named := os.environ.get("SOUNDMILL_BENCH_AUDIO")) else SHARED)
    if not place.is_dir():
        if place != SHARED:
            raise UserError(f"{place}: no such directory; name one with recordings, or leave it out")
        return embedded(work / "embedded"), "the embedded corpus (no real recordings were found)"
    found = sorted(path for path in place.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    if not found:
        raise UserError(f"{place}: no {', '.join(sorted(EXTENSIONS))} below it")
    return found, f"{len(found)} recordings of {place.name}"


def embedded(directory: Path) -> list[Path]:
    """The embedded corpus's recordings, made by its stage."""
    from bench.project import Project

    project = Project.make(directory, ["corpus=synthetic"])
    project.run("corpus")
    return sorted((project.root / "data/corpus/audio").rglob("*.*"))


def repeat(recordings: list[Path], count: int, directory: Path) -> None:
    """`count` files in `directory`: copies of the recordings, in turn, under names of their own."""
    directory.mkdir(parents=True)
    for index in range(count):
        source = recordings[index % len(recordings)]
        shutil.copyfile(source, directory / f"recording-{index:05d}{source.suffix.lower()}")
