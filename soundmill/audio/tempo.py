"""The tempo of a recording that may be a loop of 4/4 bars, from its name, its length or its onsets.

Octaves are ambiguous: a loop at 90 bpm is also one at 180 bpm with half as many notes. Estimated tempi are in the octave from
`lowest` up; a tempo in a name is used as given.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from soundmill.audio.mel import MelSpec, log_mel

BEATS = 4  # per bar
RATE = 16_000  # of the analysed wave
FRAME = 80  # samples between onset strengths
FRAMES_PER_SECOND = RATE / FRAME
AUDIBLE = 6.9  # nepers of power (30 dB) below the maximum; fainter onsets are ignored
SMOOTHED = 5  # frames: tolerance for onsets played by hand
COMPARED_BEATS = 8  # largest lag of the autocorrelation, in beats
STEP = 1.001  # ratio of successive candidate tempi
LENGTHS = tuple(2**power for power in range(7))  # bars of loops whose tempo may follow from their length
LENGTH_TOLERANCE = 0.02  # in bars
MIN_PULSE = 0.25  # strength of the pulse at the best of all tempi
MIN_GIVEN_PULSE = 0.2  # at a tempo given by name or length: lower, since one tempo scores less by chance than the best of hundreds
MIN_SHARE_OF_BEST = 0.6  # of the strongest pulse, at a tempo given by name or length
MIN_FIRST_BEAT = 0.25  # of the beats' mean strength: the first bar starts at the first beat that has it
NAMED = re.compile(r"(?<![\d.])(\d{2,3}(?:\.\d+)?)[ _-]?bpm(?![a-z])|(?<![a-z])bpm[ _-]?(\d{2,3}(?:\.\d+)?)(?!\d)", re.IGNORECASE)


class NoLoopError(Exception):
    """A recording is not a loop; `reason` is short and stable, `detail` the evidence."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason} ({detail})")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Tempo:
    """An estimate; `confidence` is the strength of the pulse at this tempo: 1 if all beats sound the same."""

    bpm: float
    found_by: Literal["name", "length", "onsets"]
    start: float  # of the first bar, in seconds
    bars: int  # whole bars from there on
    confidence: float
    named: float | None  # tempo in the name, even if wrong

    @property
    def bar_seconds(self) -> float:
        return 60 * BEATS / self.bpm


def find(wave: np.ndarray, name: str, lowest: float) -> Tempo:
    """The tempo of a wave [T] at `RATE`; NoLoopError if it has none or is shorter than a bar.

    The tempo in the name, unless the onsets contradict it, or of the length (a power of two of bars); the clearer of the two.
    """
    seconds, named = len(wave) / RATE, named_tempo(name)
    if seconds < (1 - LENGTH_TOLERANCE) * 60 * BEATS / max(2 * lowest, named or 0):
        raise NoLoopError("too short", f"{seconds:.3g} s are less than a bar at {2 * lowest:g} bpm")
    if not np.any(wave):
        raise NoLoopError("silent", "all samples are zero")
    pulse = Pulse(onset_strength(wave))
    tempi = lowest * STEP ** np.arange(np.log(2) / np.log(STEP))
    strengths = pulse.strength(tempi)
    best, clearest = float(tempi[strengths.argmax()]), float(strengths.max())

    def confirmed(bpm: float) -> float | None:
        """The strength of the pulse at a tempo from name or length; None if the onsets contradict it."""
        strength = max(float(pulse.strength(np.array([bpm]))[0]), pulse.strength_around(bpm) if _is_whole(seconds, bpm) else 0.0)
        return strength if strength >= max(MIN_GIVEN_PULSE, MIN_SHARE_OF_BEST * clearest) else None

    by_length = None
    for bars in LENGTHS:
        bpm = 60 * BEATS * bars / seconds
        if lowest * (1 - LENGTH_TOLERANCE / 2) <= bpm < 2 * lowest and (strength := confirmed(bpm)) is not None:
            by_length = Tempo(bpm, "length", 0.0, bars, strength, named)
            break
    if named:
        strength, fits = confirmed(named), _is_whole(seconds, named)
        clearer = by_length is not None and not fits and by_length.confidence > (strength or 0.0)
        if (strength is not None or (fits and clearest < MIN_PULSE)) and not clearer:
            start = 0.0 if fits else pulse.first_bar(named)
            return _checked(Tempo(named, "name", start, _bars(seconds - start, named), strength or 0.0, named), seconds)
    if by_length:
        return by_length
    if clearest < MIN_PULSE:
        hint = f"; the name says {named:g} bpm, but the length is not a whole number of such bars" if named else ""
        what = f"the strongest pulse, at {best:.1f} bpm, has strength {clearest:.2f}, under {MIN_PULSE:g}"
        raise NoLoopError("no tempo", f"{what}{hint}")
    start = pulse.first_bar(best)
    return _checked(Tempo(best, "onsets", start, _bars(seconds - start, best), clearest, named), seconds)


