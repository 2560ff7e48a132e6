"""Sounds cut into pieces and windows: what is made of them is what is made of the whole, and no more is held; loops that close."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import soxr
import torch
from hypothesis import given
from hypothesis import strategies as st

from soundmill.audio.pieces import (
    Cut,
    closed,
    dropped_samples,
    equal_power,
    faded,
    pieces,
    plan_cuts,
    to_samples,
    window_starts,
    windows,
)
from soundmill.audio.resample import BLOCK_SAMPLES, resample, resample_blocks, resampled_length
from tests.waves import tone


def blocks_of(wave: torch.Tensor, size: int, taken: list[int]) -> Iterator[torch.Tensor]:
    for block in wave.split(size, -1):
        taken.append(block.shape[-1])
        yield block


@pytest.mark.parametrize("length", [1, 7, 99, 100, 101, 512, 1000])
@pytest.mark.parametrize(("size", "around"), [(100, 12), (10, 40), (100, 0), (3000, 12)])
def test_a_convolution_of_pieces_is_that_of_the_whole(length, size, around):
    wave, kernel = torch.randn(2, 1, length), torch.randn(1, 1, 2 * around + 1)
    whole = torch.nn.functional.conv1d(wave, kernel, padding=around)
    taken, given, output = [], 0, []
    for piece in pieces(blocks_of(wave, 64, taken), size, around):
        output.append(piece.inner(torch.nn.functional.conv1d(piece.values, kernel, padding=around)))
        assert piece.start == given
        given += piece.count
        assert sum(taken) - given <= 64 + around + size  # it has read no further than it had to
    torch.testing.assert_close(torch.cat(output, 2), whole)


@pytest.mark.parametrize("length", [1, 999, 1000, 1001, 1899, 1901, 7777])
def test_windows_are_cut_and_faded_as_of_the_whole(length):
    size, overlap, wave = 1000, 100, torch.randn(2, length)
    starts = window_starts(length, size, overlap)
    cut = dict(windows(wave.split(64, 1), starts, size))
    assert list(cut) == starts
    assert all(torch.equal(part, wave[:, start : start + size]) for start, part in cut.items())

    parts = {start: torch.full((1, len(part[0])), float(number)) for number, (start, part) in enumerate(cut.items())}
    output = torch.cat(list(faded(iter(parts.items()), overlap, torch.lerp)), 1)[0]
    ends = [start + len(part[0]) for start, part in parts.items()]
    fade, expected = torch.linspace(0, 1, overlap + 2)[1:-1], torch.zeros(length)
    for number, (before, after) in enumerate(pairwise(ends)):  # over the last `overlap` samples of what there is
        expected[before - overlap : before], expected[before:after] = number + fade, number + 1
    torch.testing.assert_close(output, expected)


def test_windows_are_faded_on_the_device_that_they_are_on():
    """A GPU, as a rule; `meta` is as far from the CPU."""
    parts = ((start, torch.empty(2, 1000, device="meta")) for start in (0, 900, 1800))
    found = [(block.device.type, block.shape[1]) for block in faded(parts, 100, equal_power)]
    assert found == [("meta", size) for size in (900, 900, 1000)]


def test_what_is_done_comes_out_before_the_next_window_is_read():
    length, size, overlap, taken, given = 50_000, 1000, 100, [], 0
    cut = windows(blocks_of(torch.zeros(1, length), 64, taken), window_starts(length, size, overlap), size)
    for block in faded(cut, overlap, equal_power):
        given += block.shape[1]
        assert sum(taken) - given <= 2 * size + 64
    assert given == length


def test_a_closed_loop_goes_on_at_its_beginning():
    """Of a sound that has nothing to do with the loop's length, the seam is as smooth as any other place."""
    wave = np.sin(2 * np.pi * 37.3 * np.arange(4000, dtype=np.float32) / 4000)
    loop = closed(wave[None, None], 1000, 2000, 100)[0, 0]
    assert (loop[:1900] == wave[1000:2900]).all()
    jumps, plainly = np.abs(np.roll(loop, -1) - loop), np.abs(np.diff(wave)).max()
    assert jumps[-1] <= plainly  # as anywhere in the wave itself
    assert jumps[:-1].max() < 1.2 * plainly
    assert abs(wave[1000] - wave[2999]) > 5 * jumps[-1]


lengths = st.integers(0, 20_000)
clip_lengths = st.integers(20, 5_000)
least = st.integers(0, 6_000)
tails = st.sampled_from(["keep", "drop", "pad"])


@given(lengths, clip_lengths, tails, least)
def test_cuts_follow_each_other_from_the_start_and_the_rest_is_counted(length, clip, tail, minimum):
    cuts = plan_cuts(length, clip, tail, minimum)
    at = 0
    for cut in cuts:
        assert cut.start_sample == at
        assert 0 < cut.num_samples <= clip
        at += cut.num_samples
    assert at + dropped_samples(length, cuts) == length
    assert dropped_samples(length, cuts) < clip
    assert all(cut == Cut(cut.start_sample, clip, 0) for cut in cuts[:-1])


@given(lengths, clip_lengths, least)
def test_drop_and_pad_give_clips_of_one_length(length, clip, minimum):
    for tail in ("drop", "pad"):
        assert {cut.num_samples + cut.pad_samples for cut in plan_cuts(length, clip, tail, minimum)} <= {clip}
    assert len(plan_cuts(length, clip, "drop", minimum)) == length // clip


