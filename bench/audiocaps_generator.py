"""A corpus of AudioCaps' size for benchmarks: its real ids, start times and captions, with a different generated sound for each.

`--form synthetic`: synthetic sounds. The other forms mix four recordings at other speeds, which gives realistic sounds, files and
rates: `ogg` is mono Ogg Vorbis at 44.1 kHz, as in ESC-50; `youtube` is what a download of AudioCaps gives: stereo at 128 kbit/s,
half AAC in m4a at 44.1 kHz, half Opus in webm at 48 kHz.

`python -m bench.audiocaps_generator --captions ../shared/data/audiocaps --output DIR --count 50000`
"""

import argparse
import csv
import functools
import hashlib
import math
import os
import subprocess
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import numpy as np

from bench.recordings import find
from soundmill.decoding.ffmpeg import ffmpeg_executable
from soundmill.errors import UserError

Form = Literal["synthetic", "ogg", "youtube"]

RATE = 22_050
NOTES = 6
RECORDED_RATE = 44_100
LAYERS = 4  # recordings mixed into one sound
SPEEDS = 0.5, 2.0
MAX_RECORDINGS = 500  # decoded in the memory of each worker
FILES_AT_ONCE = 250
CODED = {"m4a": ["-c:a", "aac", "-aac_coder", "fast"], "webm": ["-c:a", "libopus"]}


