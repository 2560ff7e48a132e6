"""Time-stretching loops with ffmpeg's rubberband, or with atempo, which sounds worse."""

import functools
import math
import subprocess
from typing import Literal

import numpy as np

from soundmill.audio.pieces import closed
from soundmill.decoding.ffmpeg import STALL_SECONDS, ffmpeg_executable
from soundmill.errors import UserError

Stretcher = Literal["rubberband", "atempo"]
CONTEXT_SECONDS = 0.5  # of the repeated loop before and after it, as context for the stretcher
SLOWEST_ATEMPO = 0.5  # its minimum; chained for slower tempi
FADE_SECONDS = 0.02  # crossfade at the end of a loop
LARGEST_DELAY = 0.08  # seconds of delay, positive or negative


@functools.cache
def best_stretcher() -> Stretcher:
    """rubberband if this ffmpeg has it, else atempo."""
    command = [str(ffmpeg_executable()), "-hide_banner", "-filters"]
    try:
        listed = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=STALL_SECONDS).stdout
    except subprocess.TimeoutExpired:
        raise UserError(f"{command[0]} does not list its filters in {STALL_SECONDS:.0f} s; see `soundmill doctor`") from None
    return "rubberband" if " rubberband " in listed else "atempo"


def stretch(wave: np.ndarray, sample_rate: int, num_samples: int, stretcher: Stretcher) -> np.ndarray:
    """Stretch a seamless loop float32 [C, T] to `num_samples`; unchanged if it has that length.

    Beats keep their relative positions: the stretcher's delay is found by correlating level increases. Since tones keep their
    pitch, periods do not fit the new length, so the end is crossfaded into the sound before the start. UserError if ffmpeg
    does not have the stretcher.
    """
    length = wave.shape[1]
    if length == num_samples:
        return wave
    tempo = length / num_samples
    before = round(CONTEXT_SECONDS * sample_rate * max(1.0, tempo))
    given = np.take(wave, np.arange(-before, length + before), axis=1, mode="wrap")
    times = math.ceil(math.log(tempo, SLOWEST_ATEMPO)) if stretcher == "atempo" and tempo < SLOWEST_ATEMPO else 1
    stretched = _run(given, sample_rate, ",".join([f"{stretcher}=tempo={tempo ** (1 / times):.9f}"] * times), stretcher)
    start = round(before / tempo) + _delay(stretched, given, tempo, sample_rate)
    fade = min(round(FADE_SECONDS * sample_rate), num_samples // 4)
    around = np.take(stretched, np.arange(start - fade, start + num_samples), axis=1, mode="clip")
    return np.ascontiguousarray(closed(around, fade, num_samples, fade))


def _run(wave: np.ndarray, sample_rate: int, audio_filter: str, stretcher: Stretcher) -> np.ndarray:
    import ffmpeg

    form = {"f": "f32le", "ar": sample_rate, "ac": len(wave)}
    head = [str(ffmpeg_executable()), "-nostdin", "-hide_banner", "-loglevel", "error", "-filter_threads", "1"]
    command = ffmpeg.input("pipe:0", **form).output("pipe:1", af=audio_filter, **form).compile(cmd=head)
    seconds = wave.shape[1] / sample_rate
    patience = STALL_SECONDS + 4 * seconds
    try:
        done = subprocess.run(command, input=wave.T.astype("<f4").tobytes(), capture_output=True, timeout=patience)
    except subprocess.TimeoutExpired:
        raise UserError(
            f"ffmpeg took more than {patience:.0f} s to stretch {seconds:.0f} s by {stretcher}; run it again when less else runs, "
            "or lower the `max_seconds` of these loops"
        ) from None
    if done.returncode or done.stderr:
        message = " ".join(done.stderr.decode("utf-8", "replace").split())[:300]
        raise UserError(
            f"ffmpeg could not stretch by {stretcher}: {message or f'exit status {done.returncode}'}; see `soundmill doctor`, or "
            f"for the stage `loops` set its `stretcher` to {'atempo' if stretcher == 'rubberband' else 'rubberband'}"
        )
    return np.frombuffer(done.stdout, "<f4").reshape(-1, len(wave)).T


def _delay(stretched: np.ndarray, given: np.ndarray, tempo: float, sample_rate: int) -> int:
    """Delay of `stretched` against `given` in samples, where their level increases correlate best."""
    frame = sample_rate // 1000
    here, there = _rises(stretched, frame), _rises(given, frame)
    expected = np.interp(np.arange(len(here)) * tempo, np.arange(len(there)), there)
    lags = np.arange(-round(1000 * LARGEST_DELAY), round(1000 * LARGEST_DELAY) + 1)
    likeness = [float(np.dot(np.roll(here, -lag), expected)) for lag in lags]
    return int(lags[int(np.argmax(likeness))]) * frame


def _rises(wave: np.ndarray, frame: int) -> np.ndarray:
    whole = wave.shape[1] // frame * frame
    levels = np.sqrt((wave[:, :whole].mean(0).reshape(-1, frame).astype(np.float64) ** 2).mean(1))
    return np.convolve(np.maximum(np.diff(levels, prepend=levels[:1]), 0), np.hanning(9)[1:-1], "same")
