"""The band that an upsampler makes, alone, beside windowed sinc, which leaves it empty: how far both are from the real one.

python -m bench.new_band data/generated/upsampler data/clips/default --factor 4

Every WAV file of the first directory is called after the clip that it was made of. `lsd` is the log-spectral distance of
soundmill/evaluation/waveforms.py over the bins above the lower rate's Nyquist frequency; `energy_db` the energy there against
the real clip's. Mean over clips and its 95 % interval by bootstrap. Clips that have nothing there are counted and left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch

from soundmill.errors import UserError
from soundmill.evaluation.waveforms import FLOOR_DB, WINDOW, log_spectral_distance
from soundmill.models.catalog import waves_of
from soundmill.models.upsampler.model import without_upper_band

REPLICATES = 2000
NOTHING = 10 ** (-FLOOR_DB / 10)  # of a clip's energy: less is nothing to be compared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("made", type=Path, help="directory of WAV files, such as data/generated/upsampler")
    parser.add_argument("clips", type=Path, help="directory of clips that they were made of (data/clips/VARIANT)")
    parser.add_argument("--factor", type=int, default=4, help="of the upsampler (default: 4)")
    args = parser.parse_args()
    print(json.dumps(compare(pairs(args.made, args.clips), args.factor), indent=2))


def pairs(made: Path, clips: Path) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """(made, real, rate), waves [C, T] of one length."""
    paths = {path.stem: path for path in sorted(made.glob("*.wav"))}
    if not paths:
        raise UserError(f"{made}: no WAV file")
    for clip_id, (real, rate) in waves_of(clips, set(paths)):
        wave, its = soundfile.read(paths[clip_id], dtype="float32", always_2d=True)
        if (its, wave.shape) != (rate, real.T.shape):
            raise UserError(f"{paths[clip_id]}: {len(wave)} samples at {its} Hz, and its clip has {real.shape[1]} at {rate}")
        yield wave.T, real, rate


def compare(sounds: Iterator[tuple[np.ndarray, np.ndarray, int]], factor: int) -> dict[str, object]:
    """Of the upsampler and of sinc, `lsd` and `energy_db` of the upper band: [mean, low, high]."""
    found: dict[str, list[float]] = {f"{whose}_{what}": [] for whose in ("made", "sinc") for what in ("lsd", "energy_db")}
    empty = 0
    for made, real, rate in sounds:
        band = slice(WINDOW // (2 * factor) + 1, None)
        if energy_above(real, rate, factor) <= NOTHING * np.square(real, dtype=np.float64).sum():
            empty += 1
            continue
        for whose, wave in (("made", made), ("sinc", by_sinc(real, factor))):
            found[f"{whose}_lsd"].append(log_spectral_distance(wave, real, band))
            ratio = energy_above(wave, rate, factor) / energy_above(real, rate, factor)
            found[f"{whose}_energy_db"].append(float(10 * np.log10(max(ratio, NOTHING))))
    if not found["made_lsd"]:
        raise UserError("no clip has anything in the upper band")
    return {"clips": len(found["made_lsd"]), "nothing_there": empty, **{name: interval(values) for name, values in found.items()}}


def by_sinc(real: np.ndarray, factor: int) -> np.ndarray:
    """A wave [C, T] down to 1 / factor of its rate and back, as the upsampler sees it."""
    length = real.shape[1]
    padded = np.pad(real, ((0, 0), (0, -length % factor)))
    return without_upper_band(torch.from_numpy(padded)[None], factor)[0, :, :length].numpy()


def energy_above(wave: np.ndarray, rate: int, factor: int) -> float:
    """Of a wave [C, T], above the Nyquist frequency of 1 / factor of its rate."""
    spectrum = np.fft.rfft(wave.astype(np.float64), axis=1)
    above = np.fft.rfftfreq(wave.shape[1], 1 / rate) > rate / (2 * factor)
    weights = 2.0 / wave.shape[1]  # Parseval's, of a spectrum's half
    return float(weights * np.square(np.abs(spectrum[:, above])).sum())


def interval(values: list[float]) -> list[float]:
    rng = np.random.default_rng(0)
    means = rng.choice(values, (REPLICATES, len(values))).mean(1)
    return [round(float(value), 2) for value in (np.mean(values), *np.percentile(means, [2.5, 97.5]))]


if __name__ == "__main__":
    main()
