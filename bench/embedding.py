"""Embeddings of 5 s clips from files, at random weights of the real architectures, beside the implementations ours are ports of.

Ours is what `soundmill evaluate` does of a folder: decode, resample, measure, embed, keep as Parquet, in two processes of one
thread. The others go clip by clip, as their own code does, with two threads. Both are timed from when the net is there.
"""

from __future__ import annotations

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
from soundmill import pretrained, shards
from soundmill.audio.flac import encode_flac
from soundmill.decoding.decode import read_mono
from soundmill.evaluation import embedders, features
from soundmill.evaluation.embedders.base import Embedder, Embeddings

SECONDS = 5
YAMNET_RATE = 16_000
YAMNET = ROOT.parent / "shared" / "models"


@dataclass(frozen=True)
class Bench(features.EmbedderConfig):
    """An embedder whose weights lie at `path`, and that notes when it was ready and what processor time it has taken since."""

    path: Path = Path()
    notes: Path = Path()  # directory with one of each process

    @property
    def weights(self) -> str:
        return pretrained.digest(self.path)

    def unavailable(self) -> None:
        return None

    def load(self) -> Embedder:
        from soundmill.evaluation.embedders import panns, vggish, yamnet

        made: dict[str, Callable[[Path], Embedder]] = {"vggish": vggish.VggishEmbedder, "yamnet": yamnet.YamnetEmbedder}
        net = made[self.name](self.path) if self.name in made else panns.Cnn14Embedder(self.name, self.path)
        heard, note = net.embed, self.notes / uuid.uuid4().hex
        ready, cpu = time.monotonic(), time.process_time()  # the first is of the machine, the same in every process

        def embed(waves: Sequence[np.ndarray]) -> Embeddings:
            found = heard(waves)
            note.write_text(json.dumps([ready, time.process_time() - cpu]))
            return found

        net.embed = embed
        return net


def main() -> None:
    args = measure.parser(__doc__, clips=128, yamnet_clips=512, repetitions=3).parse_args()
    with measure.workplace(args.work) as place:
        work = Path(place)
        found, what = recordings.find(args.audio, work)
        clips = min(args.clips, len(found))  # a sound that is there twice would be embedded once
        recordings.repeat(found, clips, work / "recordings")
        for name in references.PACKAGES:
            in_fresh_process(references.write_random_weights, name, work / f"{name}.pth")
        cpu: dict[str, list[float]] = {}  # of the work alone

        def noted(who: str, function: Callable[..., tuple[float, float]], *args: Any) -> Callable[[], float]:
            def run() -> float:
                seconds, working = function(*args)
                cpu.setdefault(who, []).append(working)
                return seconds

            return run

        competitors: dict[str, Callable[[], float]] = {}
        for name in references.PACKAGES:
            for who, function in (("soundmill", ours), (references.PACKAGES[name], theirs)):
                which = f"{who}, {name}"
                competitors[which] = noted(which, function, name, work / f"{name}.pth", work / "recordings")
        rounds = measure.in_turns(competitors, args.repetitions)
        targets = [
            Target(
                f"{name}: against {references.PACKAGES[name]}, from files",
                ratio(rounds.seconds[f"{references.PACKAGES[name]}, {name}"], rounds.seconds[f"soundmill, {name}"]),
                3.0 if name == "vggish" else 1.3,
            )
            for name in references.PACKAGES
        ]
        more: dict[str, Any] = {}
        yamnet = Path(os.environ.get(pretrained.VARIABLE) or YAMNET) / embedders.published()["yamnet"].file
        if yamnet.is_file():
            in_fresh_process(write_flac, work / "recordings", args.yamnet_clips, work / "flac")
            alone = measure.in_turns({"yamnet": noted("yamnet", ours, "yamnet", yamnet, work / "flac")}, args.repetitions)
            rate = args.yamnet_clips / min(alone.seconds["yamnet"])
            targets.append(Target("yamnet: five-second clips a second, from FLAC of 16 kHz", rate, 250.0, unit="/s"))
            more["yamnet"] = {"clips": args.yamnet_clips, "seconds": alone.seconds["yamnet"]}
        else:
            print(f"yamnet is left out: no {yamnet}")
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


def ours(name: str, net: Path, source: Path) -> tuple[float, float]:
    return in_fresh_process(embed, name, net, source)


def embed(name: str, net: Path, source: Path) -> tuple[float, float]:
    """Seconds from the first worker that was ready until all files of `source` are embedded and kept; the workers' CPU seconds."""
    with measure.workplace(source.parent) as place:
        notes = Path(place) / "notes"
        notes.mkdir()
        sounds = [features.file(path.stem, path, shards.file_digest(path)) for path in sorted(source.iterdir())]
        features.embed_all([Bench(name, path=net, notes=notes)], sounds, Path(place) / "cache", WORKERS)
        end = time.monotonic()
        ready, cpu = zip(*(json.loads(path.read_text()) for path in notes.iterdir()), strict=True)
        return end - min(ready), sum(cpu)


def theirs(name: str, net: Path, source: Path) -> tuple[float, float]:
    command = [sys.executable, "-m", "bench.references", name, str(net), str(source)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(WORKERS)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    seconds, cpu = map(float, done.stdout.split())
    return seconds, cpu


def write_flac(source: Path, count: int, target: Path) -> None:
    """`count` different clips of five seconds at 16 kHz, made of the recordings in turn."""
    target.mkdir()
    waves = [np.resize(read_mono(path, YAMNET_RATE, 3600), SECONDS * YAMNET_RATE) for path in sorted(source.iterdir())]
    for index in range(count):
        wave = np.roll(waves[index % len(waves)], index)
        (target / f"clip-{index:05d}.flac").write_bytes(encode_flac(wave, YAMNET_RATE))


if __name__ == "__main__":
    main()
