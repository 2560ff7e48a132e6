"""Embedding 5 s clips from files, with random weights, against the implementations that Soundmill's embedders port.

Soundmill does what `soundmill evaluate` does with a folder: decode, resample, measure, embed, store as Parquet, in two processes of
one thread. The originals have two threads and take clips one by one; those of CLAP and Audiobox take as many together as Soundmill.
Loading the net is not included. Memory is compared between all clips and an eighth of them.
"""

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import measure, recordings, references
from bench.measure import ROOT, WORKERS, Target, in_fresh_process, ratio
from soundmill import hashing, pretrained
from soundmill.audio.flac import encode_flac
from soundmill.decoding.decode import read_mono
from soundmill.evaluation import embedders, features
from soundmill.evaluation.embedders import clap, msclap
from soundmill.evaluation.embedders.base import Embedder, Embeddings

SECONDS = 5
YAMNET_RATE = 16_000
LEAST = {"vggish": 3.0, "panns_cnn14_16k": 1.3, "panns_cnn14_32k": 1.3}  # times the original's throughput; 0.8 for others
FILES = {  # small ones that an embedder needs besides its weights
    "clap_music_speech": (references.write_clap_processor, clap.NAME),
    "msclap": (references.write_gpt2_tokenizer, msclap.TOKENIZER),
}


@dataclass(frozen=True)
class TimedEmbedder(features.EmbedderConfig):
    """An embedder with weights at `path` that records when it was loaded, its CPU time since and the peak of its memory."""

    path: Path = Path()
    notes: Path = Path()  # directory with a file of each process

    @property
    def weights(self) -> str:
        return hashing.file_digest(self.path)

    def unavailable(self) -> None:
        return None

    def load(self) -> Embedder:
        net: Embedder = embedders.find(self.name).load(self.path)
        original, note = net.embed, self.notes / uuid.uuid4().hex
        ready, cpu = time.monotonic(), time.process_time()  # monotonic: the same clock in every process

        def embed(waves: Sequence[np.ndarray]) -> Embeddings:
            embeddings = original(waves)
            peak = measure.peak_megabytes()
            note.write_text(json.dumps([ready, time.process_time() - cpu, peak]))
            return embeddings

        net.embed = embed
        return net


