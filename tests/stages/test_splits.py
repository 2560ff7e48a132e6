"""Splits and the catalog: rejected clips are left out, and duplicates do not cross splits."""

from pathlib import Path

import pytest

from soundmill import manifest, shards
from soundmill.corpora import splits
from soundmill.models.catalog import read_left_out
from tests.stages.handling import (
    NAMING,
    SPLITS,
    call_rename,
    call_splits,
    clip,
    duplicate,
    json_rows,
    refusal,
    settle,
    table,
    verdicts,
)


def test_rejected_clips_are_left_out_everywhere_and_their_captions_are_not_missing(small):
    verdicts(aaaaaaaaaa30="clipping")
    metrics = call_rename()
    assert metrics["rejected"] == 1
    assert (metrics["matched"], metrics["missing"]) == (4, 1)
    assert metrics["clips"] == 3
    assert [row["clip_id"] for row in table("data/catalog.parquet")] == ["-aaaaaaaaaa_35", "bbbbbbbbbbb_0", "0123456789ab_0"]
    assert not (small / "data/audiocaps/audio/-aaaaaaaaaa_30.wav").exists()
    assert [row["captions"] for row in json_rows("train")] == ["second"]


def test_duplicates_across_given_splits_fail_by_name_or_are_dropped_outside_test(small, capsys):
    pairs = [duplicate("-aaaaaaaaaa_35", "bbbbbbbbbbb_0"), duplicate("-aaaaaaaaaa_30", "-aaaaaaaaaa_35")]
    said = refusal(capsys, *pairs)
    assert "1 clips are the same sound or video as one in another of the corpus's own splits (given)" in said
    assert "-aaaaaaaaaa.wav (-aaaaaaaaaa_35, train) and bbbbbbbbbbb.wav (bbbbbbbbbbb_0, test)" in said
    assert "`splits.duplicates: drop`" in said
    settle(small, **NAMING | {"splits": SPLITS | {"duplicates": "drop"}})
    metrics = call_rename(*pairs)
    assert (metrics["duplicate_pairs"], metrics["duplicates_dropped"]) == (1, 1)
    assert [row["clip_id"] for row in table("data/catalog.parquet")] == ["-aaaaaaaaaa_30", "bbbbbbbbbbb_0", "0123456789ab_0"]
    assert not (small / "data/audiocaps/audio/-aaaaaaaaaa_35.wav").exists()
    (rejected,) = table("data/quarantine/splits.parquet")
    assert rejected["path"] == "-aaaaaaaaaa.wav"
    assert rejected["reason"] == "duplicate"
    assert "the same sound or video as bbbbbbbbbbb_0 (test)" in rejected["detail"]


def refuse(*names: str) -> None:
    rows = [{"recording_id": name, "path": f"{name}.wav", "detail": "licence X"} for name in names]
    shards.write_rows(rows, Path("data/refused.parquet"), manifest.REFUSED)


def test_copies_of_a_refused_recording_are_left_out_by_name_and_fail_no_split(small):
    refuse("bbbbbbbbbbb")
    metrics = call_rename(duplicate("-aaaaaaaaaa_35", "bbbbbbbbbbb_0"))
    assert (metrics["duplicate_pairs"], metrics["duplicates_dropped"], metrics["copies_of_refused"]) == (0, 1, 1)
    assert [row["clip_id"] for row in table("data/catalog.parquet")] == ["-aaaaaaaaaa_30", "0123456789ab_0"]
    assert [row["recording_id"] for row in table("data/splits.parquet")] == ["-aaaaaaaaaa", "0123456789ab"]
    (rejected,) = table("data/quarantine/splits.parquet")
    assert (rejected["path"], rejected["reason"]) == ("-aaaaaaaaaa.wav", "terms")
    assert "-aaaaaaaaaa_35 is the same sound or video as bbbbbbbbbbb_0 of bbbbbbbbbbb.wav: licence X" in rejected["detail"]


