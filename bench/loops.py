"""Loops: how seamless they are, whether their tempo after stretching is detected, and the cost of a training step.

Seam: the fall of the log-mel where the loop wraps, relative to the mean fall within it. A sound that is cut off falls at once, one
that rings on does not. Rises are ignored, because a loop starts with a beat. Measured for generated loops, real loops, and the end
of one real loop joined to the start of another.
Tempo: each loop is stretched to every `--bpm`, and its seam is measured again. Its tempo is then estimated from the onsets of one
bar, between 0.7 and 1.4 times the correct one; the result is the share within 1 %, also for noise. Bars are not repeated, because
repetition alone gives noise a tempo.
Step: wall and CPU seconds and peak memory, in a new process of one thread; the published nets with `--batch-size` items.

python -m bench.loops data/generated/projected_gan data/clips/one_bar --bpm 90 --bpm 128 --bpm 150
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from bench import measure
from bench.recordings import some_clips
from soundmill import params
from soundmill.audio import tempo
from soundmill.audio.mel import log_mel, picture_spec
from soundmill.audio.resample import resample
from soundmill.decoding.stretch import stretch

HOP_SECONDS = 0.008
NEAR = 2  # frames on either side that the seam affects
STEPS = 3  # timed
SIDES = {"laptop": [], "laptop, no projection": ["projected_gan.train.discriminators.projectors=[none]"], "paper": ["scale=paper"]}

Sounds = Iterable[tuple[np.ndarray, int]]  # waves [T] and their rates


def main() -> None:
    parser = measure.parser(__doc__, clips=100)
    parser.add_argument("generated", type=Path, nargs="?", help="directory of WAV files")
    parser.add_argument("real", type=Path, nargs="?", help="directory of clips (data/clips/one_bar)")
    parser.add_argument("--bpm", type=float, action="append", default=[], help="tempo to stretch to; several times")
    parser.add_argument("--batch-size", type=int, default=4, help="items of a step of the published nets (default: 4)")
    args = parser.parse_args()
    results: dict[str, Any] = {}
    if args.real:
        sides = {
            "generated": list(generated(args.generated, args.clips)),
            "real": [(wave.mean(0), rate) for wave, rate in some_clips(args.real, args.clips)],
        }
        results = {name: describe(sounds, args.bpm) for name, sounds in sides.items()}
        results["random cut"] = describe(join_cuts(sides["real"]), args.bpm)
        results["noise"] = describe(noise_like(sides["real"]), args.bpm)
    results["steps"] = {name: step(name, args) for name in SIDES}
    print(json.dumps(results, indent=2))
    args.results.mkdir(parents=True, exist_ok=True)
    (args.results / "loops.json").write_text(json.dumps({**measure.machine(), **results}, indent=2) + "\n", encoding="utf-8")


def generated(directory: Path, count: int) -> Iterator[tuple[np.ndarray, int]]:
    for path in sorted(directory.glob("*.wav"))[:count]:
        wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
        yield wave.mean(1), rate


def join_cuts(sounds: Sounds) -> Iterator[tuple[np.ndarray, int]]:
    """For each two neighbours, the end of the first joined to the start of the second, cut at a random position."""
    rng = np.random.default_rng(0)
    waves = list(sounds)
    for (first, rate), (second, _) in itertools.pairwise(waves):
        place = int(rng.integers(len(first) // 4, 3 * len(first) // 4))
        yield np.concatenate([first[place:], second[:place]]), rate


def noise_like(sounds: Sounds) -> Iterator[tuple[np.ndarray, int]]:
    """White noise of the same lengths."""
    rng = np.random.default_rng(0)
    for wave, rate in sounds:
        yield 0.1 * rng.standard_normal(len(wave)).astype(np.float32), rate


def describe(sounds: Sounds, tempi: list[float]) -> dict[str, Any]:
    audible = [(wave, rate) for wave, rate in sounds if np.abs(wave).max() > 1e-4]
    facts: dict[str, Any] = {"sounds": len(audible), "seam": seams(audible)}
    for bpm in tempi:
        bars = at_tempo(audible, bpm)
        facts[f"{bpm:g} BPM"] = {"seam": seams(bars), "tempo_within_1_percent": share(bars, bpm)}
    return facts


def seams(sounds: Sounds) -> dict[str, float]:
    """Quartiles of `seam`."""
    low, middle, high = np.percentile([seam(wave, rate) for wave, rate in sounds], [25, 50, 75])
    return {"median": round(float(middle), 2), "quartile_low": round(float(low), 2), "quartile_high": round(float(high), 2)}


def seam(wave: np.ndarray, rate: int) -> float:
    """Largest fall of the log-mel where the loop wraps, relative to the mean fall within it."""
    hop = round(HOP_SECONDS * rate)
    size = 2 ** int(np.ceil(np.log2(4 * hop)))
    spec = picture_spec(rate, size, size, hop, 40, 60.0, "none")
    half = len(wave) // 2 // hop * hop
    levels = log_mel(np.roll(wave, half).astype(np.float32), spec)  # moves the seam inside
    levels = np.maximum(levels, levels.max() - 14)  # 60 dB
    changes = np.maximum(-np.diff(levels, axis=1), 0).mean(0)
    place = half // hop
    near = slice(place - NEAR, place + NEAR)
    inside = np.concatenate([changes[NEAR : near.start], changes[near.stop : -NEAR]])
    return float(changes[near].max() / max(inside.mean(), 1e-9))


def at_tempo(sounds: Sounds, bpm: float) -> list[tuple[np.ndarray, int]]:
    """Loops of one bar, stretched to a tempo."""
    return [(stretch(wave[None], rate, round(240 * rate / bpm), "rubberband")[0], rate) for wave, rate in sounds]


def share(bars: Sounds, bpm: float) -> float:
    """Share of bars whose estimated tempo is within 1 % of `bpm`."""
    return round(float(np.mean([abs(found_tempo(wave, rate, bpm) / bpm - 1) < 0.01 for wave, rate in bars])), 3)


def found_tempo(bar: np.ndarray, rate: int, bpm: float) -> float:
    """Tempo of a bar's onsets within half an octave of `bpm`; 0 if there is none."""
    pulse = tempo.Pulse(tempo.onset_strength(resample(bar, rate, tempo.RATE)))
    tempi = bpm / 2**0.5 * tempo.STEP ** np.arange(np.log(2) / np.log(tempo.STEP))
    strengths = pulse.strength(tempi)
    return float(tempi[strengths.argmax()]) if strengths.max() >= tempo.MIN_PULSE else 0.0


def step(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Cost of a training step on noise."""
    batch = [f"projected_gan.train.batch_size={args.batch_size}"] if name == "paper" else []
    return measure.in_fresh_process(_step, [*SIDES[name], "vocoder=griffin_lim", *batch])


def _step(changes: list[str]) -> dict[str, Any]:
    from soundmill.models import registry
    from soundmill.training.loop import rehearse

    document = params.compose(measure.ROOT / "conf", ["model=projected_gan", *changes])
    prepared = registry.family("projected_gan").rehearse(document, 0)
    hardware = prepared.module.params.hardware.model_copy(update={"threads": 1, "accelerator": "cpu"})
    rehearse(prepared.module, prepared.batch, hardware, 1)
    prepared.module.step = 0
    before = time.process_time()
    seconds = rehearse(prepared.module, prepared.batch, hardware, STEPS)
    return {
        "items": prepared.clips,
        "projectors": list(prepared.module.names),  # `random` if weights are unavailable
        "seconds": round(statistics.median(seconds), 2),
        "cpu_seconds": round((time.process_time() - before) / STEPS, 2),
        "peak_megabytes": round(measure.peak_megabytes()),
    }


if __name__ == "__main__":
    main()