@dataclass(frozen=True)
class AudioCapsClip:
    """Ten seconds of a video, with its captions and its CSV file."""

    table: str
    youtube_id: str
    start: int
    captions: tuple[tuple[str, str], ...]  # audiocap_id, text

    @property
    def choice(self) -> int:
        """A pseudo-random number that determines everything random about the clip."""
        return int.from_bytes(hashlib.blake2b(f"{self.youtube_id} {self.start}".encode(), digest_size=8).digest(), "big")

    def path(self, form: Form = "synthetic") -> str:
        """Path of its file, in one of three naming schemes. Of synthetic sounds half are FLAC, three eighths WAV, the rest Ogg."""
        synthetic = ("ogg", "wav", "wav", "wav", "flac", "flac", "flac", "flac")[self.choice % 8]
        extension = {"synthetic": synthetic, "ogg": "ogg", "youtube": ("m4a", "webm")[self.choice % 2]}[form]
        name, start = self.youtube_id, self.start
        stem = (f"{name}_{start}", f"Y{name}_{start}", f"{name}_{start}.000_{start + 10}.000")[self.choice // 8 % 3]
        return f"{self.choice // 24 % 100:02d}/{stem}.{extension}"


def read_clips(captions: Path) -> list[AudioCapsClip]:
    """All clips of AudioCaps' train, val and test CSV, shuffled, so that a prefix is a smaller AudioCaps."""
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
    clips = [AudioCapsClip(*key, tuple(captions)) for key, captions in rows.items()]
    return sorted(clips, key=lambda clip: (clip.choice, clip.table))


def generate(
    clips: list[AudioCapsClip],
    directory: Path,
    seconds: float,
    workers: int,
    recordings: tuple[Path, ...] = (),
    form: Form = "synthetic",
) -> None:
    """Write the audio of `clips` below `directory`; existing files stay, so that a corpus can grow."""
    if form != "synthetic" and len(recordings) < LAYERS:
        raise UserError(f"{len(recordings)} recordings are too few to mix; at least {LAYERS} are needed")
    recordings = recordings[:MAX_RECORDINGS]
    clips = [clip for clip in clips if not (directory / clip.path(form)).exists()]
    for folder in {os.path.dirname(clip.path()) for clip in clips}:
        (directory / folder).mkdir(parents=True, exist_ok=True)
    parts = [clips[start : start + FILES_AT_ONCE] for start in range(0, len(clips), FILES_AT_ONCE)]
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        for future in [pool.submit(write_sounds, part, directory, seconds, recordings, form) for part in parts]:
            future.result()


def write_tables(clips: list[AudioCapsClip], directory: Path) -> None:
    """Write `clips` as AudioCaps' CSV files."""
    directory.mkdir(parents=True, exist_ok=True)
    for table in ("train", "val", "test"):
        with (directory / f"{table}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["audiocap_id", "youtube_id", "start_time", "caption"])
            for clip in clips:
                if clip.table == table:
                    writer.writerows([number, clip.youtube_id, clip.start, caption] for number, caption in clip.captions)


def write_sounds(clips: list[AudioCapsClip], directory: Path, seconds: float, recordings: tuple[Path, ...], form: Form) -> None:
    for clip in clips:
        path = clip.path(form)
        extension = path.rpartition(".")[2]
        partial = directory / f"{path}.partial"
        if form == "synthetic":
            _write(partial, extension, sound(clip.choice, seconds), RATE)
        elif form == "ogg":
            _write(partial, extension, mixed(_waves(recordings), clip.choice, seconds)[:, 0], RECORDED_RATE)
        else:
            _encode(partial, extension, mixed(_waves(recordings), clip.choice, seconds, channels=2))
        partial.rename(directory / path)


def _write(path: Path, extension: str, wave: np.ndarray, rate: int) -> None:
    import soundfile

    soundfile.write(path, wave, rate, format=extension.upper(), subtype="VORBIS" if extension == "ogg" else "PCM_16")


def _encode(path: Path, extension: str, wave: np.ndarray) -> None:
    """Encode float32 [T, 2] as one of CODED; Opus always has 48 kHz."""
    read = ["-f", "f32le", "-ar", str(RECORDED_RATE), "-ac", "2", "-i", "pipe:0"]
    write = [*CODED[extension], "-b:a", "128k", "-f", {"m4a": "ipod"}.get(extension, extension), f"file:{path}"]
    command = [ffmpeg_executable(), "-nostdin", "-loglevel", "error", "-threads", "1", "-y", *read, *write]
    subprocess.run(command, input=wave.tobytes(), check=True)


@functools.cache
def _waves(recordings: tuple[Path, ...]) -> list[np.ndarray]:
    """The recordings, mono float32 [T] at RECORDED_RATE."""
    import soundfile
    import soxr

    waves = []
    for path in recordings:
        wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
        waves.append(soxr.resample(wave.mean(axis=1), rate, RECORDED_RATE))
    return waves


def mixed(waves: list[np.ndarray], choice: int, seconds: float, channels: int = 1) -> np.ndarray:
    """A mix of LAYERS recordings, each with random start, speed, level and panning, seeded by `choice`; float32 [T, channels]."""
    rng = np.random.default_rng(choice)
    count = round(seconds * RECORDED_RATE)
    total = np.zeros((count, channels), np.float32)
    for number in rng.choice(len(waves), LAYERS, replace=False):
        source = waves[number]
        speed = math.exp(rng.uniform(*map(math.log, SPEEDS)))
        places = (rng.uniform(0, len(source)) + speed * np.arange(count)) % (len(source) - 1)
        before = places.astype(np.int64)
        part = (places - before).astype(np.float32)
        layer = source[before] * (1 - part) + source[before + 1] * part
        layer *= np.float32(rng.uniform(0.5, 1.0) / max(1e-3, float(np.abs(layer).max())))
        shares = [1.0] if channels == 1 else [place := rng.uniform(0, 1), 1 - place]
        for channel, share in enumerate(shares):
            total[:, channel] += layer * np.float32(share)
    return total * np.float32(0.9 / max(1e-3, float(np.abs(total).max())))


def sound(choice: int, seconds: float) -> np.ndarray:
    """Decaying glides over faint noise, seeded by `choice`, so that even among many thousand sounds landmarks agree only by
    chance; float32 [T]."""
    rng = np.random.default_rng(choice)
    count = round(seconds * RATE)
    wave = rng.standard_normal(count, dtype=np.float32) * np.float32(2e-3)
    for _ in range(max(NOTES, round(NOTES * seconds))):
        start = int(rng.integers(0, count * 7 // 8))
        length = int(rng.uniform(0.1, 0.5) * RATE)
        time = np.arange(min(length, count - start), dtype=np.float32) / np.float32(RATE)
        pitch = math.exp(rng.uniform(math.log(150), math.log(7000)))
        glide = rng.uniform(-0.5, 0.5) * pitch
        phase = np.float32(2 * math.pi) * (np.float32(pitch) * time + np.float32(glide / 2) * time * time)
        wave[start : start + len(time)] += np.float32(rng.uniform(0.05, 0.15)) * np.sin(phase) * np.exp(time * np.float32(-6))
    return wave


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=Path, required=True, help="directory of AudioCaps' CSV files")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of every sound (default: 1)")
    parser.add_argument(
        "--form", choices=Form.__args__, default="synthetic", help="kind of sounds and files (default: %(default)s)"
    )
    parser.add_argument("--audio", type=Path, help="directory of recordings to mix (default: see bench/recordings.py)")
    args = parser.parse_args()
    clips = read_clips(args.captions)[: args.count]
    write_tables(clips, args.output)
    recordings = () if args.form == "synthetic" else tuple(find(args.audio, args.output)[0])
    generate(clips, args.output, args.seconds, os.cpu_count() or 1, recordings, args.form)


if __name__ == "__main__":
    main()