def test_copies_that_quality_rejects_are_left_out_of_other_variants_too(small):
    refuse("bbbbbbbbbbb")
    verdicts(aaaaaaaaaa30="clipping", aaaaaaaaaa35="clipping")
    assert call_rename(duplicate("-aaaaaaaaaa_35", "bbbbbbbbbbb_0"))["clips"] == 1
    assert [row["recording_id"] for row in table("data/splits.parquet")] == ["0123456789ab"]
    assert [row["path"] for row in table("data/quarantine/splits.parquet")] == ["-aaaaaaaaaa.wav"]


def test_of_a_loop_whose_times_differ_a_copy_leaves_nothing(small):
    refuse("bbbbbbbbbbb")
    (small / "data/corpus/audio").mkdir(exist_ok=True)
    shards.write_rows([], small / "data/corpus/audio/shard-00000.parquet", manifest.LOOPS)  # as of loops
    call_rename(duplicate("-aaaaaaaaaa_35", "bbbbbbbbbbb_0"))
    assert [row["clip_id"] for row in table("data/catalog.parquet")] == ["0123456789ab_0"]


def test_a_copy_of_a_copy_is_refused_with_its_recording_and_its_captions(small, capsys):
    pairs = [duplicate("-aaaaaaaaaa_35", "0123456789ab_0"), duplicate("0123456789ab_0", "bbbbbbbbbbb_0")]
    refuse("bbbbbbbbbbb")
    verdicts(aaaaaaaaaa30="clipping")
    message = refusal(capsys, *pairs)
    assert "corpus.terms: no clip is left" in message
    assert "bbbbbbbbbbb.wav: licence X" in message
    refuse("0123456789ab")
    metrics = call_rename(pairs[0])
    assert [row["clip_id"] for row in table("data/catalog.parquet")] == ["bbbbbbbbbbb_0"]
    assert (metrics["clips"], metrics["copies_of_refused"]) == (1, 0)


@pytest.mark.parametrize("copied", [["-aaaaaaaaaa_35"], ["-aaaaaaaaaa_30", "-aaaaaaaaaa_35"]])
def test_rejected_copies_join_what_they_are_copies_of(small, copied):
    """Sounds of which no pair was found, but of all with a clip that a rule refuses."""
    verdicts(**{"0123456789ab0": "max_dc_offset"})
    settle(small, **NAMING | {"splits": SPLITS | {"duplicates": "drop"}})
    metrics = call_rename(*(duplicate(name, "0123456789ab_0") for name in (*copied, "bbbbbbbbbbb_0")))
    assert (metrics["duplicate_pairs"], metrics["duplicates_dropped"]) == (len(copied), len(copied))
    assert [row["clip_id"] for row in table("data/catalog.parquet")] == [*["-aaaaaaaaaa_30"][len(copied) - 1 :], "bbbbbbbbbbb_0"]


def test_copies_that_hang_together_with_one_in_test_are_all_dropped():
    """Of forty copies of one sound not every two are a pair."""
    split = ["train"] * 4 + ["valid", "test", "train", "train"]
    assert splits.across_splits(split, [(0, 1), (1, 2), (2, 5), (3, 4), (6, 7)]) == {0: 5, 1: 5, 2: 5, 3: 4}


