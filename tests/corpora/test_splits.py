"""Splits: given ones hold, folds come next, a hash last; sources never part and training is never empty."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soundmill import hashing
from soundmill.corpora.splits import assign, describe, extend, join, warnings


def recording(number, split=None, fold=None, group=None):
    return {"recording_id": f"r{number}", "split": split, "fold": fold, "group": group}


def deal(rows, labels=None, described=(), valid=0.1, test=0.1, seed=0):
    return assign(rows, labels or {}, set(described), valid_fraction=valid, test_fraction=test, seed=seed)


def test_the_highest_fold_is_test_and_a_tenth_of_the_rest_valid_of_every_label():
    rows = [recording(number, fold=number % 3 + 1) for number in range(240)]
    labels = {f"r{number}": f"label {number // 24}" for number in range(240)}
    splits, source = deal(rows, labels)
    assert source == "folds"
    assert {row["recording_id"] for row in rows if row["fold"] == 3} == {key for key, split in splits.items() if split == "test"}
    assert Counter(splits.values()) == {"train": 144, "valid": 16, "test": 80}
    assert {labels[key] for key, split in splits.items() if split == "valid"} == set(labels.values())
    rows = [recording(number, "train", fold=number % 5 + 1) for number in range(20)]
    splits, source = deal(rows)
    assert source == "folds"
    assert {key for key, split in splits.items() if split == "test"} == {f"r{number}" for number in (4, 9, 14, 19)}
    assert deal([recording(0, "test", 1), recording(1, "train", 2)])[1] == "given"
    assert deal([recording(number, "train", fold=1) for number in range(4)])[1] == "given"


def test_given_splits_hold_the_rest_trains_and_missing_ones_come_out_of_training():
    rows = [recording(0, "train"), recording(1, "valid"), recording(2, "test"), recording(3)]
    assert deal(rows) == ({"r0": "train", "r1": "valid", "r2": "test", "r3": "train"}, "given")
    rows = [recording(number, "train") for number in range(20)] + [recording(99, "test")]
    splits, source = deal(rows)
    assert source == "given"
    assert Counter(splits.values()) == {"train": 18, "valid": 2, "test": 1}
    assert splits["r99"] == "test"


@pytest.mark.parametrize("split", ["test", "valid"])
def test_given_splits_without_anything_to_train_on_are_put_aside(split):
    splits, source = deal([recording(number, split) for number in range(20)])
    assert (source, Counter(splits.values())) == ("hash", {"train": 16, "valid": 2, "test": 2})


def test_a_single_fold_is_no_test_set():
    for first in (1, None):  # one file has none
        splits, source = deal([recording(number, fold=1 if number else first) for number in range(10)])
        assert (source, Counter(splits.values())) == ("hash", {"train": 8, "valid": 1, "test": 1})


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([18, 2], {"train": 18, "test": 2}),
        ([18, 1, 1], {"train": 18, "test": 1, "valid": 1}),
        ([10, 5, 5], {"train": 10, "test": 5, "valid": 5}),
        ([17, 1, 1, 1], {"train": 17, "test": 2, "valid": 1}),
        ([20], {"train": 20}),
        ([1], {"train": 1}),
        ([1, 1], {"train": 1, "test": 1}),
        ([1, 1, 1], {"train": 1, "test": 1, "valid": 1}),
        ([1, 1, 1, 1], {"train": 2, "test": 1, "valid": 1}),
    ],
)
def test_recordings_of_few_sounds(sizes, expected):
    """Of any seed: the smaller sources are held out, and valid has one if there are three."""
    rows = [recording(f"{group}.{number}", group=f"g{group}") for group, size in enumerate(sizes) for number in range(size)]
    for seed in range(20):
        assert Counter(deal(rows, seed=seed)[0].values()) == expected


def test_a_corpus_of_many_sources_keeps_its_splits():
    """By a digest of them: another would move recordings between the splits of every project."""
    random_ = random.Random(0)
    rows = [recording(number, group=random_.choice([None, f"g{random_.randrange(40)}"])) for number in range(400)]
    labels = {f"r{number}": f"label {random_.randrange(12)}" for number in range(400)}
    described = {f"r{number}" for number in range(400) if random_.random() < 0.7}
    dealt = [deal(rows, labels, which, valid, test, seed) for seed in range(5) for which, valid, test in (
        ((), 0.1, 0.1), (described, 0.1, 0.1), ((), 0.05, 0.3), (described, 0.0, 0.2))]  # fmt: skip
    assert hashing.digest([sorted(splits.items()) for splits, _ in dealt]) == "8dc73beebcab6ad595b747ef82d8e67b"


def test_labels_of_captions_come_before_those_of_their_recording():
    recordings = [("a", ["dog"]), ("b", []), ("c", ["rain"]), ("d", [])]
    captions = [("a", ["bell"]), ("d", []), ("gone", ["wind"])]
    labels_of, described = describe(recordings, captions)
    assert labels_of == {"a": ["bell", "dog"], "b": [], "c": ["rain"], "d": [], "gone": ["wind"]}
    assert described == {"a", "c", "d", "gone"}


def test_problems_of_splits_are_reported_with_the_remedy():
    whole = [("train", ["dog", "rain"]), ("valid", []), ("test", ["dog"]), ("test", ["rain"])]
    assert warnings(whole, 0.1, 4) == []
    lacking = [("train", ["dog", "rain"]), ("test", ["dog"]), ("test", ["bell"])]
    assert warnings(lacking, 0.1, 3) == [
        "1 of 3 labels have no clip in train: bell; add recordings of them, or they are not learned",
        "1 of 3 labels have no clip in test: rain; add recordings of them, or they are not scored",
    ]
    for fraction, sources, remedy in ((0.0, 9, "raise splits.test_fraction"), (0.1, 1, "one source or are copies of one sound")):
        (line,) = warnings([("train", ["dog"]), ("valid", ["dog"])], fraction, sources)
        assert "no clip is in test" in line
        assert remedy in line


def test_a_class_keeps_its_only_recording_in_training():
    rows = [recording(number) for number in range(21)]
    labels = {f"r{number}": "dog" for number in range(20)} | {"r20": "aardvark"}
    for seed in range(10):
        assert deal(rows, labels, seed=seed)[0]["r20"] == "train"


def test_recordings_without_captions_only_train_unless_the_test_would_be_empty():
    rows = [recording(number) for number in range(30)]
    described = {"r1", "r2", "r3"}
    splits, _ = deal(rows, described=described)
    assert Counter(splits[name] for name in described) == {"train": 1, "valid": 1, "test": 1}
    assert {splits[row["recording_id"]] for row in rows if row["recording_id"] not in described} == {"train"}
    splits, _ = deal([recording(number) for number in range(20)], described={"r3"})
    assert Counter(splits.values())["test"] == 2


def test_a_share_is_counted_in_recordings_and_reaches_a_class_of_few_big_sources():
    rows = [recording(number, group=f"g{number // 4}") for number in range(16)] + [recording(number) for number in range(16, 32)]
    labels = {f"r{number}": "helicopter" if number < 16 else "dog" for number in range(32)}
    splits, _ = deal(rows, labels, test=0.0, valid=0.15)
    assert Counter(labels[key] for key, split in splits.items() if split == "valid") == {"helicopter": 4, "dog": 3}


VALUES = ([None, "train", "valid", "test"], [None, 1, 2, 3], [None, "g", "h", "i"], "abc")


@given(
    st.lists(st.tuples(*map(st.sampled_from, VALUES)), min_size=1, max_size=40),
    st.integers(0, 5),
    st.randoms(use_true_random=False),
)
def test_properties(parts, seed, shuffler: random.Random):
    rows = [recording(number, *part[:3]) for number, part in enumerate(parts)]
    labels = {f"r{number}": part[3] for number, part in enumerate(parts)}
    splits, _ = deal(rows, labels, seed=seed)
    assert deal(shuffler.sample(rows, len(rows)), seed=seed) == deal(rows, seed=seed)
    assert set(splits) == {row["recording_id"] for row in rows}
    assert set(splits.values()) <= {"train", "valid", "test"}
    assert "train" in splits.values()
    for group in "ghi":
        assert len({splits[row["recording_id"]] for row in rows if row["group"] == group}) <= 1


@pytest.mark.parametrize("fold", [None, 1])
def test_a_recording_without_clips_is_in_test_by_its_own_fold_alone(fold):
    rows = [recording(number, fold=1 + number // 2) for number in range(6)]
    rows += [recording(6, fold=3, group="g"), recording(7, fold=fold, group="g")]
    splits, decided_by = deal(rows, valid=0, test=0)
    assert splits["r7"] == "test"
    assert extend([*rows, recording(8, fold=fold)], splits, decided_by)["r8"] == "train"


def test_growing_a_corpus_moves_few():
    before, _ = deal([recording(number) for number in range(100)])
    after, _ = deal([recording(number) for number in range(110)])
    assert sum(before[key] != after[key] for key in before) <= 6


def test_duplicates_share_a_split_that_is_dealt_and_move_nothing_over_given_splits_or_folds():
    rows = [recording(number, group=f"video {number // 2}") for number in range(60)]
    pairs = [(f"r{number}", f"r{number + 7}") for number in range(0, 50, 10)]
    for seed in range(20):
        splits, source = deal(join(rows, pairs), seed=seed, valid=0.3, test=0.3)
        assert source == "hash"
        assert set(splits.values()) == {"train", "valid", "test"}
        assert all(splits[a] == splits[b] for a, b in pairs)
        assert all(splits[f"r{number}"] == splits[f"r{number + 1}"] for number in range(0, 60, 2))
    rows = [recording(0, "train"), recording(1, "test"), recording(2), recording(3, "train"), *map(recording, range(4, 40))]
    splits, source = deal(join(rows, [("r0", "r1"), ("r0", "r2"), ("r2", "r3")]), valid=0.3)
    assert (source, splits["r1"]) == ("given", "test")
    assert splits["r0"] == splits["r2"] == splits["r3"] != "test"
    folds = [recording(number, fold=number % 2) for number in range(20)]
    splits, source = deal(join(folds, [("r0", "r1"), ("r2", "r4")]))
    assert (source, Counter(splits.values())) == ("folds", {"test": 10, "train": 9, "valid": 1})


@given(st.integers(1, 30), st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=40))
def test_joined_groups_are_the_connected_parts(count, numbers):
    pairs = [(f"r{a % count}", f"r{b % count}") for a, b in numbers]
    rows = [recording(number) for number in range(count)]
    group = {row["recording_id"]: row["group"] for row in join(rows, pairs)}
    near = {name: {name} for name in group}
    for _ in range(count):
        for a, b in pairs:
            near[a] |= near[b]
            near[b] |= near[a]
    assert all((group[a] == group[b]) == (b in near[a]) for a in group for b in group)
    assert {row["recording_id"]: row["group"] for row in join(rows, pairs[::-1])} == group
