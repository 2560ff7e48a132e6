"""Cuts cover a recording without overlap, whatever its length, and the tail follows its policy."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soundmill.audio.segment import Cut, dropped_samples, plan_cuts, to_samples

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
    with pytest.raises(ValueError, match="at least one sample"):
        plan_cuts(10, 0, "keep", 0)


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
