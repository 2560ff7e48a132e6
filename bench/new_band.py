"""Distance of an upsampler's new band from the real one, compared with windowed sinc, which leaves the band empty.

python -m bench.new_band data/generated/upsampler data/clips/default --factor 4

Every WAV file of the first directory has the name of the clip that it was generated from. `lsd` is the log-spectral distance of
soundmill/evaluation/waveforms.py over the bins above the lower rate's Nyquist frequency; `energy_db` is the energy there relative
to the real clip's. Means over clips with 95 % bootstrap intervals. Clips that are empty there are counted and left out.
"""

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
MIN_SHARE = 10 ** (-FLOOR_DB / 10)  # of a clip's energy; with less, its upper band counts as empty


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generated", type=Path, help="directory of WAV files, such as data/generated/upsampler")
    parser.add_argument("clips", type=Path, help="directory of the clips that they were generated from (data/clips/VARIANT)")
    parser.add_argument("--factor", type=int, default=4, help="factor of the upsampler (default: 4)")
    args = parser.parse_args()
    print(json.dumps(compare(pairs(args.generated, args.clips), args.factor), indent=2))


def pairs(generated: Path, clips: Path) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """(generated, real, rate), waves [C, T] of equal length."""
    paths = {path.stem: path for path in sorted(generated.glob("*.wav"))}
    if not paths:
        raise UserError(f"{generated}: no WAV file")
    for clip_id, (real, rate) in waves_of(clips, set(paths)):
        wave, wave_rate = soundfile.read(paths[clip_id], dtype="float32", always_2d=True)
        if (wave_rate, wave.shape) != (rate, real.T.shape):
            raise UserError(f"{paths[clip_id]}: {len(wave)} samples at {wave_rate} Hz, but its clip has {real.shape[1]} at {rate}")
        yield wave.T, real, rate


def compare(sounds: Iterator[tuple[np.ndarray, np.ndarray, int]], factor: int) -> dict[str, object]:
    """`lsd` and `energy_db` of the upper band for the upsampler and for sinc: [mean, low, high]."""
    values: dict[str, list[float]] = {f"{side}_{what}": [] for side in ("generated", "sinc") for what in ("lsd", "energy_db")}
    empty = 0
    for generated, real, rate in sounds:
        band = slice(WINDOW // (2 * factor) + 1, None)
        if energy_above(real, rate, factor) <= MIN_SHARE * np.square(real, dtype=np.float64).sum():
            empty += 1
            continue
        for side, wave in (("generated", generated), ("sinc", by_sinc(real, factor))):
            values[f"{side}_lsd"].append(log_spectral_distance(wave, real, band))
            ratio = energy_above(wave, rate, factor) / energy_above(real, rate, factor)
            values[f"{side}_energy_db"].append(float(10 * np.log10(max(ratio, MIN_SHARE))))
    if not values["generated_lsd"]:
        raise UserError("the upper band of all clips is empty")
    return {
        "clips": len(values["generated_lsd"]),
        "empty_band": empty,
        **{name: interval(one) for name, one in values.items()},
    }


def by_sinc(real: np.ndarray, factor: int) -> np.ndarray:
    """A wave [C, T] resampled to 1 / factor of its rate and back, as the upsampler receives it."""
    length = real.shape[1]
    padded = np.pad(real, ((0, 0), (0, -length % factor)))
    return without_upper_band(torch.from_numpy(padded)[None], factor)[0, :, :length].numpy()


def energy_above(wave: np.ndarray, rate: int, factor: int) -> float:
    """Energy of a wave [C, T] above the Nyquist frequency of 1 / factor of its rate."""
    spectrum = np.fft.rfft(wave.astype(np.float64), axis=1)
    above = np.fft.rfftfreq(wave.shape[1], 1 / rate) > rate / (2 * factor)
    weights = 2.0 / wave.shape[1]  # Parseval's theorem for one-sided spectra
    return float(weights * np.square(np.abs(spectrum[:, above])).sum())


def interval(values: list[float]) -> list[float]:
    rng = np.random.default_rng(0)
    means = rng.choice(values, (REPLICATES, len(values))).mean(1)
    return [round(float(value), 2) for value in (np.mean(values), *np.percentile(means, [2.5, 97.5]))]


if __name__ == "__main__":
    main()
