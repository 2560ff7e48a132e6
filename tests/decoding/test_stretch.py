"""Loops made longer and shorter: beats stay where they are, tones keep their pitch."""

import subprocess

import numpy as np
import pytest

from soundmill.decoding import stretch as stretching
from soundmill.decoding.ffmpeg import ffmpeg_executable
from soundmill.decoding.stretch import best_stretcher, stretch
from soundmill.errors import UserError

RATE = 16_000


def beats(seconds: float, count: int) -> np.ndarray:
    """A loop [1, T] of evenly spaced clicks, the first at its very beginning."""
    rng, wave = np.random.default_rng(0), np.zeros(round(seconds * RATE), np.float32)
    for beat in range(count):
        at = round(beat * len(wave) / count)
        wave[at : at + 1600] += (rng.standard_normal(1600) * np.exp(-np.arange(1600) / 300))[: len(wave) - at]
    return wave[None] / np.abs(wave).max()


def late_by(wave: np.ndarray, count: int) -> np.ndarray:
    """Milliseconds from where each of `count` beats belongs to where it is heard."""
    level = np.convolve(np.abs(wave[0]), np.ones(16) / 16, "same")
    near = np.arange(-1600, 1600)
    places = [round(beat * len(level) / count) for beat in range(count)]
    return np.array([1000 * near[np.argmax(np.take(level, place + near, mode="wrap") > 0.12)] / RATE for place in places])


@pytest.mark.parametrize(("stretcher", "most"), [("rubberband", 4.0), ("atempo", 30.0)])
@pytest.mark.parametrize("seconds", [1.6, 2.857])
def test_beats_stay_where_they_are(stretcher, most, seconds):
    output = stretch(beats(seconds, 4), RATE, 2 * RATE, stretcher)
    assert output.shape == (1, 2 * RATE)
    assert np.abs(late_by(output, 4)).max() <= most
    assert (output == stretch(beats(seconds, 4), RATE, 2 * RATE, stretcher)).all()


def test_a_tone_keeps_its_pitch_and_both_channels_their_own():
    seconds = np.arange(round(2.5 * RATE)) / RATE
    stereo = 0.5 * np.stack([np.sin(2 * np.pi * 440 * seconds), np.sin(2 * np.pi * 1320 * seconds)]).astype(np.float32)
    output = stretch(stereo, RATE, 2 * RATE, "rubberband")
    peaks = np.abs(np.fft.rfft(output * np.hanning(output.shape[1]))).argmax(1) * RATE / output.shape[1]
    assert peaks == pytest.approx([440, 1320], rel=0.005)


@pytest.mark.parametrize("stretcher", ["rubberband", "atempo"])
@pytest.mark.parametrize("bpm", [90, 100, 127, 140, 150])
def test_a_chord_that_goes_on_does_not_click_where_it_wraps(stretcher, bpm):
    seconds = np.arange(2 * RATE) / RATE
    chord = sum(0.2 * np.sin(2 * np.pi * hertz * seconds + hertz) for hertz in (110, 220.5, 277, 330.5))[None].astype(np.float32)
    output = stretch(chord, RATE, round(240 * RATE / bpm), stretcher)[0]
    steps = np.abs(np.diff(output))
    assert abs(output[0] - output[-1]) <= steps.max()
    bends = np.abs(np.diff(output, 2))
    assert np.abs(np.diff(np.concatenate([output[-2:], output[:2]]), 2)).max() <= 1.5 * bends.max()


def test_one_of_that_length_stays_as_it_is():
    wave = beats(2.0, 4)
    assert stretch(wave, RATE, 2 * RATE, "rubberband") is wave


@pytest.mark.parametrize("stretcher", ["rubberband", "atempo"])
def test_a_loop_becomes_four_times_as_long(stretcher):
    assert stretch(beats(0.5, 1), RATE, 2 * RATE, stretcher).shape == (1, 2 * RATE)


def test_rubberband_is_taken_where_ffmpeg_has_it(monkeypatch, tmp_path):
    assert best_stretcher() == "rubberband"
    other = tmp_path / "ffmpeg"
    other.write_text("#!/bin/sh\necho ' ... atempo            A->A       Adjust audio tempo.'\n")
    other.chmod(0o755)
    monkeypatch.setattr(stretching, "ffmpeg_executable", lambda: other)
    assert best_stretcher.__wrapped__() == "atempo"


def test_a_long_loop_is_given_longer_and_what_takes_longer_still_is_named(monkeypatch):
    def too_long(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    ffmpeg_executable()  # which it asks for its version
    monkeypatch.setattr(subprocess, "run", too_long)
    with pytest.raises(UserError, match=r"took more than 72 s to stretch 3 s by atempo.*max_seconds"):
        stretch(beats(1.0, 2), RATE, RATE // 2, "atempo")


def test_a_filter_that_ffmpeg_lacks_is_named():
    with pytest.raises(UserError, match=r"could not stretch by tardis.*tardis.*set its `stretcher` to rubberband"):
        stretch(beats(2.0, 4), RATE, RATE, "tardis")
