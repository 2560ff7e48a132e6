"""The embedded corpus: recordings of synthesised sound events, with captions composed from the events in each clip window.

Everything follows from the seed: `plan` places events in recordings, `render` makes the sound of one.
"""

import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from soundmill import csv_files, disk, params, shards
from soundmill.corpora.sounds import GENERATORS
from soundmill.errors import UserError

LABELS = tuple(sorted(GENERATORS))
MIN_TRAINING = 8  # recordings; fewer could not contain every event
MIN_RECORDINGS = MIN_TRAINING + 2 * 4

PHRASES = params.read_yaml(Path(__file__).with_name("phrases.yaml"))  # captions by event
CONTINUOUS = ("rain", "wind", "engine", "clock")  # events that may continue behind another
SILENT_CAPTION = "hardly anything is heard"

# (extension, rate, channels) of AudioCaps downloads.
CONTAINERS = (("wav", 44_100, 2), ("flac", 48_000, 1), ("ogg", 32_000, 1), ("mp3", 44_100, 2), ("m4a", 48_000, 2))
ENCODERS = {
    "ogg": {"c:a": "libvorbis", "q:a": 6, "f": "ogg"},
    "mp3": {"c:a": "libmp3lame", "b:a": "160k", "f": "mp3"},
    "m4a": {"c:a": "aac", "b:a": "160k", "f": "ipod"},
}
ENCODE_TIMEOUT = 120  # seconds; 35 s of sound take less than one

EDGE_SECONDS = 0.8  # an event overlaps a window by at least this or not at all, so captions are unambiguous
PAUSE_SECONDS = 0.35  # between events in sequence
FADE_SECONDS = 0.02
OVERLAP_SECONDS = 0.3  # events that overlap at least this long are joined by "while", others by "then"
ROOM_DBFS = -66.0  # noise floor, so that no recording is digitally silent


@dataclass(frozen=True)
class Event:
    """One sound from `onset` to `offset` seconds; relative `gain` in dB, `pan` from -1 (left) to 1."""

    label: str
    onset: float
    offset: float
    gain: float
    pan: float


@dataclass(frozen=True)
class Recording:
    """The plan of one file."""

    index: int
    split: str  # train | val | test, as in AudioCaps' csv names
    video: str
    start: int  # seconds into the imagined video
    name: str
    extension: str
    rate: int
    channels: int
    seconds: float
    level: float  # dBFS of the loudest sample
    events: tuple[Event, ...]


