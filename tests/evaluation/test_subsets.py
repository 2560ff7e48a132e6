"""Which group a prompt is in, by known prompts and labels; and what a comparison within a group is left with."""

import pytest

from soundmill import hashing
from soundmill.corpora import synthetic
from soundmill.evaluation import subsets
from soundmill.evaluation.sets import CatalogClip, choose_sets


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
    names = [name.strip() for listed in subsets.CLASSES.values() for name in listed.split(";")]
    assert len(names) == len(set(names)) == 632
    esc10 = "dog bark,rain,sea waves,baby cry,clock tick,person sneeze,helicopter,chainsaw,rooster,fire crackling"
    assert all(subsets.category_of(label) for label in [*esc10.split(","), *synthetic.LABELS])
    assert subsets.category_of("clock_tick") == "things"
    assert subsets.category_of("Waves, surf") == "natural sounds"


def test_groups_have_sorted_names_and_leave_out_what_belongs_to_none():
    clips = [clip(0, labels=("rain", "dog")), clip(1, labels=("dog",)), clip(2), clip(3, labels=("cat",))]
    assert subsets.groups(clips, "labels") == {"1 label": {"c01", "c03"}, "2 labels": {"c00"}, "2 or more labels": {"c00"}}
    assert list(subsets.groups(clips, "labels")) == ["1 label", "2 labels", "2 or more labels"]


def test_a_group_keeps_its_own_pairs_and_the_probe_of_all():
    catalog = [
        clip(number, labels=("dog",) if number % 2 else ("rain",), split="test" if number < 8 else "train") for number in range(24)
    ]
    test = [f"c{number:02d}" for number in range(8)]
    sets = choose_sets(catalog, test, test[:5], "test", 1000, 0)
    part = subsets.within(sets, subsets.groups(catalog, "categories")["animals"])
    assert part.generated == part.reference == tuple(test[1::2])
    assert part.codec == ("c01", "c03")
    assert {name for name, _ in part.partners} == {name for name, _ in part.requested} == set(part.generated)
    assert len(part.floor) == 4
    assert part.probe == sets.probe
    assert subsets.can_be_scored(part)
    assert not subsets.can_be_scored(subsets.within(sets, {"c01"}))
