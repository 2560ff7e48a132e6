"""Share of energy in a band of frequencies of generated sounds and real clips: noise left by diffusion of waves is heard as hiss.

python -m bench.hiss data/generated/waveform_unet data/clips/one_shots --above 10000
python -m bench.hiss data/generated/waveform_unet data/clips/one_shots --above 4000 --below 8000 --parts 4

Median and quartiles in dB of the share that the band has in the whole sound's energy, over sounds that are not silent; with
`--parts`, of each of so many successive parts: does noise grow towards the end?
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
    parser.add_argument("--below", type=float, default=float("inf"), metavar="HZ", help="default: half of the rate")
    parser.add_argument("--parts", type=int, default=1, help="of each sound, equally long (default: 1)")
    args = parser.parse_args()
    band = args.above, args.below, args.parts
    results = {
        "generated": shares((soundfile.read(path, always_2d=True) for path in sorted(args.generated.glob("*.wav"))), *band),
        "real": shares(((wave.T, rate) for wave, rate in some_clips(args.real, MAX_REAL)), *band),
    }
    print(json.dumps({"above_hz": args.above, **results}, indent=2))


def shares(
    sounds: Iterator[tuple[np.ndarray, int]], above: float, below: float = float("inf"), parts: int = 1
) -> dict[str, float | list[float]]:
    """Number of sounds and quartiles of their shares in dB; of several parts, a list of each."""
    values = [share for wave, rate in sounds if (share := share_in(wave.mean(1), rate, above, below, parts)) is not None]
    if not values:
        raise UserError("all sounds are silent")
    quartiles = np.percentile(values, [25, 50, 75], axis=0).round(1)
    low, middle, high = quartiles.tolist() if parts > 1 else quartiles[:, 0].tolist()
    return {"sounds": len(values), "median_db": middle, "quartile_low_db": low, "quartile_high_db": high}


def share_in(wave: np.ndarray, rate: int, above: float, below: float, parts: int) -> list[float] | None:
    """Of each part of a wave [T], the energy between two frequencies as a share in dB of the wave's; None for silence."""
    if above >= min(below, rate / 2):
        raise UserError(f"--above {above:g}: must be below --below and below half of the sounds' rate, {rate} Hz")
    if (total := np.square(wave, dtype=np.float64).sum()) <= 0:
        return None
    found = []
    for part in np.array_split(wave, parts):
        frequencies = np.fft.rfftfreq(len(part), 1 / rate)
        kept = np.fft.rfft(part) * ((frequencies > above) & (frequencies <= below))
        energy = np.square(np.fft.irfft(kept, len(part))).sum()
        found.append(float(10 * np.log10(max(energy / total, FLOOR))))
    return found


if __name__ == "__main__":
    main()