def main() -> None:
    parser = measure.parser(__doc__, clips=128, yamnet_clips=512, repetitions=3)
    parser.add_argument("--only", nargs="+", choices=references.PACKAGES, help="these embedders, without yamnet (default: all)")
    parser.add_argument("--memory", action="store_true", help="measure Soundmill's memory only")
    args = parser.parse_args()
    packages = {name: package for name, package in references.PACKAGES.items() if name in (args.only or references.PACKAGES)}
    with measure.workplace(args.work) as place:
        work = Path(place)
        found, what = recordings.find(args.audio, work)
        clips = min(args.clips, len(found))  # a repeated sound would be embedded only once
        recordings.repeat(found, clips, work / "recordings")
        for name in packages:
            if name in FILES:
                write, directory = FILES[name]
                in_fresh_process(write, work / directory)
            in_fresh_process(references.write_random_weights, name, work / f"{name}.pth")
        cpu: dict[str, list[float]] = {}  # of the work, without start and imports
        peaks: dict[str, list[float]] = {}  # megabytes of our largest process, for an eighth of the clips and for all

        def recorded(who: str, function: Callable[..., tuple[float, ...]], *args: Any) -> Callable[[], float]:
            def run() -> float:
                seconds, working, *peak = function(*args)
                cpu.setdefault(who, []).append(working)
                peaks.setdefault(who, []).extend(peak)
                return seconds

            return run

        competitors: dict[str, Callable[[], float]] = {}
        for name in packages:
            for who, function in (("soundmill", ours), (packages[name], theirs))[: 1 if args.memory else 2]:
                which = f"{who}, {name}"
                competitors[which] = recorded(which, function, name, work / f"{name}.pth", work / "recordings")
        rounds = measure.in_turns(competitors, args.repetitions)
        targets = [
            Target(
                f"{name}: against {packages[name]}, from files",
                ratio(rounds.seconds[f"{packages[name]}, {name}"], rounds.seconds[f"soundmill, {name}"]),
                LEAST.get(name, 0.8),
            )
            for name in packages
            if not args.memory
        ]
        (work / "few").mkdir()
        for path in sorted((work / "recordings").iterdir())[: max(2, clips // 8)]:
            os.link(path, work / "few" / path.name)
        for name in packages:
            *_, few = ours(name, work / f"{name}.pth", work / "few")
            many = max(peaks[f"soundmill, {name}"])
            if not args.memory:
                originals = cpu[f"{packages[name]}, {name}"]
                targets.append(Target(f"{name}: the same in CPU seconds", ratio(originals, cpu[f"soundmill, {name}"]), 0.8))
            memory = f"{name}: memory of {clips} clips relative to an eighth of them"
            targets.append(Target(memory, many / few, 1.25, at_least=False))
        more: dict[str, Any] = {}
        yamnet = measure.weights_directory() / embedders.published()["yamnet"].file
        whole = not args.only and not args.memory
        if whole and yamnet.is_file():
            in_fresh_process(write_flac, work / "recordings", args.yamnet_clips, work / "flac")
            alone = measure.in_turns({"yamnet": recorded("yamnet", ours, "yamnet", yamnet, work / "flac")}, args.repetitions)
            rate = args.yamnet_clips / min(alone.seconds["yamnet"])
            targets.append(Target("yamnet: 5 s clips per second, from FLAC at 16 kHz", rate, 250.0, unit="/s"))
            more["yamnet"] = {"clips": args.yamnet_clips, "seconds": alone.seconds["yamnet"]}
        elif whole:
            print(f"yamnet is skipped: missing {yamnet}")
        measure.write(
            "embedding",
            args.results,
            clips,
            rounds.seconds,
            targets,
            recordings=what,
            workers=WORKERS,
            cpu_seconds=rounds.cpu_seconds,
            working_cpu_seconds=cpu,
            **more,
        )


def ours(name: str, net: Path, source: Path) -> tuple[float, float, float]:
    return in_fresh_process(embed, name, net, source)


def embed(name: str, net: Path, source: Path) -> tuple[float, float, float]:
    """Seconds from the first loaded worker until all files of `source` are embedded and stored.

    Also CPU seconds of all workers, and megabytes of the largest one.
    """
    os.environ[pretrained.VARIABLE] = str(source.parent)  # where the small files of CLAPs are
    with measure.workplace(source.parent) as place:
        notes = Path(place) / "notes"
        notes.mkdir()
        sounds = [features.file(path.stem, path, hashing.file_digest(path)) for path in sorted(source.iterdir())]
        features.embed_all([TimedEmbedder(name, path=net, notes=notes)], sounds, Path(place) / "cache", WORKERS)
        end = time.monotonic()
        ready, cpu, peaks = zip(*(json.loads(path.read_text()) for path in notes.iterdir()), strict=True)
        return end - min(ready), sum(cpu), max(peaks)


def theirs(name: str, _: Path, source: Path) -> tuple[float, float]:
    command = [sys.executable, "-m", "bench.references", name, str(source)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(WORKERS)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    seconds, cpu = map(float, done.stdout.split())
    return seconds, cpu


def write_flac(source: Path, count: int, target: Path) -> None:
    """Write `count` different 5 s clips at 16 kHz, from the recordings in turn."""
    target.mkdir()
    waves = [np.resize(read_mono(path, YAMNET_RATE, 3600), SECONDS * YAMNET_RATE) for path in sorted(source.iterdir())]
    for index in range(count):
        wave = np.roll(waves[index % len(waves)], index)
        (target / f"clip-{index:05d}.flac").write_bytes(encode_flac(wave, YAMNET_RATE))


if __name__ == "__main__":
    main()
