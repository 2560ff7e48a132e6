"""Every measure against signals whose answer is known, and how it behaves under gain, shift and other cuts of the stream."""

import math

import numpy as np
import pyarrow as pa
import pytest
import soxr
from hypothesis import given
from hypothesis import strategies as st

from soundmill import manifest
from soundmill.audio import levels, quality
from tests.waves import noise, tone

RATE = 16_000


def meter(channels: np.ndarray, rate: int = RATE) -> quality.RecordingMeter:
    """Of samples [n] or [n, channels]."""
    result = quality.RecordingMeter(rate)
    result.add(channels[:, None] if channels.ndim == 1 else channels)
    return result


def measure(wave: np.ndarray, rate: int = RATE) -> dict[str, float | None]:
    """Of one clip that is its whole recording."""
    return quality.measure_clip(wave, rate, meter(wave, rate), 0.0)


def test_a_plain_sine_and_what_has_dc():
    result = measure(tone(1000.0, 5.0))
    assert result["seconds"] == 5.0
    assert result["peak"] == pytest.approx(0.5, abs=1e-4)
    assert result["silence_ratio"] == 0.0
    assert result["clipping_ratio"] == 0.0
    assert result["dc_offset"] == 0.0
    assert 1000 < result["bandwidth_hz"] < 1200
    assert result["channel_correlation"] is None
    assert measure(tone(440.0, 5.0, amplitude=0.3) + np.float32(0.25))["dc_offset"] == pytest.approx(0.25, abs=1e-4)
    constant = measure(np.full(RATE, 0.5, np.float32))
    assert constant["dc_offset"] == 0.5
    assert constant["silence_ratio"] == 1.0  # a constant is no sound
    assert constant["bandwidth_hz"] < 100


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
@pytest.mark.parametrize("seconds", [0.01, 0.2, 5.0, 40.0])
def test_the_level_is_the_pressure_level(rate, seconds):
    wave = noise(seconds, rate) * np.linspace(0, 1, int(seconds * rate), dtype=np.float32)
    assert measure(wave, rate)["level_db"] == pytest.approx(levels.pressure_level(wave, rate), abs=0.02)


@pytest.mark.parametrize("amplitude", [1.0, 0.3])
def test_a_clipped_sine_has_the_share_that_was_cut(amplitude):
    wave = np.clip(tone(200.0, 5.0, amplitude=2.0), -1, 1) * np.float32(amplitude)
    assert measure(wave)["clipping_ratio"] == pytest.approx(2 / 3, abs=0.02)  # |sin| > 1/2 in 120° of 180°


def test_what_only_touches_its_peak_is_not_clipped_and_what_overshoots_hides_no_clipping():
    assert measure(noise(5.0))["clipping_ratio"] == 0.0
    assert measure(tone(440.0, 5.0, 44_100), 44_100)["clipping_ratio"] < 0.001
    quiet = np.rint(noise(5.0) * 20) / 32768  # two bits of noise stand in runs of equal samples
    assert measure(quiet.astype(np.float32))["clipping_ratio"] == 0.0
    clipped = np.clip(tone(200.0, 5.0, 44_100, amplitude=3.0), -1, 1)
    spoilt = clipped + noise(5.0, 44_100, amplitude=0.003)
    spoilt[1000] = 1.2
    assert measure(spoilt, 44_100)["clipping_ratio"] > 0.1


def test_clipping_counts_for_the_clip_it_is_in_and_at_the_ceiling_of_the_whole_recording():
    calm, hot = tone(200.0, 5.0, amplitude=0.4), np.clip(tone(200.0, 5.0, amplitude=2.0), -0.8, 0.8)
    of = meter(np.concatenate([np.clip(tone(200.0, 5.0), -0.3, 0.3), calm, hot]))
    assert [of.clipping_ratio(start, 5.0) > 0.1 for start in (0.0, 5.0, 10.0)] == [False, False, True]
    assert of.clipping_ratio(15.0, 5.0) == 0.0  # beyond the end
    last = meter(np.concatenate([hot, calm]))
    assert [last.clipping_ratio(start, 5.0) > 0.1 for start in (0.0, 5.0)] == [True, False]


