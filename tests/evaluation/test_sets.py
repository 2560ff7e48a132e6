"""Which clips are compared with which, from ids, splits and the seed alone."""

import numpy as np
import pytest

from soundmill.errors import UserError
from soundmill.evaluation.sets import CatalogClip, choose_sets
from tests.evaluation.clips import catalog

CATALOG = catalog(60, 12, 18)


def ids(split: str) -> list[str]:
    return [clip.clip_id for clip in CATALOG if clip.split == split]


def test_sets_against_the_test_split():
    clips = {clip.clip_id: clip for clip in CATALOG}
    sets = choose_sets(CATALOG, ids("test")[:9], ids("valid"), "test", 1000, 0)
    assert sets.reference == tuple(ids("test"))
    assert len(sets.floor) == len(set(sets.floor)) == 9  # as many as generated: equal bias
    assert all(clips[clip_id].split == "train" for clip_id in sets.floor)
    assert sets.floor_reference == sets.reference
    assert len(sets.codec) == 9
    assert set(sets.codec) < set(ids("valid"))
    assert [name for name, _ in sets.partners] == list(sets.generated)
    assert all(clips[name].labels == clips[other].labels for name, other in sets.partners)
    assert len({other for _, other in sets.partners}) == 9
    assert len(sets.probe) == 90
    assert dict(sets.requested) == {name: clips[name].labels[0] for name in sets.generated}
    assert sets.real() >= {*sets.reference, *sets.floor, *sets.codec}


def test_sets_against_all_clips_keep_kin_apart():
    clips = {clip.clip_id: clip for clip in CATALOG}
    sets = choose_sets(CATALOG, ids("test"), ids("valid"), "all", 1000, 0)
    assert len(sets.reference) == 90
    assert sets.floor == tuple(ids("test"))
    assert {clips[clip_id].split for clip_id in sets.floor_reference} == {"train", "valid"}
    assert {clips[clip_id].split for clip_id in sets.codec_reference} == {"train", "test"}


def test_a_reference_of_one_split_loses_the_recordings_of_the_codec_clips():
    clips = {clip.clip_id: clip for clip in CATALOG}
    sets = choose_sets(CATALOG, ids("test"), ids("test")[:5], "test", 1000, 0)
    recordings = {clips[clip_id].recording_id for clip_id in sets.codec}
    assert sets.codec_reference
    assert recordings.isdisjoint(clips[clip_id].recording_id for clip_id in sets.codec_reference)


def test_sets_depend_on_ids_and_seed_alone():
    random = np.random.default_rng(0)
    first = choose_sets(CATALOG, ids("test")[:7], ids("valid"), "test", 40, 3)
    shuffled = sorted([CATALOG[i] for i in random.permutation(90)], key=lambda clip: clip.clip_id)
    assert choose_sets(shuffled, ids("test")[:7][::-1], ids("valid")[::-1], "test", 40, 3) == first
    other = choose_sets(CATALOG, ids("test")[:7], ids("valid"), "test", 40, 4)
    assert other.floor != first.floor
    assert len(first.probe) <= 40


def test_ids_without_a_real_clip_are_named():
    with pytest.raises(UserError, match="generated nobody_1: no real clip"):
        choose_sets(CATALOG, [*ids("test"), "nobody_1"], ids("valid"), "test", 0, 0)
    with pytest.raises(UserError, match="generated clip000: no real clip"):  # a training clip is none of the reference
        choose_sets(CATALOG, [*ids("test"), "clip000"], ids("valid"), "test", 0, 0)
    with pytest.raises(UserError, match="codec nobody_1"):
        choose_sets(CATALOG, ids("test"), [*ids("valid"), "nobody_1"], "test", 0, 0)
    with pytest.raises(UserError, match="1 generated sounds; at least 2"):
        choose_sets(CATALOG, ids("test")[:1], ids("valid"), "test", 0, 0)


def test_without_test_clips_validation_clips_are_the_reference():
    untested = [clip for clip in CATALOG if clip.split != "test"]
    assert choose_sets(untested, ids("valid"), ids("valid"), "test", 0, 0).reference == tuple(sorted(ids("valid")))
    with pytest.raises(UserError, match="generated a, b: no real clip"):
        choose_sets(untested, ["a", "b"], ids("valid"), "test", 0, 0)


def test_without_single_labels_there_is_no_probe_and_no_floor_of_pairs():
    unlabelled = [CatalogClip(clip.clip_id, clip.recording_id, 0, clip.split, (), clip.captions) for clip in CATALOG]
    sets = choose_sets(unlabelled, ids("test"), ids("valid"), "test", 1000, 0)
    assert sets.probe == sets.requested == sets.partners == ()
    assert len(sets.floor) == len(sets.generated)
    assert choose_sets(CATALOG, ids("test"), ids("valid"), "test", 0, 0).probe == ()
