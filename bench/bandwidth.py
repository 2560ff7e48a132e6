"""Detection of upsampled audio: real recordings, and the same downsampled to 8 kHz and upsampled by common tools.

All are stored with 16 bits and measured as the stage `resample` measures clips of 16 kHz.
"""

import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from bench import measure, recordings
from bench.measure import Target
from soundmill.audio.quality import RecordingMeter, measure_clip
from soundmill.audio.resample import resample
from soundmill.decoding.decode import read_mono
from soundmill.decoding.ffmpeg import ffmpeg_executable

RATE, LOW_RATE = 16_000, 8_000
LIMIT_HZ = 4_500.0  # `min_bandwidth_hz` proposed in conf/config.yaml
PEAK = 0.9  # of every sound: clipping adds energy at all frequencies
MAX_SECONDS = 10.0

Upsample = Callable[[np.ndarray], np.ndarray]


def by_soxr(wave: np.ndarray) -> np.ndarray:
    return resample(wave, LOW_RATE, RATE)


def by_torchaudio(wave: np.ndarray) -> np.ndarray:
    import torch
    from torchaudio import functional

    return functional.resample(torch.from_numpy(wave), LOW_RATE, RATE).numpy()


def by_torchaudio_kaiser(wave: np.ndarray) -> np.ndarray:
    import torch
    from torchaudio import functional

    return functional.resample(torch.from_numpy(wave), LOW_RATE, RATE, resampling_method="sinc_interp_kaiser").numpy()


def by_scipy_poly(wave: np.ndarray) -> np.ndarray:
    from scipy import signal

    return signal.resample_poly(wave, RATE, LOW_RATE)


def by_scipy_fourier(wave: np.ndarray) -> np.ndarray:
    from scipy import signal

    return signal.resample(wave, len(wave) * RATE // LOW_RATE)


def by_ffmpeg(wave: np.ndarray) -> np.ndarray:
    with tempfile.TemporaryDirectory() as name:
        low, high = (Path(name) / file for file in ("low.wav", "high.wav"))
        soundfile.write(low, wave, LOW_RATE, subtype="FLOAT")
        command = [ffmpeg_executable(), "-nostdin", "-loglevel", "error", "-i", f"file:{low}", "-ar", str(RATE)]
        subprocess.run([*command, "-c:a", "pcm_f32le", f"file:{high}"], check=True)
        return soundfile.read(high, dtype="float32")[0]


def by_linear_interpolation(wave: np.ndarray) -> np.ndarray:
    places = np.arange(len(wave) * RATE // LOW_RATE) * (LOW_RATE / RATE)
    return np.interp(places, np.arange(len(wave)), wave)


UPSAMPLED: dict[str, Upsample] = {
    "soxr": by_soxr,
    "scipy.signal.resample": by_scipy_fourier,
    "torchaudio": by_torchaudio,
    "torchaudio, Kaiser window": by_torchaudio_kaiser,
    "scipy.signal.resample_poly": by_scipy_poly,
    "ffmpeg": by_ffmpeg,
    "linear interpolation": by_linear_interpolation,
}
WITHOUT_TARGET = {"linear interpolation"}  # its images are almost as loud as the sound; the rule does not detect them


def main() -> None:
    args = measure.parser(__doc__, most=240).parse_args()
    with measure.workplace(args.work) as place:
        found, what = recordings.find(args.audio, Path(place))
        start = time.perf_counter()
        readings = read_all(found[: args.most])
        seconds = time.perf_counter() - start
    shares = {name: float(np.mean(np.array(values) < LIMIT_HZ)) for name, values in readings.items()}
    for name, values in readings.items():
        quantiles = ", ".join(f"{value:,.0f}" for value in np.quantile(values, (0, 0.05, 0.5, 0.95, 1)))
        print(f"{name}: {shares[name]:.1%} below {LIMIT_HZ:,.0f} Hz; lowest, 5 %, median, 95 %, highest: {quantiles}")
    false_alarms = shares["original"]
    measure.write(
        "bandwidth",
        args.results,
        len(readings["original"]),
        {"all readings": [seconds]},
        [
            *(
                Target(f"8 kHz sound upsampled by {name} and detected", shares[name], 0.95, unit="")
                for name in UPSAMPLED
                if name not in WITHOUT_TARGET
            ),
            Target("false alarms: original recordings", false_alarms, 0.01, at_least=False, unit=""),
        ],
        recordings=what,
        limit_hz=LIMIT_HZ,
        shares=shares,
        readings=readings,
    )


def read_all(paths: list[Path]) -> dict[str, list[float]]:
    """Bandwidth in Hz of every recording, original and upsampled from 8 kHz by each tool."""
    bandwidths: dict[str, list[float]] = {name: [] for name in ("original", *UPSAMPLED)}
    for path in paths:
        wave = read_mono(path, RATE, 3600.0)[: int(MAX_SECONDS * RATE)]
        wave *= np.float32(PEAK / max(float(np.abs(wave).max(initial=0)), 1e-3))
        low = resample(wave, RATE, LOW_RATE)
        bandwidths["original"].append(bandwidth(wave))
        for name, upsample in UPSAMPLED.items():
            bandwidths[name].append(bandwidth(upsample(low)))
    return bandwidths


def bandwidth(wave: np.ndarray) -> float:
    stored = (np.rint(np.clip(wave, -1, 1) * 32767) / 32768).astype(np.float32)
    meter = RecordingMeter(RATE)
    meter.add(stored[:, None])
    return measure_clip(stored, RATE, meter, 0.0)["bandwidth_hz"]


if __name__ == "__main__":
    main()
