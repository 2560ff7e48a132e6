"""The embedded corpus of loops: drums, basses and chords in 4/4 of known tempo, given by file names, lengths, or not at all.

Everything follows from the seed: `plan` describes each file, `render` makes its sound.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from soundmill import csv_files, disk, shards
from soundmill.corpora.sounds import add, band, decay, noise, oscillator, time_axis
from soundmill.corpora.synthetic import CONTAINERS, encode
from soundmill.errors import UserError

SLOWEST, FASTEST = 84.0, 156.0  # beats a minute
STEPS = 16  # per bar
SWING = 0.04  # of a step: largest delay of a hit
# Of each ten loops four have the tempo in their name, three have whole bars only, two are cut anywhere, and one has whole bars and
# a wrong tempo in its name.
TEMPO_HINTS: tuple[Literal["named", "whole", "loose", "wrong"], ...] = (
    "named", "whole", "loose", "named", "whole", "named", "loose", "whole", "named", "wrong",
)  # fmt: skip
WRONG = (0.77, 0.83, 1.19, 1.29)  # times the tempo: neither octaves nor fractions of a beat

Hit = Callable[[float], np.ndarray]  # strength → sound [T]


@dataclass(frozen=True)
class Loop:
    """The plan of one file."""

    index: int
    split: str
    label: str
    hint: str  # of TEMPO_HINTS
    name: str
    extension: str
    rate: int
    channels: int
    bpm: float
    bars: int  # whole bars
    lead: float  # seconds before the first
    rest: float  # beats after the last
    level: float  # dBFS of the loudest sample

    @property
    def seconds(self) -> float:
        return self.lead + (4 * self.bars + self.rest) * 60 / self.bpm


def plan(recordings: int, valid_fraction: float, test_fraction: float, seed: int) -> list[Loop]:
    """Plan the corpus: equally many loops of each label, and the same split shares for each label."""
    of_label = recordings // len(PATTERNS)
    held_out = {"valid": round(of_label * valid_fraction), "test": round(of_label * test_fraction)}
    if of_label - sum(held_out.values()) < 1 or not all(held_out.values()):
        raise UserError(
            f"corpus.recordings: {recordings} are {of_label} of each label, {held_out['valid']} of them for validation and "
            f"{held_out['test']} for the test: each split needs one; raise it, or change the fractions"
        )
    rng = np.random.default_rng([seed, 0])
    planned = []
    for index in range(recordings):
        label, number = list(PATTERNS)[index % len(PATTERNS)], index // len(PATTERNS)
        split = "test" if number < held_out["test"] else "valid" if number < sum(held_out.values()) else "train"
        hint = TEMPO_HINTS[(index + number) % len(TEMPO_HINTS)]
        container = CONTAINERS[int(rng.integers(len(CONTAINERS)))]
        bars, lead, rest = int(rng.choice([1, 2, 2, 4])), 0.0, 0.0
        bpm = round(float(rng.uniform(SLOWEST, FASTEST)), 2)
        name = f"loop_{index:04d}"
        if hint == "loose":
            bars, lead, rest = int(rng.choice([2, 3])), float(rng.uniform(0.05, 0.4)), float(rng.uniform(0.6, 3.4))
        if hint in ("named", "wrong"):
            bpm = round(bpm)
            named = bpm if hint == "named" else round(bpm * float(rng.choice(WRONG)))
            name += (f"_{named}bpm", f" {named} BPM", f"-bpm{named}")[index % 3]
        level = float(rng.uniform(-9, -1))
        name += f".{container[0]}"
        planned.append(Loop(index, split, label, hint, name, *container, bpm, bars, lead, rest, level))
    return planned


def render(loop: Loop, seed: int) -> np.ndarray:
    """The loop's wave [T, channels] in [-1, 1]; with whole bars, sounds that ring past the end continue at the start."""
    rng = np.random.default_rng([seed, 1, loop.index])
    size = round(loop.seconds * loop.rate)
    mix = np.zeros((size, loop.channels))
    step = 240 / loop.bpm / STEPS
    last = int((loop.seconds - loop.lead) / step + 1e-6)
    for hit, rhythm, volume, pan in PATTERNS[loop.label](rng, loop.rate):
        layer = np.zeros(size + 2 * loop.rate)
        fill = [strength if rng.random() < 0.8 else strength * (rng.random() < 0.5) for strength in rhythm]
        for place in range(last):
            within = fill if place // STEPS == loop.bars - 1 and loop.bars > 1 else rhythm
            if strength := within[place % STEPS]:
                at = loop.lead + (place + (rng.uniform(0, SWING) if place % 4 else 0)) * step
                add(layer, hit(strength * rng.uniform(0.92, 1.0)), at, loop.rate)
        if loop.hint != "loose":
            layer[: 2 * loop.rate][:size] += layer[size:][:size]
        sides = [1.0] if loop.channels == 1 else [np.cos((pan + 1) * np.pi / 4), np.sin((pan + 1) * np.pi / 4)]
        mix += volume * layer[:size, None] * np.array(sides)
    return mix * 10 ** (loop.level / 20) / max(np.abs(mix).max(), 1e-9)


