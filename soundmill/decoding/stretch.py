"""Loops made longer or shorter at their pitch, by ffmpeg: its rubberband, or its atempo, which is rougher."""

from __future__ import annotations

import functools
import math
import subprocess
from typing import Literal

import numpy as np

from soundmill.audio.loop import closed
from soundmill.decoding.ffmpeg import STALL_SECONDS, ffmpeg_executable
from soundmill.errors import UserError

Stretcher = Literal["rubberband", "atempo"]
CONTEXT_SECONDS = 0.5  # of the loop's end before it and of its beginning after it, that the stretcher hears too
SLOWEST_ATEMPO = 0.5  # what it takes; to go slower, it is run several times
FADE_SECONDS = 0.02  # at a loop's end, in which it becomes what comes before its beginning
LARGEST_DELAY = 0.08  # seconds that a stretcher may come late or early by


@functools.cache
def best_stretcher() -> Stretcher:
    """Rubberband where the ffmpeg that runs here has it."""
    command = [str(ffmpeg_executable()), "-hide_banner", "-filters"]
    listed = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=STALL_SECONDS).stdout
    return "rubberband" if " rubberband " in listed else "atempo"


def stretch(wave: np.ndarray, sample_rate: int, num_samples: int, stretcher: Stretcher) -> np.ndarray:
    """A loop float32 [C, T] as one of `num_samples`; one as long as that stays as it is. A loop goes on at its beginning.

    Beats stay where they are in it: how late the stretcher comes is found by comparing how loudness rises. Its tones keep their
    pitch and so are cut anywhere in a period: the end fades into what the stretcher made before the beginning. An ffmpeg without
    rubberband is a UserError.
    """
    length = wave.shape[1]
    if length == num_samples:
        return wave
    tempo = length / num_samples
    before = round(CONTEXT_SECONDS * sample_rate * max(1.0, tempo))
    given = np.take(wave, np.arange(-before, length + before), axis=1, mode="wrap")
    times = math.ceil(math.log(tempo, SLOWEST_ATEMPO)) if stretcher == "atempo" and tempo < SLOWEST_ATEMPO else 1
    made = _run(given, sample_rate, ",".join([f"{stretcher}=tempo={tempo ** (1 / times):.9f}"] * times), stretcher)
    start = round(before / tempo) + _delay(made, given, tempo, sample_rate)
    fade = min(round(FADE_SECONDS * sample_rate), num_samples // 4)
    around = np.take(made, np.arange(start - fade, start + num_samples), axis=1, mode="clip")
    return np.ascontiguousarray(closed(around, fade, num_samples, fade))


def _run(wave: np.ndarray, sample_rate: int, audio_filter: str, stretcher: Stretcher) -> np.ndarray:
    form = ["-f", "f32le", "-ar", str(sample_rate), "-ac", str(len(wave))]
    command = [str(ffmpeg_executable()), "-nostdin", "-hide_banner", "-loglevel", "error", "-filter_threads", "1", *form]
    command += ["-i", "pipe:0", "-af", audio_filter, *form, "pipe:1"]
    done = subprocess.run(command, input=wave.T.astype("<f4").tobytes(), capture_output=True, timeout=STALL_SECONDS)
    if done.returncode or done.stderr:
        said = " ".join(done.stderr.decode("utf-8", "replace").split())[:300]
        raise UserError(
            f"ffmpeg could not stretch by {stretcher}: {said or f'exit status {done.returncode}'}; see `soundmill doctor`, or for "
            f"the stage `loops` set its `stretcher` to {'atempo' if stretcher == 'rubberband' else 'rubberband'}"
        )
    return np.frombuffer(done.stdout, "<f4").reshape(-1, len(wave)).T


def _delay(made: np.ndarray, given: np.ndarray, tempo: float, sample_rate: int) -> int:
    """Samples by which `made` comes later than `given` at this tempo: where their rises of loudness fit best."""
    frame = sample_rate // 1000
    here, there = _rises(made, frame), _rises(given, frame)
    expected = np.interp(np.arange(len(here)) * tempo, np.arange(len(there)), there)
    lags = np.arange(-round(1000 * LARGEST_DELAY), round(1000 * LARGEST_DELAY) + 1)
    likeness = [float(np.dot(np.roll(here, -lag), expected)) for lag in lags]
    return int(lags[int(np.argmax(likeness))]) * frame


def _rises(wave: np.ndarray, frame: int) -> np.ndarray:
    whole = wave.shape[1] // frame * frame
    levels = np.sqrt((wave[:, :whole].mean(0).reshape(-1, frame).astype(np.float64) ** 2).mean(1))
    return np.convolve(np.maximum(np.diff(levels, prepend=levels[:1]), 0), np.hanning(9)[1:-1], "same")
