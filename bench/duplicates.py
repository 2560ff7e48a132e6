"""Duplicate detection: recall of planted copies, false alarms among originals, time and memory by number of clips."""

import itertools
import math
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import soundfile

from bench import measure, recordings
from bench.measure import ROOT, WORKERS, Target, in_fresh_process
from soundmill.audio import fingerprint, resample
from soundmill.corpora import duplicates, fingerprint_index
from soundmill.decoding import decode, ffmpeg

ONE_SHOTS = ROOT.parent / "shared" / "data" / "cc0_samples"  # drums, hits and loops, most of them below a second
SHIFT_SECONDS = 0.3  # not a multiple of the fingerprint's hop
CROP_SECONDS = (1.0, 4.0)
SIZES = (1_000, 5_000, 20_000, 50_000)
CLIP_SECONDS = 5
AT_ONCE = 100  # clips added to the index together, as from a shard
PLANTED = 100  # copies among the synthetic clips of each size
NOISE_DB = 0.4  # standard deviation of band levels in a synthetic copy, as if from a codec


def original(wave: np.ndarray, rate: int, path: Path) -> Path:
    soundfile.write(path.with_suffix(".wav"), wave, rate, subtype="PCM_16")
    return path.with_suffix(".wav")


def softer(wave: np.ndarray, rate: int, path: Path) -> Path:
    return original(wave * 10 ** (-6 / 20), rate, path)


def later(wave: np.ndarray, rate: int, path: Path) -> Path:
    return original(np.concatenate([np.zeros(round(SHIFT_SECONDS * rate), dtype=np.float32), wave]), rate, path)


def earlier(wave: np.ndarray, rate: int, path: Path) -> Path:
    return original(wave[round(SHIFT_SECONDS * rate) :], rate, path)


def coded(wave: np.ndarray, rate: int, path: Path, codec: str, extension: str) -> Path:
    """Encode at 64 kbit/s; rates that not all codecs support are resampled to 48 kHz."""
    if rate not in (16_000, 22_050, 24_000, 32_000, 44_100, 48_000):
        wave, rate = resample.resample(wave, rate, 48_000), 48_000
    source, coded = original(wave, rate, path.with_name(f"{path.name}-source")), path.with_suffix(extension)
    command = [ffmpeg.ffmpeg_executable(), "-nostdin", "-loglevel", "error", "-y", "-i", f"file:{source}"]
    subprocess.run([*command, "-c:a", codec, "-b:a", "64k", f"file:{coded}"], check=True)
    source.unlink()
    return coded


def all_at_once(wave: np.ndarray, rate: int, path: Path, shift: Callable[..., Path]) -> Path:
    shifted = shift(wave * 10 ** (-6 / 20), rate, path.with_name(f"{path.name}-shifted"))
    samples, rate = soundfile.read(shifted, dtype="float32")
    shifted.unlink()
    return mp3(samples, rate, path)


def narrow(wave: np.ndarray, rate: int, path: Path) -> Path:
    return original(resample.resample(wave, rate, 8000), 8000, path)


def cropped(wave: np.ndarray, rate: int, path: Path) -> Path:
    return original(wave[round(CROP_SECONDS[0] * rate) : round(CROP_SECONDS[1] * rate)], rate, path)


mp3 = partial(coded, codec="libmp3lame", extension=".mp3")
TRANSFORMS: dict[str, Callable[[np.ndarray, int, Path], Path]] = {
    "-6 dB": softer,
    "0.3 s later": later,
    "0.3 s earlier (its start cut off)": earlier,
    "mp3 at 64 kbit/s": mp3,
    "AAC at 64 kbit/s": partial(coded, codec="aac", extension=".m4a"),
    "Opus at 64 kbit/s": partial(coded, codec="libopus", extension=".webm"),
    "-6 dB, 0.3 s later, mp3 at 64 kbit/s": partial(all_at_once, shift=later),
    "-6 dB, 0.3 s earlier, mp3 at 64 kbit/s": partial(all_at_once, shift=earlier),
    "at 8 kHz": narrow,
    "seconds 1 to 4 of it": cropped,
}
WITH_TARGET = tuple(name for name in TRANSFORMS if "dB" in name or "later" in name or "kbit/s" in name)


@dataclass
class Recall:
    """Copies of one kind: planted in recordings that are long enough, found, and without features to compare."""

    planted: int = 0
    found: int = 0
    featureless: int = 0
    missed: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)


