"""Energy above a frequency, in generated sounds and in real clips: noise that a diffusion of waves left is heard as hiss.

python -m bench.hiss data/generated/waveform_unet data/clips/one_shots --above 10000

Of each sound the share of its energy above the frequency, in dB: median and quartiles over sounds that are not silent.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from soundmill.errors import UserError
from soundmill.models.catalog import waves_of
from soundmill.shards import shard_paths
from soundmill.training.seeds import seed_of

AT_MOST = 500  # real clips, a fixed choice
FLOOR = 1e-12  # of the energy: -120 dB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generated", type=Path, help="directory of WAV files")
    parser.add_argument("real", type=Path, help="directory of clips (data/clips/VARIANT)")
    parser.add_argument("--above", type=float, default=10_000.0, metavar="HZ", help="default: 10000")
    args = parser.parse_args()
    found = {
        "generated": shares((soundfile.read(path, always_2d=True) for path in sorted(args.generated.glob("*.wav"))), args.above),
        "real": shares(real(args.real), args.above),
    }
    print(json.dumps({"above_hz": args.above, **found}, indent=2))


def real(clips: Path) -> Iterator[tuple[np.ndarray, int]]:
    """(wave [T, C], rate) of a fixed choice of clips."""
    import pyarrow.parquet as pq

    ids = [clip_id for path in shard_paths(clips) for clip_id in pq.read_table(path, columns=["clip_id"])["clip_id"].to_pylist()]
    chosen = sorted(ids, key=lambda clip_id: seed_of(0, clip_id))[:AT_MOST]
    for _, (wave, rate) in waves_of(clips, set(chosen)):
        yield wave.T, rate


def shares(sounds: Iterator[tuple[np.ndarray, int]], above: float) -> dict[str, float]:
    """Quartiles of the sounds' shares in dB, and their number."""
    found = [share for wave, rate in sounds if (share := share_above(wave.mean(1), rate, above)) is not None]
    if not found:
        raise UserError("no sound that is not silent")
    low, middle, high = np.percentile(found, [25, 50, 75])
    return {
        "sounds": len(found),
        "median_db": round(middle, 1),
        "quartile_low_db": round(low, 1),
        "quartile_high_db": round(high, 1),
    }


def share_above(wave: np.ndarray, rate: int, above: float) -> float | None:
    """dB of the energy above a frequency against all of it, for a wave [T]; None of silence."""
    if above >= rate / 2:
        raise UserError(f"--above {above:g}: sounds of {rate} Hz have nothing there")
    energy = np.abs(np.fft.rfft(wave)) ** 2
    total = energy.sum()
    if total <= 0:
        return None
    part = energy[np.fft.rfftfreq(len(wave), 1 / rate) > above].sum()
    return float(10 * np.log10(max(part / total, FLOOR)))


if __name__ == "__main__":
    main()
