"""Tempi with known answers: clicks, the embedded corpus of loops, and what is no loop."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from soundmill.audio import tempo
from soundmill.audio.resample import resample
from soundmill.audio.tempo import RATE, NoLoopError, find, named_tempo
from soundmill.corpora import loop_corpus

LOWEST = 80.0


def clicks(bpm: float, seconds: float, start: float = 0.0) -> np.ndarray:
    """Short noises on the beats, the first of four louder and lower."""
    rng, wave = np.random.default_rng(0), np.zeros(round(seconds * RATE), np.float32)
    for beat in range(int((seconds - start) * bpm / 60 + 1e-9)):
        at = round((start + beat * 60 / bpm) * RATE)
        click = rng.standard_normal(800) * np.exp(-np.arange(800) / 120) * (0.4 if beat % 4 else 1.0)
        wave[at : at + 800] += click[: len(wave) - at]
    return wave / np.abs(wave).max()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("break_120bpm.wav", 120),
        ("120 BPM pad.flac", 120),
        ("Loop-97.5Bpm-A.wav", 97.5),
        ("bpm124.mp3", 124),
        ("deep_BPM_98_04.wav", 98),
        ("house 128-bpm.wav", 128),
        ("loop_04.wav", None),
        ("120bpmania.wav", None),
        ("1200bpm.wav", None),
        ("90bpm to 120bpm.wav", None),  # which is it?
        ("20bpm.wav", None),
    ],
)
def test_tempo_in_a_name(name, told):
    assert named_tempo(name) == told


@settings(max_examples=60, deadline=None)
@given(st.floats(81, 158), st.floats(0, 0.3), st.floats(4.5, 11))
@example(147.0, 0.25, 6.5)
def test_clicks_anywhere_have_their_tempo(bpm, start, seconds):
    found = find(clicks(bpm, seconds, start), "x.wav", LOWEST)
    assert found.bpm == pytest.approx(bpm, rel=0.01)
    if found.found_by == "length":  # whole bars are a loop from where they begin, between beats too
        assert (found.start, found.bars * found.bar_seconds) == (0, pytest.approx(seconds, abs=1 / RATE))
    else:
        assert abs(found.start - start) < 0.03
    assert found.start + (found.bars - tempo.LENGTH_TOLERANCE) * found.bar_seconds <= seconds


def test_a_length_of_whole_bars_is_the_tempo_to_the_sample():
    found = find(clicks(97.0, 8 * 60 / 97), "x.wav", LOWEST)
    assert (found.found_by, found.bars, found.start) == ("length", 2, 0.0)
    assert found.bpm == pytest.approx(97.0, abs=0.01)


def test_a_name_is_believed_unless_the_onsets_say_otherwise():
    wave = clicks(100.0, 9.6)  # four bars
    assert find(wave, "a 100bpm.wav", LOWEST).found_by == "name"
    wrong = find(wave, "a 117bpm.wav", LOWEST)
    assert (wrong.found_by, wrong.named) == ("length", 117)
    assert wrong.bpm == pytest.approx(100, rel=1e-3)
    pad = np.sin(2 * np.pi * 220 * np.arange(round(9.6 * RATE)) / RATE).astype(np.float32)
    assert find(pad, "pad 100bpm.wav", LOWEST).bars == 4  # no onset speaks against it, and its length is so many bars
    with pytest.raises(NoLoopError, match=r"no tempo .* the name says 117 bpm, but the length is not a whole number of such bars"):
        find(pad, "pad 117bpm.wav", LOWEST)


def test_a_rounded_name_loses_to_the_length_that_fits():
    """Eight bars at 140.5 are 7.97 of 140: taken at that they would lose a bar."""
    found = find(clicks(140.5, 32 * 60 / 140.5), "x 140bpm.wav", LOWEST)
    assert (found.found_by, found.start, found.bars, found.named) == ("length", 0.0, 8, 140)
    assert found.bpm == pytest.approx(140.5, abs=0.01)


@pytest.mark.parametrize(("bars", "rest"), [(1, 0.3), (1, 0.5), (2, 0.5), (3, 0.0), (3, 0.9), (5, 0.3), (6, 0.2)])
def test_a_loop_that_begins_on_its_first_beat_keeps_its_first_bar(bars, rest):
    """Its tempo is in its name, and it rings out at its end."""
    wave = np.concatenate([clicks(120, 2.0 * bars), np.zeros(round(rest * RATE), np.float32)])
    found = find(wave, "break 120bpm.wav", LOWEST)
    assert (found.bpm, found.start, found.bars) == (120, 0.0, bars)


def test_a_beat_over_noise_that_begins_at_once_is_found():
    """The noise's own beginning is no beat that drowns the others."""
    rng = np.random.default_rng(0)
    for bpm in (90.0, 113.0, 140.0):
        wave = clicks(bpm, 6.5, 0.25)
        found = find(wave + 0.04 * rng.standard_normal(len(wave)).astype(np.float32), "x.wav", LOWEST)
        assert found.bpm == pytest.approx(bpm, rel=0.01)
        assert found.start == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(
    ("wave", "reason"),
    [
        (np.random.default_rng(0).standard_normal(5 * RATE).astype(np.float32), "no tempo"),
        (np.zeros(5 * RATE, np.float32), "silent"),
        (clicks(120, 1.0), "too short"),
        (np.zeros(1, np.float32), "too short"),
    ],
)
def test_what_is_no_loop_says_why(wave, reason):
    with pytest.raises(NoLoopError) as refused:
        find(wave, "x.wav", LOWEST)
    assert refused.value.reason == reason
    assert refused.value.detail


@pytest.mark.slow
def test_bars_of_the_embedded_loops_are_found():
    """At least 95 % have their tempo within 1 %, begin where they do within 30 ms, and keep all bars; whatever tells the tempo."""
    right: dict[str, list[bool]] = {}
    for loop in loop_corpus.plan(240, 0.1, 0.25, 0)[::2]:
        wave = resample(loop_corpus.render(loop, 0).mean(1).astype(np.float32), loop.rate, RATE)
        found = find(wave, loop.name, LOWEST)
        begins = abs(found.start - loop.lead) < 0.03 and found.bars == loop.bars
        right.setdefault(loop.hint, []).append(abs(found.bpm / loop.bpm - 1) < 0.01 and begins)
    assert set(right) == set(loop_corpus.TEMPO_HINTS)
    assert min(np.mean(hits) for hits in right.values()) >= 0.95, {hint: np.mean(hits) for hint, hits in right.items()}
