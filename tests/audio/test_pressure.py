import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from soundmill.audio.levels import a_weighting, join_captions, mix, mix_ratio, pressure_level, window_length
from stages.mixup import Candidate, plan_pairs

RATES = (8000, 16_000, 22_050, 44_100, 48_000)


def tone(hertz: float, rate: int = 16_000, seconds: float = 1.0, amplitude: float = 0.5) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def noise(seed: int, samples: int = 16_000) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)


@pytest.mark.parametrize(
    ("tenths_of_decade", "decibel"), [(15, -39.4), (20, -19.1), (27, -3.2), (30, 0.0), (33, 1.2), (36, 1.0), (39, -1.1)]
)
def test_a_curve_is_the_standards_table(tenths_of_decade, decibel):
    gain = a_weighting(np.array([10 ** (tenths_of_decade / 10)]))[0]
    assert 10 * math.log10(gain) == pytest.approx(decibel, abs=0.06)


def test_window_at_the_rates_of_the_paper():
    assert [window_length(rate) for rate in (16_000, 44_100)] == [2048, 4096]


@pytest.mark.parametrize("rate", RATES)
def test_twenty_decibels_at_any_rate(rate):
    loud, soft = (pressure_level(tone(1000, rate, amplitude=a), rate) for a in (0.5, 0.05))
    assert loud - soft == pytest.approx(20, abs=1e-3)


def test_level_is_of_the_loudest_moment_even_at_the_very_end():
    wave = np.zeros(16_000, np.float32)
    wave[-300:] = tone(1000)[:300]
    assert pressure_level(wave, 16_000) > 0
    later = np.concatenate([np.zeros(80_000, np.float32), tone(1000)])
    assert pressure_level(later, 16_000) == pytest.approx(pressure_level(tone(1000), 16_000), abs=0.1)


@pytest.mark.parametrize("samples", [0, 1, 2047, 2048, 2049, 700_000])
def test_silence_and_very_short_clips_have_a_finite_level(samples):
    assert pressure_level(np.zeros(samples, np.float32), 16_000) == -80.0
    assert math.isfinite(pressure_level(np.full(samples, 1e-30, np.float32), 16_000))


def test_mix_ratio_known_answers():
    assert mix_ratio(-12.3, -12.3) == 0.5
    assert mix_ratio(-10, -30) == pytest.approx(1 / 11)
    assert mix_ratio(-30, -10) == pytest.approx(10 / 11)


@given(st.floats(0.01, 0.99))
def test_mix_of_unrelated_sounds_keeps_their_power(ratio):
    first, second = noise(1, 200_000), noise(2, 200_000)
    assert mix(first, second, ratio).var() == pytest.approx(0.01, rel=0.02)


def test_mix_equalises_the_levels():
    loud, soft = tone(1000, amplitude=0.8), tone(1500, amplitude=0.008)
    ratio = mix_ratio(pressure_level(loud, 16_000), pressure_level(soft, 16_000))
    spectrum = np.abs(np.fft.rfft(mix(loud, soft, ratio))) ** 2 * a_weighting(np.fft.rfftfreq(16_000, 1 / 16_000))
    assert 10 * math.log10(spectrum[1000] / spectrum[1500]) == pytest.approx(0, abs=0.05)


@given(st.integers(0, 3000), st.integers(0, 3000), st.floats(0.05, 0.95))
def test_mix_is_as_long_as_the_longer_and_symmetric(first, second, ratio):
    a, b = noise(1, first), noise(2, second)
    mixed = mix(a, b, ratio)
    assert mixed.dtype == np.float32
    assert len(mixed) == max(first, second)
    np.testing.assert_allclose(mixed, mix(b, a, 1 - ratio), atol=1e-6)


def test_mix_with_silence_and_of_silences():
    zeros = np.zeros(16_000, np.float32)
    level = pressure_level(zeros, 16_000)
    assert not mix(zeros, zeros, mix_ratio(level, level)).any()
    sound = mix(zeros, tone(1000), mix_ratio(level, pressure_level(tone(1000), 16_000)))
    assert np.isfinite(sound).all()


def test_captions_join_as_in_tango():
    assert join_captions("A dog barks", "Rain falls on a roof") == "A dog barks and rain falls on a roof"
    assert join_captions("A dog barks", "") == "A dog barks and "


def clips(count: int, kinds: int = 3, per_recording: int = 2) -> list[Candidate]:
    return [
        Candidate(f"clip{i:03d}", f"rec{i // per_recording}", frozenset({f"kind{i // per_recording % kinds}"}))
        for i in range(count)
    ]


@given(st.integers(2, 40), st.integers(0, 60), st.integers(0, 5), st.randoms())
def test_pairs_are_of_two_recordings_never_twice_and_independent_of_order(count, limit, seed, random):
    some = clips(count)
    pairs = plan_pairs(some, limit, seed)
    assert len(pairs) <= limit
    assert all(a.recording_id != b.recording_id for a, b in pairs)
    assert len({frozenset((a.clip_id, b.clip_id)) for a, b in pairs}) == len(pairs)
    shuffled = list(some)
    random.shuffle(shuffled)
    assert plan_pairs(shuffled, limit, seed) == pairs


def test_pairs_are_of_different_kinds_while_there_are_any():
    pairs = plan_pairs(clips(60), 120, seed=0)
    assert len(pairs) == 120
    assert not any(a.kinds & b.kinds for a, b in pairs)
    first = [a.clip_id for a, _ in pairs]
    assert {first.count(one) for one in set(first)} == {2}
    assert len(plan_pairs(clips(8, kinds=1), 4, seed=0)) == 4  # one kind only: better the same than none


def test_partners_of_any_kind_are_drawn_evenly():
    """Twenty mixes a clip, as TANGO's 40 epochs take: every clip is also the second of about twenty."""
    some = [Candidate(f"clip{index:03d}", f"rec{index}", frozenset()) for index in range(200)]
    pairs = plan_pairs(some, 4000, seed=0)
    assert len(pairs) == 4000
    second = [sum(b.clip_id == one.clip_id for _, b in pairs) for one in some]
    assert min(second) >= 5
    assert max(second) <= 45


def test_few_clips_make_the_pairs_there_are():
    assert plan_pairs([], 5, 0) == []
    assert plan_pairs(clips(2, per_recording=2), 5, 0) == []
    assert len(plan_pairs(clips(2, per_recording=1), 5, 0)) == 1


def test_one_more_clip_changes_few_pairs():
    old = {(a.clip_id, b.clip_id) for a, b in plan_pairs(clips(200, per_recording=1), 100, seed=0)}
    new = {(a.clip_id, b.clip_id) for a, b in plan_pairs(clips(201, per_recording=1), 100, seed=0)}
    assert len(old & new) >= 95