def test_clipped_samples_of_all_channels_count_and_runs_do_not_reach_from_one_into_the_next():
    wave = tone(200.0, 5.0, amplitude=2.0)
    both = np.stack([np.clip(wave, -1, 1), wave * 0.1], axis=1)
    assert meter(both).clipping_ratio(0.0, 5.0) == pytest.approx(1 / 3, abs=0.01)
    both = np.zeros((1000, 2), np.float32)
    both[-2:, 0] = both[:2, 1] = 1.0
    assert meter(both).clipping_ratio(0.0, 1.0) == 0.0
    both[-3:, 0] = 1.0
    assert meter(both).clipping_ratio(0.0, 1.0) == pytest.approx(3 / 2000)


@pytest.mark.parametrize("cutoff", [1000, 2000, 4000, 6000])
def test_the_bandwidth_is_where_a_low_pass_cuts(cutoff):
    spectrum = np.fft.rfft(noise(5.0))
    spectrum[cutoff * 5 :] = 0
    assert measure(np.fft.irfft(spectrum).astype(np.float32))["bandwidth_hz"] == pytest.approx(cutoff, abs=70)  # one band
    assert measure(noise(5.0))["bandwidth_hz"] == RATE / 2


def test_what_was_upsampled_from_8_khz_ends_at_4_khz():
    wave = soxr.resample(noise(5.0, 8_000), 8_000, RATE).astype(np.float32)
    assert measure(wave)["bandwidth_hz"] == pytest.approx(4000, abs=150)
    stored = (np.rint(wave * 32768) / 32768).astype(np.float32)
    assert measure(stored)["bandwidth_hz"] == pytest.approx(4000, abs=150)
    ending = np.concatenate([stored, np.zeros(3 * RATE, np.float32)])  # the pad is not measured, but silence may follow
    assert measure(ending[: int(5.01 * RATE)])["bandwidth_hz"] == pytest.approx(4000, abs=150)


def coloured(rate: int, seed: int) -> np.ndarray:
    """Five seconds of noise that falls by 6 dB an octave and comes and goes: as strong at low frequencies as real sounds are."""
    spectrum = np.fft.rfft(noise(5.0, rate, seed=seed))
    spectrum /= np.maximum(np.arange(len(spectrum)) / 5, 50) / 50
    swell = 0.6 + 0.4 * np.sin(2 * np.pi * 1.3 * np.arange(5 * rate) / rate)
    return (8 * np.fft.irfft(spectrum) * swell).astype(np.float32)


