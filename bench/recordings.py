"""Recordings for benchmarks: real ones if available, else the embedded corpus."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bench.measure import ROOT
from soundmill import manifest
from soundmill.errors import UserError
from soundmill.models.catalog import choose_by_hash, waves_of
from soundmill.shards import read_rows, shard_paths

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


def some_clips(clips: Path, count: int) -> Iterator[tuple[np.ndarray, int]]:
    """(wave [C, T], rate) of at most `count` clips of a directory of shards, chosen by hash."""
    ids = [row["clip_id"] for path in shard_paths(clips) for row in read_rows(path, manifest.CLIPS, ["clip_id"])]
    for _, sound in waves_of(clips, set(choose_by_hash(ids, count))):
        yield sound


def repeat(recordings: list[Path], count: int, directory: Path) -> None:
    """Write `count` copies of the recordings, in turn, with different names."""
    directory.mkdir(parents=True)
    for index in range(count):
        source = recordings[index % len(recordings)]
        shutil.copyfile(source, directory / f"recording-{index:05d}{source.suffix.lower()}")