def plan(
    recordings: int, valid_fraction: float, test_fraction: float, window_seconds: float, min_seconds: float, seed: int
) -> list[Recording]:
    """Plan the corpus: `val` and `test` have every event alone, `train` single events, sequences and overlaps."""
    held_out = {"val": max(4, round(recordings * valid_fraction)), "test": max(4, round(recordings * test_fraction))}
    training = recordings - sum(held_out.values())
    if training < MIN_TRAINING:
        raise UserError(
            f"corpus.recordings: {recordings} leave {training} to train on beside {held_out['val']} for validation and "
            f"{held_out['test']} for the test, too few for all {len(LABELS)} events; raise it, or lower the fractions"
        )
    rng = np.random.default_rng([seed, 0])
    scenes = [
        (split, scene) for split, count in held_out.items() for scene in _held_out_scenes(rng, count, window_seconds, min_seconds)
    ] + [("train", scene) for scene in _training_scenes(rng, training, window_seconds, min_seconds)]
    videos = _videos(rng, recordings)
    starts = [int(start) * 10 for start in rng.integers(0, 58, recordings)]
    # Two recordings of one video, as in real corpora: its id alone does not identify a file.
    videos[-1], starts[-1], starts[-2] = videos[-2], 300, 30
    planned = []
    for index, (split, (seconds, events)) in enumerate(scenes):
        container = CONTAINERS[(index + index // len(LABELS)) % len(CONTAINERS)]
        prefix = "Y" if index % 6 == 4 else ""
        name = f"{prefix}{videos[index]}_{starts[index]}.{container[0]}"
        level = float(rng.uniform(-12, -1.5))
        planned.append(Recording(index, split, videos[index], starts[index], name, *container, seconds, level, tuple(events)))
    return planned


Scene = tuple[float, list[Event]]  # seconds, events


def _held_out_scenes(rng: np.random.Generator, count: int, window: float, shortest: float) -> list[Scene]:
    """Every event once, alone in its windows; every third scene ends with a second event over the last."""
    order = [str(label) for label in rng.permutation(LABELS)]
    scenes = []
    for number in range(count):
        labels = order[number::count] or [order[number % len(order)]]
        times = _cut(rng.uniform(0.8, 1.4) * window, window, shortest) if len(labels) == 1 else len(labels) * window
        events = _in_turn(rng, labels, times, window, aligned=True)
        if number % 3 == 0:
            times += window
            last = events.pop()
            other = _other(rng, [label.label for label in [*events, last]])
            events.append(_event(rng, last.label, last.onset, times, window, times))
            events.append(_event(rng, other, times - window + rng.uniform(0.1, 0.3) * window, times, window, times))
        scenes.append((times, events))
    return scenes


def _training_scenes(rng: np.random.Generator, count: int, window: float, shortest: float) -> list[Scene]:
    """Two thirds single events of 2–20 s, all equally often; the rest sequences and overlaps of 12–35 s."""
    singles = count - count // 3
    single_labels = [str(label) for _ in range(-(-singles // len(LABELS))) for label in rng.permutation(LABELS)][:singles]
    scenes: list[Scene] = []
    for number, label in enumerate(single_labels):
        # One in six is a short one-shot; the others fill several windows.
        seconds = _cut(rng.uniform(2, 4.5) if number % 6 == 5 else rng.uniform(8, 20), window, shortest)
        scenes.append((seconds, [_event(rng, label, 0, seconds, window, seconds)]))
    makers = (_sequence_scene, _overlap_scene, _layered_scene)
    unused = [label for label in LABELS if label not in single_labels]  # in a small corpus; they are added to sequences
    for number in range(count - singles):
        seconds = _cut(35.0 if number == 0 else rng.uniform(12, 30), window, shortest)
        if unused:
            share = -(-len(unused) // (count - singles - number))
            labels, unused = unused[:share], unused[share:]
            labels += [_other(rng, labels)] if share == 1 else []
            scenes.append((seconds, _in_turn(rng, labels, seconds, window, aligned=True)))
        else:
            scenes.append((seconds, makers[number % len(makers)](rng, seconds, window)))
    return scenes


def _sequence_scene(rng: np.random.Generator, seconds: float, window: float) -> list[Event]:
    labels = [str(label) for label in rng.permutation(LABELS)[: 3 if seconds > 18 else 2]]
    return _in_turn(rng, labels, seconds, window, aligned=bool(rng.random() < 0.5))


def _overlap_scene(rng: np.random.Generator, seconds: float, window: float) -> list[Event]:
    """One event during another, continuous one."""
    behind = str(rng.choice(CONTINUOUS))
    before = _other(rng, CONTINUOUS)
    onset, offset = seconds * rng.uniform(0.15, 0.3), seconds * rng.uniform(0.65, 0.85)
    return [_behind(_event(rng, behind, 0, seconds, window, seconds)), _event(rng, before, onset, offset, window, seconds)]


def _layered_scene(rng: np.random.Generator, seconds: float, window: float) -> list[Event]:
    """Two events at once, then a third: "a siren wails while rain falls, then a bell rings"."""
    behind = str(rng.choice(CONTINUOUS))
    first = _other(rng, CONTINUOUS)
    then = _other(rng, [behind, first])
    turn = seconds * rng.uniform(0.5, 0.65)
    return [
        _behind(_event(rng, behind, 0, turn, window, seconds)),
        _event(rng, first, seconds * rng.uniform(0.05, 0.15), turn, window, seconds),
        _event(rng, then, turn + PAUSE_SECONDS, seconds, window, seconds),
    ]


def _in_turn(rng: np.random.Generator, labels: Sequence[str], seconds: float, window: float, aligned: bool) -> list[Event]:
    """Events in sequence; `aligned`: changing at window edges, so that each window has one event."""
    share = seconds / len(labels)
    if aligned and share >= window:
        share = window * int(share / window)
    edges = [share * number for number in range(len(labels))] + [seconds]
    half = PAUSE_SECONDS / 2
    return [
        _event(rng, label, onset + (half if onset else 0), offset - (half if offset < seconds else 0), window, seconds)
        for label, onset, offset in zip(labels, edges[:-1], edges[1:], strict=True)
    ]


def _other(rng: np.random.Generator, taken: Sequence[str]) -> str:
    return str(rng.choice([label for label in LABELS if label not in taken]))


def _event(rng: np.random.Generator, label: str, onset: float, offset: float, window: float, seconds: float) -> Event:
    """An event; ends that would overlap a window by less than EDGE_SECONDS are moved to the window edge."""
    edge = min(EDGE_SECONDS, window / 2)

    def snapped(time: float) -> float:
        into = time % window
        if 0 < into < edge or window - edge < into < window:
            return min(seconds, round(time / window) * window)
        return time

    onset, offset = snapped(onset), snapped(offset)
    return Event(label, round(onset, 3), round(min(offset, seconds), 3), float(rng.uniform(-4, 2)), float(rng.uniform(-0.6, 0.6)))


def _behind(event: Event) -> Event:
    return replace(event, gain=event.gain - 3.0)


def _cut(seconds: float, window: float, shortest: float) -> float:
    """A duration whose last window is whole, or clearly long enough for a clip, even with a codec's padding."""
    rest = seconds % window
    if rest < min(shortest + EDGE_SECONDS, window) and seconds > window:
        seconds -= rest
    return round(max(seconds, min(2.0, window)), 1)


def _videos(rng: np.random.Generator, count: int) -> list[str]:
    """Random ids like YouTube's; the first few are hard to parse: a leading `-`, `_` before digits, a leading `Y`."""
    alphabet = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"))
    videos = ["".join(rng.choice(alphabet, 11)) for _ in range(count)]
    videos[1] = "-" + videos[1][1:]
    videos[2] = videos[2][:8] + "_30"
    videos[3] = "Y" + videos[3][1:]
    videos[4] = "Y" + videos[4][1:]  # with another `Y` before it in the file name
    videos[5] = "--" + videos[5][2:10] + "_"
    assert len(set(videos)) == count
    return videos


def windows_of(seconds: float, window_seconds: float, min_seconds: float) -> list[tuple[float, float]]:
    """Start and end of the clips that the stage `segment` will cut; a last one under `min_seconds` is dropped."""
    starts = [number * window_seconds for number in range(int(seconds / window_seconds + 1e-9) + 1)]
    ends = [min(start + window_seconds, seconds) for start in starts]
    return [(start, end) for start, end in zip(starts, ends, strict=True) if end - start >= max(min_seconds, 1e-6)]


def describe(events: Iterable[Event], start: float, end: float, rng: np.random.Generator) -> tuple[str, list[str]]:
    """Caption and labels, those of the longest events first, of the events between two times in a recording."""
    heard = [event for event in events if event.onset < end and event.offset > start]
    inside = [(max(event.onset, start), min(event.offset, end), event.label) for event in heard]
    longest_first = sorted(inside, key=lambda part: (part[0] - part[1], part))
    if not inside:
        return SILENT_CAPTION, []
    phrases = {label: str(rng.choice(PHRASES[label])) for _, _, label in sorted(inside)}
    return _sentence(sorted(inside), phrases), list(dict.fromkeys(label for _, _, label in longest_first))


def _sentence(parts: list[tuple[float, float, str]], phrases: dict[str, str]) -> str:
    """One sentence about (onset, offset, label) parts: "then" between successive, "while" between simultaneous ones."""
    groups: list[list[tuple[float, float, str]]] = []
    for part in sorted(parts):
        if groups and part[0] < max(offset for _, offset, _ in groups[-1]) - OVERLAP_SECONDS:
            groups[-1].append(part)
        else:
            groups.append([part])
    return ", then ".join(_simultaneous(group, phrases) for group in groups)


def _simultaneous(group: list[tuple[float, float, str]], phrases: dict[str, str]) -> str:
    if len(group) == 1:
        return phrases[group[0][2]]
    behind = max(group, key=lambda part: (part[1] - part[0], part))
    others = [part for part in group if part is not behind]
    if len(others) == 1:
        return f"{phrases[others[0][2]]} while {phrases[behind[2]]}"
    return f"{phrases[behind[2]]} while {_sentence(others, phrases).replace(', then ', ' and then ')}"


def render(recording: Recording, seed: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """The recording's wave [T, channels] in [-1, 1], and each event's part of its mono mix [T]."""
    rng = np.random.default_rng([seed, 1, recording.index])
    size = round(recording.seconds * recording.rate)
    stems = []
    mix = np.zeros((size, recording.channels))
    for event in recording.events:
        first, last = round(event.onset * recording.rate), min(size, round(event.offset * recording.rate))
        sound = GENERATORS[event.label](rng, (last - first) / recording.rate, recording.rate)[: last - first]
        sound = sound / _loudness(sound, recording.rate) * 10 ** (event.gain / 20)
        fade = min(round(FADE_SECONDS * recording.rate), len(sound) // 2)
        sound[len(sound) - fade :] *= np.linspace(1, 0, fade)
        angle = (event.pan + 1) * np.pi / 4
        sides = np.array([np.cos(angle), np.sin(angle)]) if recording.channels == 2 else np.array([np.sqrt(0.5)])
        mix[first:last] += sound[:, None] * sides
        stem = np.zeros(size)
        stem[first:last] = sound * sides.mean()
        stems.append(stem)
    scale = 10 ** (recording.level / 20) / max(np.abs(mix).max(), 1e-9)
    floor = rng.standard_normal((size, recording.channels)) * 10 ** (ROOM_DBFS / 20)
    return np.clip(mix * scale + floor, -1, 1), [stem * scale for stem in stems]


def _loudness(sound: np.ndarray, rate: int) -> float:
    """RMS of the louder 50 ms frames, so that short and steady sounds are mixed at equal loudness."""
    frame = max(1, rate // 20)
    frames = sound[: len(sound) // frame * frame].reshape(-1, frame) if len(sound) >= frame else sound[None]
    power = np.mean(frames**2, axis=1)
    return float(np.sqrt(max(np.quantile(power, 0.9), power.max() / 4, 1e-12)))


def write_recording(recording: Recording, seed: int, window_seconds: float, min_seconds: float, output: Path) -> shards.Report:
    """Render one recording to `output`; the detail of the report has the captions and labels of its windows."""
    samples = np.round(render(recording, seed)[0] * 32767).astype("<i2")
    disk.write_atomically(output, lambda path: encode(samples, recording.rate, recording.extension, path))
    rng = np.random.default_rng([seed, 2, recording.index])
    windows = windows_of(recording.seconds, window_seconds, min_seconds)
    rows = [[recording.start + start, *describe(recording.events, start, end, rng)] for start, end in windows]
    return shards.Report(details=[[recording.split, recording.video, rows]])


def encode(samples: np.ndarray, rate: int, extension: str, path: Path) -> None:
    """Write int16 samples [T, channels] deterministically; Ogg by ffmpeg, since libsndfile's serial numbers are random."""
    import soundfile

    if extension in ("wav", "flac"):
        soundfile.write(path, samples, rate, subtype="PCM_16", format=extension)
        return
    import ffmpeg

    from soundmill.decoding.ffmpeg import ffmpeg_executable

    exact = {"threads": 1, "map_metadata": -1, "fflags": "+bitexact", "flags:a": "+bitexact"}
    command = (
        ffmpeg.input("pipe:0", f="s16le", ar=rate, ac=samples.shape[1])
        .output(f"file:{path.absolute()}", **exact, **ENCODERS[extension])
        .compile(cmd=[str(ffmpeg_executable()), "-loglevel", "error", "-nostdin", "-y"])
    )
    done = subprocess.run(command, input=samples.tobytes(), capture_output=True, timeout=ENCODE_TIMEOUT)
    if done.returncode or done.stderr:
        stderr = done.stderr.decode("utf-8", "replace").strip()
        message = stderr or f"exit status {done.returncode}"
        raise UserError(f"ffmpeg could not write {extension}: {message}; see `soundmill doctor`")


def write_csv(details: Iterable[list[Any]], directory: Path) -> None:
    """Write train.csv, val.csv and test.csv as in AudioCaps, and labels.csv; `details` are from write_recording."""
    tables: dict[str, list[list[Any]]] = {"train": [], "val": [], "test": []}
    labels: list[list[Any]] = []
    number = 0
    for split, video, rows in details:
        for start, caption, names in rows:
            number += 1
            tables[split].append([number, video, f"{start:g}", caption])
            labels.append([video, f"{start:g}", ";".join(names)])
    for split, rows in tables.items():
        csv_files.write(directory / f"{split}.csv", ["audiocap_id", "youtube_id", "start_time", "caption"], rows)
    csv_files.write(directory / "labels.csv", ["youtube_id", "start_time", "labels"], labels)