@pytest.mark.parametrize("rate_between", [RATE, 44_100])
@pytest.mark.parametrize("by", ["torchaudio", "scipy"])
def test_the_mirror_image_that_a_short_filter_leaves_is_no_sound(by, rate_between):
    import torch
    import torchaudio
    from scipy import signal

    for seed in range(3):
        low = coloured(8_000, seed)
        if by == "torchaudio":
            wave = torchaudio.functional.resample(torch.from_numpy(low), 8_000, rate_between).numpy()
        else:
            wave = signal.resample_poly(low, rate_between // 100, 80).astype(np.float32)
        wave = (np.rint(wave * 32768) / 32768).astype(np.float32)[137:]
        if rate_between != RATE:
            wave = soxr.resample(wave, rate_between, RATE)
        assert measure(wave)["bandwidth_hz"] == pytest.approx(3950, abs=130)
        assert measure(wave[: RATE // 2])["bandwidth_hz"] == pytest.approx(3950, abs=130)
        assert measure(np.tile(wave[:60_000], 10))["bandwidth_hz"] == pytest.approx(3950, abs=130)


def test_what_is_no_mirror_image_is_sound():
    low = soxr.resample(coloured(8_000, 0), 8_000, RATE)
    assert measure(low + coloured(RATE, 1) * np.float32(0.1))["bandwidth_hz"] > 7000
    click = np.zeros(5 * RATE, np.float32)
    click[777::8000] = 0.9
    assert measure(click)["bandwidth_hz"] == RATE / 2
    # One click is its own mirror, and so are those of a metronome, over a little noise.
    time = np.arange(400) / RATE
    tick = (0.9 * np.exp(-time / 0.003) * np.sin(2 * np.pi * 2500 * time)).astype(np.float32)
    for places in ([30_000], range(2000, 78_000, 8000)):
        wave = noise(5.0, amplitude=3e-4)
        for place in places:
            wave[place : place + len(tick)] += tick
        assert measure(wave)["bandwidth_hz"] > 7000
    # Harmonics of 100 Hz are each other's mirror around 4 kHz.
    time = np.arange(5 * RATE) / RATE
    saw = sum(np.sin(2 * np.pi * 100 * number * time + number) / number for number in range(1, 80))
    assert measure((0.2 * saw).astype(np.float32))["bandwidth_hz"] > 7700


def test_silence_is_a_share_of_the_windows_and_has_no_level():
    half = np.concatenate([noise(2.56), np.zeros(int(2.56 * RATE), np.float32)])
    assert measure(half)["silence_ratio"] == pytest.approx(0.5, abs=0.02)
    assert measure(half + np.float32(0.3))["silence_ratio"] == pytest.approx(0.5, abs=0.02)
    assert measure(noise(1.0, amplitude=10 ** (-66 / 20)))["silence_ratio"] == 1.0
    assert measure(noise(1.0, amplitude=10 ** (-54 / 20)))["silence_ratio"] == 0.0
    assert measure(noise(1.0, amplitude=1e-12))["level_db"] == levels.FLOOR_DB
    assert measure(np.zeros(RATE, np.float32))["level_db"] is None
    for constant in (0.1, 0.9, 1.0):
        assert measure(np.full(RATE, constant, np.float32))["silence_ratio"] == 1.0
    assert measure(np.repeat(np.float32([0.9, -0.9]), 16 * 1024))["silence_ratio"] == 1.0


def test_channels_that_agree_differ_or_are_wired_the_wrong_way_round():
    left, other = noise(5.0, seed=1), noise(5.0, seed=2)

    def correlation(*channels: np.ndarray) -> float | None:
        return meter(np.stack(channels, axis=1)).channel_correlation()

    assert correlation(left, left) == 1.0
    assert correlation(left, -0.5 * left + np.float32(0.2)) == -1.0
    assert correlation(left, other) == pytest.approx(0.0, abs=0.02)
    assert correlation(left, (left + other) / 2) == pytest.approx(math.sqrt(0.5), abs=0.01)
    assert correlation(left, left, other, -left, left) == -1.0
    assert correlation(left, left, np.zeros_like(left)) == 1.0  # a dead channel agrees with nothing
    assert correlation(left, np.zeros_like(left)) is None
    assert correlation(left) is None


@pytest.mark.parametrize("wave", [np.zeros(0), np.zeros(1), np.ones(1), np.zeros(RATE), np.full(3, -1.0), np.ones(2047), [0, 1, 0]])
def test_every_measure_of_nearly_nothing_is_a_number_or_null(wave):
    result = measure(np.asarray(wave, np.float32))
    assert list(result) == [field.name for field in manifest.QUALITY]
    assert all(value is None or math.isfinite(value) for value in result.values())
    pa.array([result], manifest.QUALITY).validate(full=True)


def test_samples_that_are_no_numbers_are_left_to_the_decoder_to_refuse():
    with np.errstate(all="raise"):
        meter(np.array([[0.1, np.inf], [np.nan, -np.inf], [3e38, 3e38]], np.float32))._finish()


@given(st.integers(1, 3), st.integers(0, 2**31), st.lists(st.integers(0, 90_000), max_size=6))
def test_the_cut_of_the_stream_changes_no_bit(channels, seed, cuts):
    block = np.clip(noise(9.0, seed=seed, amplitude=0.6), -1, 1)[: 140_000 // channels * channels].reshape(-1, channels)
    whole, parts = meter(block), quality.RecordingMeter(RATE)
    start = 0
    for cut in [*cuts, len(block)]:
        parts.add(block[start : start + cut])
        start += cut
    assert parts.channel_correlation() == whole.channel_correlation()
    assert [parts.clipping_ratio(at, 0.7) for at in (0.0, 0.7, 5.3)] == [whole.clipping_ratio(at, 0.7) for at in (0.0, 0.7, 5.3)]