@given(lengths, clip_lengths, least)
def test_keep_and_pad_drop_only_what_is_under_the_minimum(length, clip, minimum):
    kept = plan_cuts(length, clip, "keep", minimum)
    assert all(cut.pad_samples == 0 for cut in kept)
    assert [cut.num_samples for cut in kept] == [cut.num_samples for cut in plan_cuts(length, clip, "pad", minimum)]
    rest = length % clip
    assert dropped_samples(length, kept) == (rest if rest < minimum and length > clip else 0)


def test_a_recording_shorter_than_a_clip_is_no_remainder():
    assert plan_cuts(800, 80_000, "pad", 16_000) == [Cut(0, 800, 79_200)]
    assert plan_cuts(800, 80_000, "keep", 16_000) == [Cut(0, 800, 0)]
    assert plan_cuts(800, 80_000, "drop", 16_000) == []
    assert plan_cuts(0, 80_000, "keep", 0) == []
    assert plan_cuts(96_000, 80_000, "keep", 16_000) == [Cut(0, 80_000, 0), Cut(80_000, 16_000, 0)]  # no less than the minimum


@pytest.mark.parametrize("rate", [16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("seconds", [0.743, 5.0, 10.0])
def test_clips_start_at_whole_samples_of_every_rate(rate, seconds):
    """A clip's length is rounded once; so after an hour no start has drifted, and seconds name the sample exactly."""
    clip = to_samples(seconds, rate)
    assert abs(Fraction(clip, rate) - Fraction(seconds)) <= Fraction(1, 2 * rate)
    cuts = plan_cuts(3600 * rate + 17, clip, "keep", 0)
    assert [cut.start_sample for cut in cuts] == [index * clip for index in range(len(cuts))]
    assert all(to_samples(cut.start_sample / rate, rate) == cut.start_sample for cut in cuts)
    assert dropped_samples(3600 * rate + 17, cuts) == 0


@given(st.integers(1, 10**6), st.integers(1000, 192_000))
def test_seconds_of_whole_samples_come_back(samples, rate):
    assert to_samples(samples / rate, rate) == samples


RATES = [8000, 11025, 16000, 22050, 32000, 44100, 48000, 96000, 192000]


def level(wave: np.ndarray) -> float:
    """RMS in dB of the middle, away from both edges."""
    middle = wave[len(wave) // 4 : -len(wave) // 4].astype(np.float64)
    return 20 * np.log10(np.sqrt(np.mean(middle**2)) + 1e-12)


@given(st.integers(0, 10**9), st.integers(1, 10**6), st.integers(1000, 192_000))
def test_length_is_the_nearest_whole_number(num_samples, rate_in, rate_out):
    exact = Fraction(num_samples * rate_out, rate_in)
    assert abs(resampled_length(num_samples, rate_in, rate_out) - exact) <= Fraction(1, 2)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("num_samples", [0, 1, 2, 7, 999, 44_101])
def test_exactly_the_promised_length(rate, num_samples):
    wave = np.random.default_rng(num_samples).standard_normal(num_samples).astype(np.float32)
    output = resample(wave, rate, 16_000)
    assert len(output) == resampled_length(num_samples, rate, 16_000)
    assert rate != 16_000 or (output == wave).all()


@given(st.data())
def test_a_stream_in_pieces_equals_one_shot(data):
    rate = data.draw(st.sampled_from([8000, 22_050, 44_100, 48_000, 96_001]))
    wave = np.random.default_rng(0).standard_normal(data.draw(st.integers(1, 30_000))).astype(np.float32)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wave)), max_size=6)))
    parts = np.split(wave, cuts)
    streamed = np.concatenate(list(resample_blocks(parts, rate, 16_000)))
    np.testing.assert_array_equal(streamed, resample(wave, rate, 16_000))
    for channels in (1, 3):
        several = resample(np.stack([wave] * channels), rate, 16_000)
        np.testing.assert_array_equal(several, np.stack([streamed] * channels))


@pytest.mark.parametrize("frequency", [8_200, 9_000, 12_000, 20_000])
def test_aliases_are_more_than_60_db_down(frequency):
    assert level(resample(tone(frequency, 1.0, 44_100), 44_100, 16_000)) < level(tone(1000)) - 60


@pytest.mark.parametrize("rate", RATES)
def test_a_tone_in_band_keeps_its_level_and_place(rate):
    output = resample(tone(1000, 1.0, rate, amplitude=1.0), rate, 16_000)
    expected = tone(1000, amplitude=1.0)
    middle = slice(4000, 12_000)
    np.testing.assert_allclose(output[middle], expected[middle], atol=2e-3)


def test_upsampling_a_crawling_rate_stays_in_bounded_blocks():
    blocks = [len(block) for block in resample_blocks([np.ones(30_000, dtype=np.float32)], 100, 16_000)]
    assert sum(blocks) == 30_000 * 160
    assert max(blocks) < 2 * BLOCK_SAMPLES


def test_a_stream_that_follows_or_accompanies_another_gives_the_same_samples():
    rng = np.random.default_rng(3)
    waves = [rng.standard_normal(size).astype(np.float32) for size in (70_000, 5, 70_000)]
    fresh = [soxr.resample(wave, 44_100, 16_000, "HQ") for wave in waves]
    resample(np.full(50_000, 3e38, np.float32), 44_100, 16_000)  # beyond any number, once filtered
    abandoned = resample_blocks([waves[0], waves[2]], 44_100, 16_000)
    next(abandoned)
    both = zip(*(resample_blocks(np.split(waves[index], 7), 44_100, 16_000) for index in (0, 2)), strict=True)
    first, second = (np.concatenate(parts) for parts in zip(*both, strict=True))
    for result, wave in ((first, fresh[0]), (resample(waves[1], 44_100, 16_000), fresh[1]), (second, fresh[2])):
        np.testing.assert_array_equal(result[: len(wave)], wave[: len(result)])
