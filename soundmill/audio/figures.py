"""Spectrogram pictures: time in seconds, frequency in Hz, one colour scale for all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from soundmill.audio.mel import MelSpec, log_mel, mel_filterbank, picture_spec
from soundmill.audio.resample import resample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DYNAMIC_RANGE_DB = 80
SHOWN_SECONDS = 30  # of a file, in a picture
FREQUENCY_TICKS = (125, 500, 2000, 8000)


def draw_log_mels(log_mels: np.ndarray, titles: list[str], spec: MelSpec, columns: int, heading: str) -> Figure:
    """A grid of log-mels [N, n_mels, frames] (natural log), each with a title."""
    from soundmill.drawing import Figure, shorten

    decibels = 20 / spec.power / math.log(10) * np.asarray(log_mels, dtype=np.float64)
    top = float(np.quantile(decibels, 0.9995))
    rows = math.ceil(len(decibels) / columns)
    figure = Figure(figsize=(2.5 * columns + 0.9, 1.75 * rows + 0.8), layout="constrained")
    figure.suptitle(heading)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    seconds = decibels.shape[2] * spec.hop_length / spec.sample_rate
    centres = mel_filterbank(spec).argmax(0).double().numpy() * spec.sample_rate / spec.n_fft
    ticks = [hertz for hertz in FREQUENCY_TICKS if centres[0] <= hertz <= spec.f_max]
    for axis, picture, title in zip(axes.flat, decibels, titles, strict=False):
        image = axis.imshow(
            picture,
            origin="lower",
            aspect="auto",
            cmap="magma",
            vmin=top - DYNAMIC_RANGE_DB,
            vmax=top,
            extent=(0, seconds, 0, spec.n_mels),
            interpolation="nearest",
        )
        axis.set_title(shorten(title), fontsize=9)
        axis.set_yticks([float(np.interp(hertz, centres, np.arange(spec.n_mels) + 0.5)) for hertz in ticks])
        axis.set_yticklabels([f"{hertz}" for hertz in ticks], fontsize=7)
        axis.tick_params(axis="x", labelsize=7)
    for axis in list(axes.flat)[len(decibels) :]:
        axis.set_visible(False)
    figure.supxlabel("seconds", fontsize=9)
    figure.supylabel("Hz", fontsize=9)
    figure.colorbar(image, ax=axes, label="dB", shrink=0.6, aspect=30)
    return figure


def draw_waves(waves: Sequence[tuple[np.ndarray, int]], titles: list[str], columns: int, heading: str) -> Figure:
    """A grid of log-mels of sounds (wave [C, T], rate), each with a title, all at the highest rate."""
    rate = max(rate for _, rate in waves)
    n_fft = max(64, 2 ** math.floor(math.log2(0.064 * rate)))  # windows of at most 64 ms
    spec = picture_spec(rate, n_fft, n_fft, n_fft // 4, min(80, n_fft // 8), 0.0, "slaney")
    mono = [resample(np.asarray(wave, np.float32).mean(0), own, rate) for wave, own in waves]
    longest = max(map(len, mono))
    log_mels = [log_mel(np.pad(wave, (0, longest - len(wave))), spec) for wave in mono]
    return draw_log_mels(np.stack(log_mels), titles, spec, columns, heading)


def draw_files(paths: Sequence[Path], titles: list[str], columns: int, heading: str) -> Figure:
    """`draw_waves` of WAV files written by this project, only the first SHOWN_SECONDS of each."""
    import soundfile

    waves, cut = [], False
    for path in paths:
        with open(path, "rb") as file, soundfile.SoundFile(file) as sound:
            shown = SHOWN_SECONDS * sound.samplerate
            cut |= sound.frames > shown
            waves.append((sound.read(shown, dtype="float32", always_2d=True).T, sound.samplerate))
    return draw_waves(waves, titles, columns, f"{heading}: the first {SHOWN_SECONDS} s" if cut else heading)


def draw_beats(loops: Sequence[tuple[str, np.ndarray, int, float]], longest: float, beats: int) -> Figure:
    """Waveforms of loops (title, wave [T], rate, seconds per beat), at most `longest` seconds, with lines at beats and bars."""
    from soundmill.drawing import Figure, shorten

    columns = min(3, len(loops))
    rows = math.ceil(len(loops) / columns)
    figure = Figure(figsize=(4.2 * columns, 1.3 * rows + 0.5), layout="constrained")
    for axis, (title, wave, rate, beat) in zip(figure.subplots(rows, columns, squeeze=False).flat, loops, strict=False):
        size = min(len(wave), round(longest * rate))
        seconds = np.arange(size) / rate
        axis.plot(seconds, wave[:size], linewidth=0.3, color="#1c7ed6")
        for number in range(int(size / rate / beat + 1e-6) + 1):
            axis.axvline(number * beat, color="#c2255c", linewidth=1.4 if number % beats == 0 else 0.5)
        axis.set_title(shorten(title, 44), fontsize=8)
        axis.set(xlim=(0, size / rate), yticks=[])
        axis.tick_params(axis="x", labelsize=7)
    for axis in figure.axes[len(loops) :]:
        axis.set_visible(False)
    figure.supxlabel("seconds", fontsize=8)
    return figure


def draw_curves(curves: dict[str, list[tuple[float, float]]], heading: str) -> Figure:
    from soundmill.drawing import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    for name, points in curves.items():
        axis.plot(*zip(*points, strict=True), label=name, marker=".")
    axis.set(title=heading, xlabel="step")
    axis.legend()
    return figure


def save_png(figure: Figure, path: Path) -> None:
    """Write a PNG whose bytes depend only on the figure."""
    figure.savefig(path, format="png", dpi=100, metadata={"Software": None})
