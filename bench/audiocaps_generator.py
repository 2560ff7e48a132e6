"""A corpus as large as AudioCaps to measure with: its real ids, starts and captions over made sounds, each id's its own.

`python -m bench.audiocaps_generator --captions ../shared/data/audiocaps --output DIR --count 50000`
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import math
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from soundmill.errors import UserError

RATE = 22_050
NOTES = 6
FILES_AT_ONCE = 250


@dataclass(frozen=True)
class Clip:
    """Ten seconds of a video, and which csv it is in."""

    table: str
    youtube_id: str
    start: int
    captions: tuple[tuple[str, str], ...]  # audiocap_id, text

    @property
    def choice(self) -> int:
        """A number that is the clip's own, for everything that is chosen about it."""
        return int.from_bytes(hashlib.blake2b(f"{self.youtube_id} {self.start}".encode(), digest_size=8).digest(), "big")

    @property
    def path(self) -> str:
        """Its file under one of the names in use; half of the files are FLAC, three of eight WAV, one of eight Ogg Vorbis."""
        extension = ("ogg", "wav", "wav", "wav", "flac", "flac", "flac", "flac")[self.choice % 8]
        name, start = self.youtube_id, self.start
        stem = (f"{name}_{start}", f"Y{name}_{start}", f"{name}_{start}.000_{start + 10}.000")[self.choice // 8 % 3]
        return f"{self.choice // 24 % 100:02d}/{stem}.{extension}"


def read_clips(captions: Path) -> list[Clip]:
    """Every clip of AudioCaps' train, val and test csv in an order that mixes them, so that a prefix is a smaller AudioCaps."""
    rows: dict[tuple[str, str, int], list[tuple[str, str]]] = {}
    for table in ("train", "val", "test"):
        path = captions / f"{table}.csv"
        if not path.is_file():
            raise UserError(
                f"{path}: no such file; name the directory of AudioCaps' train.csv, val.csv and test.csv with --captions"
            )
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                key = table, row["youtube_id"], int(row["start_time"])
                rows.setdefault(key, []).append((row["audiocap_id"], row["caption"]))
    clips = [Clip(*key, tuple(captions)) for key, captions in rows.items()]
    return sorted(clips, key=lambda clip: (clip.choice, clip.table))


def generate(clips: list[Clip], directory: Path, seconds: float, workers: int) -> None:
    """Write the audio of `clips` below `directory`; what is there stays, so that a corpus can be made to grow."""
    for folder in {os.path.dirname(clip.path) for clip in clips}:
        (directory / folder).mkdir(parents=True, exist_ok=True)
    parts = [clips[start : start + FILES_AT_ONCE] for start in range(0, len(clips), FILES_AT_ONCE)]
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        for future in [pool.submit(write_sounds, part, directory, seconds) for part in parts]:
            future.result()


def write_tables(clips: list[Clip], directory: Path) -> None:
    """Write the rows of `clips` as AudioCaps' csv files."""
    directory.mkdir(parents=True, exist_ok=True)
    for table in ("train", "val", "test"):
        with (directory / f"{table}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["audiocap_id", "youtube_id", "start_time", "caption"])
            for clip in clips:
                if clip.table == table:
                    writer.writerows([number, clip.youtube_id, clip.start, caption] for number, caption in clip.captions)


def write_sounds(clips: list[Clip], directory: Path, seconds: float) -> None:
    import soundfile

    for clip in clips:
        subtype = "VORBIS" if clip.path.endswith(".ogg") else "PCM_16"
        soundfile.write(directory / clip.path, sound(clip.choice, seconds), RATE, subtype=subtype)


def sound(choice: int, seconds: float) -> np.ndarray:
    """Gliding notes that fade, over faint noise, float32 [T]: pitches, times and glides drawn by `choice`, so that no two of
    many thousand sounds share a landmark by more than chance."""
    rng = np.random.default_rng(choice)
    count = round(seconds * RATE)
    wave = rng.standard_normal(count, dtype=np.float32) * np.float32(2e-3)
    for _ in range(max(NOTES, round(NOTES * seconds))):
        begin = int(rng.integers(0, count * 7 // 8))
        length = int(rng.uniform(0.1, 0.5) * RATE)
        time = np.arange(min(length, count - begin), dtype=np.float32) / np.float32(RATE)
        pitch = math.exp(rng.uniform(math.log(150), math.log(7000)))
        glide = rng.uniform(-0.5, 0.5) * pitch
        phase = np.float32(2 * math.pi) * (np.float32(pitch) * time + np.float32(glide / 2) * time * time)
        wave[begin : begin + len(time)] += np.float32(rng.uniform(0.05, 0.15)) * np.sin(phase) * np.exp(time * np.float32(-6))
    return wave


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=Path, required=True, help="directory of AudioCaps' csv files")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of every sound (default: 1)")
    args = parser.parse_args()
    clips = read_clips(args.captions)[: args.count]
    write_tables(clips, args.output)
    generate(clips, args.output, args.seconds, os.cpu_count() or 1)


if __name__ == "__main__":
    main()
