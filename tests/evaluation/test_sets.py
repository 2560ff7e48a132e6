"""Which clips are compared with which, from ids, splits and the seed alone; which group a prompt is in; and the linear probe, whose
folds never part a group."""

import numpy as np
import pytest

from soundmill import hashing, params
from soundmill.corpora import synthetic
from soundmill.errors import UserError
from soundmill.evaluation import probe
from soundmill.evaluation import sets as subsets
from soundmill.evaluation.sets import CatalogClip, choose_sets

LABELS = ("bark", "rain", "bell")


def catalog(train: int, valid: int, test: int) -> list[CatalogClip]:
    """So many clips of each split, two of each recording, in 3 classes."""
    splits = ["train"] * train + ["valid"] * valid + ["test"] * test
    clips = []
    for index, split in enumerate(splits):
        label = LABELS[(index // 2) % 3]
        clips.append(CatalogClip(f"clip{index:03d}", f"recording{index // 2}", 0, split, (label,), (f"a {label}",)))
    return clips


CATALOG = catalog(60, 12, 18)


def ids(split: str, clips: list[CatalogClip] = CATALOG) -> list[str]:
    return [clip.clip_id for clip in clips if clip.split == split]


def test_sets_against_the_test_split():
    clips = {clip.clip_id: clip for clip in CATALOG}
    sets = choose_sets(CATALOG, ids("test")[:9], ids("valid"), "test", 1000, 0)
    assert sets.reference == tuple(ids("test"))
    assert len(sets.floor) == len(set(sets.floor)) == 9  # as many as generated: equal bias
    assert all(clips[clip_id].split == "train" for clip_id in sets.floor)
    assert sets.floor_reference == sets.reference
    assert len(sets.codec) == 9
    assert choose_sets(CATALOG, ids("test"), ids("valid")[:1], "test", 0, 0).codec == ()  # one sound has no score
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
    with pytest.raises(UserError, match="a score needs 2 or more generated sounds, not 1"):
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


def clip(number: int, caption: str | None = "rain", labels: tuple[str, ...] = (), split: str = "test") -> CatalogClip:
    return CatalogClip(f"c{number:02d}", f"r{number:02d}", 0, split, labels, () if caption is None else (caption,))


@pytest.mark.parametrize(
    ("caption", "group"),
    [
        ("Constant rattling noise and sharp vibrations", "one event"),
        ("A rocket flies by followed by a loud explosion", "several events"),
        ("Birds chirp and ducks quack before a man speaks", "several events"),
        ("While a dog barks, a man talks", "several events"),
        ("a bell rings, then rain falls", "several events"),
        ("Wind blows after which thunder rolls", "several events"),
        ("Strengthening wind on a meanwhile quiet aftermath", "one event"),  # the words, not their letters
        ("Rain follows a thunderclap", "several events"),
        (None, None),
    ],
)
def test_several_events_are_told_by_the_words_of_the_prompt(caption, group):
    assert subsets.events(clip(0, caption)) == ([group] if group else [])


def test_labels_are_counted_once_each():
    assert subsets.labels(clip(0)) == []
    assert subsets.labels(clip(0, labels=("dog", "dog"))) == ["1 label"]
    assert subsets.labels(clip(0, labels=("dog", "rain"))) == ["2 labels", "2 or more labels"]
    assert subsets.labels(clip(0, labels=("dog", "rain", "wind", "bell"))) == ["2 or more labels"]


def test_the_prompt_is_one_caption_of_several_at_random_and_always_the_same():
    captions = tuple(f"caption {number}" for number in range(5))
    prompts = [CatalogClip(f"c{number}", "r", 0, "test", (), captions).prompt for number in range(500)]
    assert prompts == [hashing.prompt_of(f"c{number}", list(captions)) for number in range(500)]
    assert all(70 < prompts.count(caption) < 130 for caption in captions)  # about a hundred each
    assert hashing.prompt_of("c", []) == ""


@pytest.mark.parametrize(
    ("labels", "group"),
    [
        (("Dog", "Bark"), "animals"),
        (("rain", "DOG"), "animals and natural sounds"),
        (("sea_waves", "Male speech, man speaking", "Helicopter"), "human sounds and natural sounds and things"),
        (("Church bell",), "music"),  # of two kinds: the first in their order
        (("vuvuzela of mine", "dog bark"), "animals"),
        (("vuvuzela of mine",), None),
        ((), None),
    ],
)
def test_kinds_of_sound_are_told_by_labels(labels, group):
    assert subsets.categories(clip(0, labels=labels)) == ([group] if group else [])


def test_every_class_of_audioset_and_of_our_own_corpora_has_a_kind():
    names = [name.strip() for listed in params.read_yaml(subsets.CATEGORIES)["classes"].values() for name in listed.split(";")]
    assert len(names) == len(set(names)) == 632
    esc10 = "dog bark,rain,sea waves,baby cry,clock tick,person sneeze,helicopter,chainsaw,rooster,fire crackling"
    assert all(subsets.category_of(label) for label in [*esc10.split(","), *synthetic.LABELS])
    assert subsets.category_of("clock_tick") == "things"
    assert subsets.category_of("Waves, surf") == "natural sounds"


def test_groups_have_sorted_names_and_leave_out_what_belongs_to_none():
    clips = [clip(0, labels=("rain", "dog")), clip(1, labels=("dog",)), clip(2), clip(3, labels=("cat",))]
    expected = {"1 label": {"c01", "c03"}, "2 labels": {"c00"}, "2 or more labels": {"c00"}}
    assert list(subsets.groups(clips, "labels").items()) == list(expected.items())


def test_a_group_keeps_its_own_pairs_and_the_probe_of_all():
    clips = [clip(number, labels=(("rain", "dog")[number % 2],), split="test" if number < 8 else "train") for number in range(24)]
    test = [f"c{number:02d}" for number in range(8)]
    sets = choose_sets(clips, test, test[:5], "test", 1000, 0)
    part = subsets.within(sets, subsets.groups(clips, "categories")["animals"])
    assert part.generated == part.reference == tuple(test[1::2])
    assert part.codec == ("c01", "c03")
    assert {name for name, _ in part.partners} == {name for name, _ in part.requested} == set(part.generated)
    assert len(part.floor) == 4
    assert part.probe == sets.probe
    assert subsets.can_be_scored(part)
    assert not subsets.can_be_scored(subsets.within(sets, {"c01"}))


def blobs(seed: int) -> tuple[np.ndarray, list[str]]:
    """Thirty rows [30, 12] about the centres of three classes."""
    centres = 3 * np.random.default_rng(9).standard_normal((3, 12))
    return np.tile(centres, (10, 1)) + np.random.default_rng(seed).standard_normal((30, 12)), [*LABELS] * 10


def test_recovers_classes_of_unseen_rows_without_chance_and_survives_constant_embeddings():
    rows, labels = blobs(0)
    other, expected = blobs(1)
    assert [*probe.fit(rows, labels).predict(enumerate(other)).values()] == expected
    np.testing.assert_array_equal(*(probe.fit(rows, labels).model.coef_ for _ in range(2)))
    assert set(probe.fit(np.ones((4, 3)), ["a", "a", "a", "b"]).predict(enumerate(np.ones((2, 3)))).values()) == {"a"}
    with pytest.raises(UserError, match="two classes"):
        probe.fit(np.ones((3, 2)), ["a"] * 3)


def test_folds_keep_groups_whole_and_classes_even():
    groups = [f"recording{index // 2}" for index in range(60)]
    labels = ["bark" if index < 30 else "rain" for index in range(60)]
    result = probe.folds(groups, labels, seed=0)
    assert set(result) == set(range(probe.FOLDS))
    assert all(result[index] == result[index + 1] for index in range(0, 60, 2))
    for label in ("bark", "rain"):
        counts = np.bincount([fold for fold, name in zip(result, labels, strict=True) if name == label])
        assert counts.tolist() == [6] * 5
    order = np.random.default_rng(0).permutation(60)
    shuffled = probe.folds([groups[i] for i in order], [labels[i] for i in order], seed=0)
    assert shuffled == [result[i] for i in order]
    assert result != probe.folds(groups, labels, seed=1)