def test_a_video_in_two_given_splits_fails_by_name_or_is_dropped_outside_test(small, capsys):
    """Also where its windows do not meet, so that no pair of clips is found."""
    recordings = table("data/corpus/recordings.parquet")
    for row, name in zip(recordings, ("-aaaaaaaaaa_30", "-aaaaaaaaaa_90", "0123456789ab"), strict=True):
        row["recording_id"] = name
        row["group"] = None if name == "0123456789ab" else "-aaaaaaaaaa"
    shards.write_rows(recordings, small / "data/corpus/recordings.parquet", manifest.RECORDINGS)
    clips = [
        [clip("-aaaaaaaaaa_30", "-aaaaaaaaaa_30", 0.0), clip("-aaaaaaaaaa_35", "-aaaaaaaaaa_30", 5.0)],
        [clip("-aaaaaaaaaa_90", "-aaaaaaaaaa_90", 0.0), clip("0123456789ab_0", "0123456789ab", 0.0)],
    ]
    for number, rows in enumerate(clips):
        shards.write_rows(rows, small / "data/clips" / shards.shard_name(number), manifest.CLIPS)
    said = refusal(capsys)
    assert "2 clips are the same sound or video as one in another of the corpus's own splits" in said
    assert "(-aaaaaaaaaa_30, train)" in said
    assert "(-aaaaaaaaaa_90, test)" in said
    settle(small, **NAMING | {"splits": SPLITS | {"duplicates": "drop"}})
    assert call_rename()["duplicates_dropped"] == 2
    assert [row["clip_id"] for row in table("data/catalog.parquet")] == ["-aaaaaaaaaa_90", "0123456789ab_0"]
    # A copy of what has to go by its video goes too, and the clip that is named is one that stays.
    assert call_rename(duplicate("-aaaaaaaaaa_30", "0123456789ab_0"))["duplicates_dropped"] == 3
    assert all("as -aaaaaaaaaa_90 (test)" in row["detail"] for row in table("data/quarantine/splits.parquet"))


def test_copies_of_one_sound_leave_no_test_and_are_told_so(small, capsys):
    """Before anything is trained; where the corpus brings splits, a class that one of them lacks is named."""
    recordings = table("data/corpus/recordings.parquet")
    call_splits()
    assert "splits: warning: 2 of 2 labels have no clip in test: dog, rain; add recordings" in capsys.readouterr().out
    rows = [{**row, "split": None, "fold": None} for row in recordings]
    shards.write_rows(rows, small / "data/corpus/recordings.parquet", manifest.RECORDINGS)
    call_splits(duplicate("-aaaaaaaaaa_35", "bbbbbbbbbbb_0"), duplicate("bbbbbbbbbbb_0", "0123456789ab_0"))
    said = capsys.readouterr().out
    assert "splits: warning: no clip is in test" in said
    assert "all recordings have one source or are copies of one sound" in said


def test_only_clips_with_a_wanted_label_are_used(small, capsys):
    recordings = table("data/corpus/recordings.parquet")
    for row, labels in zip(recordings, (["kick"], ["snare", "kick"], ["hat"]), strict=True):
        row["labels"] = labels
    shards.write_rows(recordings, small / "data/corpus/recordings.parquet", manifest.RECORDINGS)
    everything = call_rename()
    assert (everything["clips"], everything["left_out"], read_left_out(small / "data/catalog.parquet")) == (4, 0, [])
    ids = {row["clip_id"] for row in table("data/catalog.parquet")}
    settle(small, **NAMING | {"catalog": NAMING["catalog"] | {"only": ["snare", "hat"]}})
    some = call_rename()
    assert some["clips"] + some["left_out"] == 4
    assert {label for row in table("data/catalog.parquet") for label in row["labels"]} == {"kick", "snare", "hat"}
    settle(small, **NAMING | {"catalog": NAMING["catalog"] | {"only": ["hat"]}})
    call_rename()
    assert {tuple(row["labels"]) for row in table("data/catalog.parquet")} == {("hat",)}
    left_out = read_left_out(small / "data/catalog.parquet")
    assert set(left_out) == ids - {row["clip_id"] for row in table("data/catalog.parquet")} != set()
    settle(small, **NAMING | {"catalog": NAMING["catalog"] | {"only": ["snares"]}})
    assert "no clip has the label 'snares'; did you mean 'snare'? (labels: dog, hat, kick, rain, snare)" in refusal(capsys)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"catalog": NAMING["catalog"] | {"caption_templates": ["{label}", "a {sound}"]}}, "'a {sound}' must contain {label}, "),
        ({"splits": SPLITS | {"valid_fraction": 0.6, "test_fraction": 0.5}}, "must be below 1"),
        ({"splits": SPLITS | {"valid_fraction": 1.5}}, "splits.valid_fraction"),
    ],
)
def test_parameters_of_splits_and_catalog(small, capsys, changes, said):
    settle(small, **NAMING | changes)
    assert said in refusal(capsys)