def _checked(tempo: Tempo, seconds: float) -> Tempo:
    if tempo.bars < 1:
        bar = f"a bar at {tempo.bpm:.4g} bpm has {tempo.bar_seconds:.3g} s"
        raise NoLoopError("too short", f"{seconds - tempo.start:.3g} s from the first beat; {bar}")
    return tempo


def named_tempo(name: str) -> float | None:
    """The tempo in a name (`break_120bpm.wav`, `120 BPM pad.wav`, `BPM-97.5`); None if there is none, or several."""
    tempi = {float(match[1] or match[2]) for match in NAMED.finditer(name)}
    return tempi.pop() if len(tempi) == 1 and 30 <= min(tempi) <= 300 else None


def _is_whole(seconds: float, bpm: float) -> bool:
    """Whether a length is a power of two bars."""
    bars = seconds * bpm / (60 * BEATS)
    return any(abs(bars - whole) <= LENGTH_TOLERANCE for whole in LENGTHS)


def _bars(seconds: float, bpm: float) -> int:
    return int(seconds * bpm / (60 * BEATS) + LENGTH_TOLERANCE)


def onset_strength(wave: np.ndarray) -> np.ndarray:
    """Onset strength [frames] >= 0 of a wave [T] at `RATE`: rectified level increase over all mel bands, every `FRAME` samples."""
    spec = MelSpec(
        sample_rate=RATE, n_fft=512, win_length=400, hop_length=FRAME, n_mels=40, f_min=30.0, f_max=RATE / 2, mel_scale="htk",
        norm="none", power=2.0, floor=1e-10, peak=1.0,
    )  # fmt: skip
    levels = log_mel(np.asarray(wave, np.float32), spec)
    floor = levels.max() - 2 * AUDIBLE
    rises = np.maximum(np.diff(np.maximum(levels, floor), axis=1, prepend=floor), 0).mean(0)
    rises[0] = min(rises[0], rises[1:].max(initial=0.0))  # the start of the file is not a stronger onset than all others
    return np.convolve(rises, np.hanning(SMOOTHED + 2)[1:-1], "same")


@dataclass(frozen=True)
class Pulse:
    """Periodicity of onset strengths [frames]."""

    onsets: np.ndarray

    @cached_property
    def _centred(self) -> np.ndarray:
        return self.onsets - self.onsets.mean()

    @cached_property
    def _autocorrelation(self) -> np.ndarray:
        """Autocorrelation by lag in frames, 1 at lag 0, each lag normalised by its number of terms."""
        size = len(self.onsets)
        spectrum = np.fft.rfft(self._centred, 2 * size)
        products = np.fft.irfft(np.abs(spectrum) ** 2)[:size] / np.arange(size, 0, -1)
        return products / max(products[0], 1e-12)

    def strength(self, tempi: np.ndarray) -> np.ndarray:
        """Mean autocorrelation at lags of 1 to `COMPARED_BEATS` beats, by tempo [N]: 1 for exact repetition, about 0 by chance."""
        beats = 60 * FRAMES_PER_SECOND / np.asarray(tempi)[:, None] * np.arange(1, COMPARED_BEATS + 1)
        valid = beats <= 0.8 * len(self.onsets)  # larger lags have too few terms
        values = np.interp(beats, np.arange(len(self.onsets)), self._autocorrelation)
        return (values * valid).sum(1) / np.maximum(valid.sum(1), 1)

    def strength_around(self, bpm: float) -> float:
        """`strength` with circular autocorrelation, for a seamless loop."""
        size = len(self.onsets)
        spectrum = np.fft.rfft(self._centred)
        circular = np.fft.irfft(np.abs(spectrum) ** 2, size)
        beat = 60 * FRAMES_PER_SECOND / bpm
        lags = beat * np.arange(1, max(2, min(COMPARED_BEATS + 1, round(size / beat))))
        return float(np.interp(lags, np.arange(size), circular).mean() / max(circular[0], 1e-12))

    def first_bar(self, bpm: float) -> float:
        """Seconds to the first audible beat, by the phase of the onsets; the strongest are no guide, since snares often are."""
        period = 60 * FRAMES_PER_SECOND / bpm
        places, frames = np.arange(int(period)), np.arange(len(self.onsets))
        count = max(1, int((len(self.onsets) - places.max()) / period))
        phase = float(places[np.interp(places[:, None] + period * np.arange(count), frames, self.onsets).mean(1).argmax()])
        if phase > period - SMOOTHED:  # an onset at the very start, found a little early
            phase -= period
        beats, near = phase + period * np.arange(count), np.arange(-SMOOTHED, SMOOTHED + 1)
        strengths = np.interp(beats[:, None] + near, frames, self.onsets).max(1)
        audible = beats[strengths >= MIN_FIRST_BEAT * strengths.mean()]
        return max(0.0, float(audible[0] / FRAMES_PER_SECOND))