def write(loop: Loop, seed: int, output: Path) -> shards.Report:
    samples = np.round(render(loop, seed) * 32767).astype("<i2")
    disk.write_atomically(output, lambda path: encode(samples, loop.rate, loop.extension, path))
    return shards.Report()


def write_csv(loops: Iterable[Loop], path: Path) -> None:
    """Labels and splits as in an `audiofolder`, and the plan of each loop."""
    columns = ["file_name", "label", "split", "hint", "bpm", "bars"]
    csv_files.write(path, columns, ([loop.name, loop.label, loop.split, loop.hint, loop.bpm, loop.bars] for loop in loops))


Layer = tuple[Hit, Sequence[float], float, float]  # sound, strength at each step of a bar (0: no hit), volume, pan


def _steps(hits: dict[int, float]) -> list[float]:
    return [hits.get(step, 0.0) for step in range(STEPS)]


def _every(interval: int, first: int = 0, soft: float = 0.6) -> list[float]:
    return [(1.0 if step % 4 == 0 else soft) if step % interval == first else 0.0 for step in range(STEPS)]


def _maybe(rng: np.random.Generator, rhythm: Sequence[float], steps: Sequence[int], chance: float, strength: float) -> list[float]:
    """The rhythm with additional hits at some of these steps."""
    return [strength if step in steps and not old and rng.random() < chance else old for step, old in enumerate(rhythm)]


def _kick(rng: np.random.Generator, rate: int) -> Hit:
    bottom, sweep, life = rng.uniform(45, 70), rng.uniform(2.5, 5), rng.uniform(0.06, 0.12)
    t = time_axis(0.4, rate)
    phase = oscillator(bottom * (1 + sweep * np.exp(-t / 0.025)), rate, len(t))
    tone = np.tanh(1.5 * np.sin(phase)) * decay(0.4, rate, life, 0.001)
    return lambda strength: strength * tone


def _snare(rng: np.random.Generator, rate: int) -> Hit:
    head, life = rng.uniform(170, 240), rng.uniform(0.035, 0.08)
    t = time_axis(0.3, rate)
    wires = noise(rng, 0.3, rate, band(1200, 7000, 3)) * decay(0.3, rate, life, 0.001)
    tone = np.sin(2 * np.pi * head * t) * decay(0.3, rate, 0.6 * life, 0.001)
    return lambda strength: strength * (0.4 * wires + 0.7 * tone)


def _hat(rng: np.random.Generator, rate: int) -> Hit:
    edge, life = rng.uniform(4500, 6500), rng.uniform(0.012, 0.05)
    tick = noise(rng, 0.3, rate, band(edge, 14_000, 8)) * decay(0.3, rate, life, 0.0007)
    return lambda strength: 0.35 * strength * tick