def plant(source: Path, rank: int, directory: Path) -> list[str]:
    """Write a recording and its copies as `<transform>/<rank>.*`; returns the transforms that it is long enough for."""
    rate, blocks = decode.decode_blocks(source, decode.MAX_SECONDS)
    wave = np.concatenate(list(blocks))
    (directory / "original").mkdir(exist_ok=True)
    original(wave, rate, directory / "original" / f"{rank:05d}")
    applied = []
    for name, transform in TRANSFORMS.items():
        least = {earlier: 2 * SHIFT_SECONDS, cropped: CROP_SECONDS[1]}.get(
            getattr(transform, "keywords", {}).get("shift", transform), 0
        )
        if len(wave) >= least * rate:
            place = directory / str(list(TRANSFORMS).index(name))
            place.mkdir(exist_ok=True)
            transform(wave, rate, place / f"{rank:05d}")
            applied.append(name)
    return applied


def planted(sources: list[Path], work: Path) -> tuple[dict[str, Recall], list[dict[str, Any]]]:
    """Recall by transform, each among all originals, and the pairs of recordings that were not planted."""
    work.mkdir()
    with ProcessPoolExecutor(WORKERS, get_context("spawn")) as pool:
        applied = list(pool.map(plant, sources, range(len(sources)), [work] * len(sources)))
    recalls, alarms = {}, {}
    for number, name in enumerate(TRANSFORMS):
        folder = work / f"pairs-{number}"
        folder.mkdir()
        (folder / "original").symlink_to(work / "original")
        (folder / "copy").symlink_to(work / str(number))
        found, unreadable = duplicates.find_in_folder(folder, WORKERS, follow_links=True)
        assert not unreadable, unreadable[0]
        recall = recalls[name] = Recall()
        featureless = {Path(name).stem for name in found.featureless}
        scores = {}
        for pair in found.pairs:
            first, second = Path(pair["a"]).stem, Path(pair["b"]).stem
            if first == second:
                scores[first] = pair["score"]
            else:
                key = tuple(sorted((label(sources[int(first)]), label(sources[int(second)]))))
                alarms[key] = max(pair["score"], alarms.get(key, 0.0))
        for rank, names in enumerate(applied):
            if name in names:
                recall.planted += 1
                stem = f"{rank:05d}"
                if stem in scores:
                    recall.found += 1
                    recall.scores.append(scores[stem])
                elif stem in featureless:
                    recall.featureless += 1
                else:
                    recall.missed.append(label(sources[rank]))
    by_label = {label(source): source for source in sources}
    unplanted = [
        {"a": a, "b": b, "score": score, "waveform_correlation": correlation(by_label[a], by_label[b])}
        for (a, b), score in sorted(alarms.items())
    ]
    return recalls, unplanted


def correlation(first: Path, second: Path) -> float:
    """Highest absolute correlation of two recordings' overlapping samples over all offsets."""
    from scipy.signal import correlate

    a, b = (decode.read_mono(path, fingerprint.SAMPLE_RATE, 60).astype(np.float64) for path in (first, second))
    lag = int(np.abs(correlate(a, b, method="fft")).argmax()) - (len(b) - 1)
    start, end = max(0, lag), min(len(a), len(b) + lag)
    a, b = a[start:end], b[start - lag : end - lag]
    return float(abs(a @ b) / np.sqrt((a @ a) * (b @ b)))


