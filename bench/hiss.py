"""Share of energy above a frequency in generated sounds and real clips: noise left by diffusion of waves is heard as hiss.

python -m bench.hiss data/generated/waveform_unet data/clips/one_shots --above 10000

Median and quartiles of the shares in dB, over sounds that are not silent.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from bench.recordings import some_clips
from soundmill.errors import UserError

MAX_REAL = 500  # clips, a fixed choice
FLOOR = 1e-12  # share of the energy: -120 dB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generated", type=Path, help="directory of WAV files")
    parser.add_argument("real", type=Path, help="directory of clips (data/clips/VARIANT)")
    parser.add_argument("--above", type=float, default=10_000.0, metavar="HZ", help="default: 10000")
    args = parser.parse_args()
    results = {
        "generated": shares((soundfile.read(path, always_2d=True) for path in sorted(args.generated.glob("*.wav"))), args.above),
        "real": shares(((wave.T, rate) for wave, rate in some_clips(args.real, MAX_REAL)), args.above),
    }
    print(json.dumps({"above_hz": args.above, **results}, indent=2))


def shares(sounds: Iterator[tuple[np.ndarray, int]], above: float) -> dict[str, float]:
    """Number of sounds and quartiles of their shares in dB."""
    values = [share for wave, rate in sounds if (share := share_above(wave.mean(1), rate, above)) is not None]
    if not values:
        raise UserError("all sounds are silent")
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {
        "sounds": len(values),
        "median_db": round(middle, 1),
        "quartile_low_db": round(low, 1),
        "quartile_high_db": round(high, 1),
    }


def share_above(wave: np.ndarray, rate: int, above: float) -> float | None:
    """Share in dB of the energy of a wave [T] above a frequency; None for silence."""
    if above >= rate / 2:
        raise UserError(f"--above {above:g}: must be below half of the sounds' rate, {rate} Hz")
    energy = np.abs(np.fft.rfft(wave)) ** 2
    total = energy.sum()
    if total <= 0:
        return None
    part = energy[np.fft.rfftfreq(len(wave), 1 / rate) > above].sum()
    return float(10 * np.log10(max(part / total, FLOOR)))


if __name__ == "__main__":
    main()