def _bass(rng: np.random.Generator, rate: int) -> Hit:
    root, life = rng.uniform(41, 82), rng.uniform(0.1, 0.25)
    notes = [root * 2 ** (semitone / 12) for semitone in rng.choice([0, 0, 3, 5, 7, 10, 12], 4)]
    tilt, count = rng.uniform(1.0, 1.6), [0]

    def strike(strength: float) -> np.ndarray:
        t, pitch = time_axis(0.6, rate), notes[count[0] // 4 % 4]
        count[0] += 1
        voice = sum(np.sin(2 * np.pi * pitch * k * t) / k**tilt for k in range(1, 9))
        return 0.5 * strength * voice * decay(0.6, rate, life, 0.004)

    return strike


def _chord(rng: np.random.Generator, rate: int) -> Hit:
    root, third = rng.uniform(180, 330), int(rng.choice([3, 4]))
    tones = [root * 2 ** (semitone / 12) for semitone in (0, third, 7, int(rng.choice([10, 11, 12])))]
    t, life, bright = time_axis(0.8, rate), rng.uniform(0.08, 0.3), rng.uniform(1.2, 2.2)
    voices = sum(np.sin(2 * np.pi * tone * k * t + tone) / k**bright for tone in tones for k in (1, 2, 3, 4))
    stab = voices / 4 * decay(0.8, rate, life, 0.005)
    return lambda strength: 0.5 * strength * stab


def _four_on_the_floor(rng: np.random.Generator, rate: int) -> list[Layer]:
    kick = _maybe(rng, _every(4), (14, 15), 0.3, 0.7)
    return [
        (_kick(rng, rate), kick, 1.0, 0.0),
        (_snare(rng, rate), _steps({4: 1, 12: 1}), rng.uniform(0.4, 0.8), 0.1),
        (_hat(rng, rate), _maybe(rng, _every(4, 2, 0.9), range(1, 16, 2), 0.3, 0.4), rng.uniform(0.6, 1.0), -0.3),
    ]


def _breakbeat(rng: np.random.Generator, rate: int) -> list[Layer]:
    kick = _maybe(rng, _steps({0: 1, 10: 0.9}), (2, 3, 7, 11, 14), 0.4, 0.8)
    snare = _maybe(rng, _steps({4: 1, 12: 1}), (7, 9, 15), 0.4, 0.35)
    return [
        (_kick(rng, rate), kick, 1.0, 0.0),
        (_snare(rng, rate), snare, rng.uniform(0.7, 1.0), 0.1),
        (_hat(rng, rate), _every(2), rng.uniform(0.5, 0.9), -0.3),
    ]


def _chords(rng: np.random.Generator, rate: int) -> list[Layer]:
    stabs = _maybe(rng, _steps({0: 1, 8: 0.9}), (3, 4, 6, 11, 12, 14), 0.4, 0.8)
    return [(_chord(rng, rate), stabs, 1.0, 0.0), (_hat(rng, rate), _every(4, 0), rng.uniform(0.3, 0.7), 0.3)]


PATTERNS: dict[str, Callable[[np.random.Generator, int], list[Layer]]] = {
    "bassline": lambda rng, rate: [
        (_bass(rng, rate), _maybe(rng, _every(4), range(2, 16, 2), 0.5, 0.8), 1.0, 0.0),
        (_kick(rng, rate), _every(4), rng.uniform(0.2, 0.5), 0.0),
    ],
    "breakbeat": _breakbeat,
    "chords": _chords,
    "four on the floor": _four_on_the_floor,
    "half time": lambda rng, rate: [
        (_kick(rng, rate), _maybe(rng, _steps({0: 1}), (3, 6, 10, 14), 0.4, 0.8), 1.0, 0.0),
        (_snare(rng, rate), _maybe(rng, _steps({8: 1}), (15,), 0.3, 0.4), rng.uniform(0.7, 1.0), 0.0),
        (_hat(rng, rate), _maybe(rng, _every(2), range(1, 16, 2), 0.2, 0.5), rng.uniform(0.6, 1.0), 0.3),
    ],
    "hi-hats": lambda rng, rate: [
        (_hat(rng, rate), _every(1, soft=rng.uniform(0.3, 0.5)), 1.0, 0.4),
        (_hat(rng, rate), _maybe(rng, _every(4, 2, 0.8), (7, 11), 0.3, 0.7), rng.uniform(0.6, 1.0), -0.4),
    ],
}