def label(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def grow(clips: int) -> dict[str, Any]:
    """Find PLANTED copies among synthetic clips of noise in this process: seconds, peak memory, recall."""

    def energies(number: int) -> np.ndarray:
        rng = np.random.default_rng(number)
        spectra = CLIP_SECONDS * fingerprint.SAMPLE_RATE // fingerprint.HOP - 3
        # Windows overlap by three quarters; a band adds up some ten bins.
        raw = rng.standard_gamma(3.0, (spectra + 3, fingerprint.BANDS), dtype=np.float32)
        return raw[:-3] + raw[1:-2] + raw[2:-1] + raw[3:]

    originals = range(clips - PLANTED)
    planted = originals[:: len(originals) // PLANTED][:PLANTED]

    def words() -> Iterable[np.ndarray]:
        for number in originals:
            yield fingerprint.from_energies(energies(number))
        for number in planted:
            sound = energies(number)
            noise = np.random.default_rng([number, 1]).normal(0, NOISE_DB, sound.shape).astype(np.float32)
            yield fingerprint.from_energies(sound[7:] * 10 ** (noise[7:] / 10))

    names = pa.chunked_array([[f"{number:07d}" for number in originals] + [f"{number:07d}-copy" for number in planted]])
    with tempfile.TemporaryDirectory() as scratch, fingerprint_index.Index(Path(scratch), names, names) as index:
        before = measure.peak_megabytes()
        seconds = cpu_seconds = 0.0
        found, first = words(), 0
        while some := list(itertools.islice(found, AT_ONCE)):
            start, cpu = time.perf_counter(), time.process_time()
            index.add(first, fingerprint_index.landmark_table(some))
            first += len(some)
            seconds, cpu_seconds = seconds + time.perf_counter() - start, cpu_seconds + time.process_time() - cpu
        start, cpu = time.perf_counter(), time.process_time()
        pairs = list(index.pairs(fingerprint_index.THRESHOLD))
        seconds, cpu_seconds = seconds + time.perf_counter() - start, cpu_seconds + time.process_time() - cpu
    copies = sum(b == f"{a}-copy" for a, b, _ in pairs)
    peak = measure.peak_megabytes()
    return {
        "clips": clips,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,  # used for the growth: hardly affected by other processes
        "peak_megabytes": peak,
        "megabytes_at_start": before,
        "recall": copies / PLANTED,
        "alarms": len(pairs) - copies,
    }


def milliseconds(seconds: float) -> float:
    """CPU time in ms of the fingerprint of a clip of noise: the minimum of ten."""
    wave = np.random.default_rng(0).normal(0, 0.1, round(seconds * fingerprint.SAMPLE_RATE)).astype(np.float32)
    times = []
    for _ in range(10):
        start = time.process_time()
        fingerprint.fingerprint(wave)
        times.append(time.process_time() - start)
    return 1e3 * min(times)


def main() -> None:
    args = measure.parser(__doc__, recordings=100_000, largest=max(SIZES)).parse_args()
    with measure.workplace(args.work) as place:
        work = Path(place)
        found, what = recordings.find(args.audio, work)
        corpora = {what: found[: args.recordings]}
        if ONE_SHOTS.is_dir() and not args.audio:
            corpora["one-shots and loops of cc0_samples"] = sorted(ONE_SHOTS.glob("*.flac"))[: args.recordings]
        tables, alarms = {}, {}
        for number, (name, sources) in enumerate(corpora.items()):
            recalls, alarms[name] = planted(sources, work / f"planted-{number}")
            tables[name] = {transform: report(recall) for transform, recall in recalls.items()}
            for transform, row in tables[name].items():
                print(
                    f"{name}: {transform}: {row['found']} of {row['planted']} found, {row['featureless']} featureless", flush=True
                )
        sizes = [size for size in SIZES if size <= args.largest]
        growth = [in_fresh_process(grow, size) for size in sizes]
        cost = milliseconds(5.0)
    slope = (
        math.log(growth[-1]["cpu_seconds"] / growth[0]["cpu_seconds"]) / math.log(sizes[-1] / sizes[0]) if len(sizes) > 1 else 1.0
    )
    alarmed = {clip for pair in alarms[what] for clip in (pair["a"], pair["b"])}
    targets = [Target(f"recall, {name}", 100 * tables[what][name]["recall"], 95, unit=" %") for name in WITH_TARGET]
    targets += [
        # All count as false alarms, although some are true duplicates: see their waveform correlation.
        Target("clips in pairs that were not planted", 100 * len(alarmed) / len(corpora[what]), 1, at_least=False, unit=" %"),
        Target("fingerprint of 5 s", cost, 2, at_least=False, unit=" ms"),
        Target(
            f"exponent of the index's time from {sizes[0]} to {sizes[-1]} clips",
            slope,
            1.2,
            at_least=False,
            unit="",
        ),
    ]
    measure.write(
        "duplicates",
        args.results,
        sizes[-1],
        {f"index of {row['clips']} clips": [row["seconds"]] for row in growth},
        targets,
        threshold=fingerprint_index.THRESHOLD,
        recordings=what,
        recall=tables,
        alarms=alarms,
        growth=growth,
    )


def report(recall: Recall) -> dict[str, Any]:
    scores = np.array(recall.scores or [0.0])
    row = {name: value for name, value in asdict(recall).items() if name != "scores"}
    return {
        **row,
        "recall": recall.found / max(1, recall.planted),
        "score_lowest": float(scores.min()),
        "score_median": float(np.median(scores)),
    }


if __name__ == "__main__":
    main()
