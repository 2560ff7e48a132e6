"""Rows and files joined: what describes what, and what is reported instead of guessed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soundmill.corpora.rows import MAX_CAPTION
from tests.corpora.manifest_rows import VIDEO, captions_of, joined, row


def test_rows_of_one_file_add_up():
    tables = joined(
        ["x.flac"],
        [
            row("x.wav", "one", labels=["dog"]),
            row("/a/x.wav", "two", split="test", labels=["dog", "rain"]),
            row("x", "three", split="train"),
        ],
    )
    assert captions_of(tables) == {"x.flac": ["one", "two", "three"]}
    (recording,) = tables.recordings
    assert (recording["labels"], recording["split"], recording["corpus"]) == (["dog", "rain"], "test", "test")
    assert tables.counts["recordings_in_two_splits"] == 1
    assert [(entry["path"], entry["captions"]) for entry in tables.matched] == [("x.flac", 3)]


def test_files_of_one_clip_collide_and_the_first_is_described():
    names = [f"b/{VIDEO}_30.wav", f"a/Y{VIDEO}_30.mp3", f"{VIDEO}.flac", "7.ogg"]
    tables = joined(names, [row(VIDEO, start_time=30.0, number="7")])
    assert tables.collisions == [{"id": VIDEO, "paths": [f"a/Y{VIDEO}_30.mp3", "7.ogg", f"b/{VIDEO}_30.wav", f"{VIDEO}.flac"]}]
    assert captions_of(tables) == {f"a/Y{VIDEO}_30.mp3": ["a sound"]}
    assert {recording["group"] for recording in tables.recordings} == {VIDEO}
    assert not tables.orphans


def test_a_file_without_start_is_the_only_window_or_the_whole_video_and_that_is_reported():
    one = joined([f"{VIDEO}.wav"], [row(VIDEO, start_time=30.0)])
    assert one.recordings[0]["start_time"] == 30.0
    assert not one.ambiguous
    two = joined([f"{VIDEO}.wav"], [row(VIDEO, "a", start_time=30.0), row(VIDEO, "b", at=3, start_time=60.0)])
    assert two.recordings[0]["start_time"] == 0.0
    assert two.ambiguous[0]["reason"] == "rows have 2 starts, the file name has none"


def test_repeated_ids_are_reported_if_each_may_occur_once():
    rows = [row("x", "one"), row("x", "two", at=9)]
    assert joined(["x.wav"], rows, unique=True).collisions == [{"id": "x", "origins": ["m.csv:2", "m.csv:9"]}]
    assert joined(["x.wav"], rows).collisions == []


def test_assumptions_are_reported():
    tables = joined(
        [f"{VIDEO}.wav", "UDGBjjwyaqE_29.wav"], [row(VIDEO, start_time=130.0), row("UDGBjjwyaqE", start_time=30.0, at=3)]
    )
    assert [recording["start_time"] for recording in tables.recordings] == [29.0, 130.0]
    bare, inside = tables.remarks
    assert bare.startswith(f"1 files are named by a YouTube id without a start (first: {VIDEO}.wav)")
    assert inside.startswith("1 rows start inside a longer file (first: m.csv:3)")
    assert joined([f"{VIDEO}_30.wav"], [row(VIDEO, start_time=30.0)]).remarks == []


def test_a_missing_rows_caption_can_never_be_another_recordings():
    (recording,) = joined(["x.wav"], []).recordings
    tables = joined(["x.wav"], [row(recording["recording_id"], "not mine")])
    assert captions_of(tables) == {None: ["not mine"]}


@pytest.mark.parametrize(
    ("key", "caption", "reason"),
    [
        ("", "x", "bad id"),
        ("a\x1b.wav", "x", "bad id"),
        ("\udce9.wav", "x", "bad id"),
        ("x" * 5000, "x", "bad id"),
        ("x.wav", " \n", "empty caption"),
        ("x.wav", "x" * (MAX_CAPTION + 1), "caption too long"),
    ],
)
def test_rows_that_are_none_are_quarantined_with_their_line(key, caption, reason):
    tables = joined(["x.wav"], [row(key, caption, at=7)])
    assert [(entry["path"], entry["reason"]) for entry in tables.rejected] == [("m.csv", reason)]
    assert tables.rejected[0]["detail"].startswith("line 7: ")
    assert not tables.captions


def test_half_characters_do_not_reach_the_tables():
    tables = joined(["x.wav"], [row("x.wav", "a \ud800 b", labels=["\udfff"])])
    assert (tables.captions[0]["caption"], tables.recordings[0]["labels"]) == ("a ? b", ["?"])


NAMES = st.sampled_from(["x.wav", "a/x.wav", "b/x.mp3", f"{VIDEO}_30.wav", f"Y{VIDEO}.wav", f"b/{VIDEO}_60.flac", "7.wav", "y.wav"])


ROWS = st.sampled_from(
    [
        ("x.wav", None),
        ("a/x", None),
        ("/p/b/x.wav", None),
        (VIDEO, 30.0),
        (VIDEO, 60.0),
        (VIDEO, 65.0),
        (f"Y{VIDEO}.wav", None),
        ("z", None),
    ]
)


@given(st.sets(NAMES, min_size=1), st.lists(ROWS, max_size=7), st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing_and_nothing_is_lost(names, keys, rng):
    rows = [
        row(key, f"caption {n}", at=n, start_time=start, number="7" if start == 30 else "") for n, (key, start) in enumerate(keys)
    ]
    first = joined(names, list(rows))
    rng.shuffle(rows)
    again = joined(names, rows)

    def outcome(tables):
        return (
            tables.recordings,
            {path: sorted(captions) for path, captions in captions_of(tables).items()},
            sorted(entry["path"] for entry in tables.orphans),
            sorted((entry["id"], *entry["paths"]) for entry in tables.collisions if "paths" in entry),
            sorted(str(entry["paths"]) + entry["reason"] for entry in tables.ambiguous),
            sorted((entry["id"], str(entry["start_time"]), len(entry["captions"])) for entry in tables.missing),
        )

    assert outcome(first) == outcome(again)
    assert sorted(recording["path"] for recording in first.recordings) == sorted(names)
    assert len(first.captions) == len(keys)
    # Every file is described, an orphan, or reported; every row is matched, missing or reported.
    shown = {path for entry in first.collisions + first.ambiguous for path in entry.get("paths", ())}
    described = {entry["path"] for entry in first.matched}
    assert described | shown | {entry["path"] for entry in first.orphans} == names
    assert not described & {entry["path"] for entry in first.orphans}
    without = {origin for entry in first.missing + first.ambiguous for origin in entry["origins"]}
    owned = {recording["recording_id"] for recording in first.recordings}
    assert {caption["origin"] for caption in first.captions if caption["recording_id"] not in owned} <= without


def test_words_of_eleven_letters_are_no_videos():
    """`thunderclap_2` is another sound, and not its second second."""
    rows = [row("thunderclap.wav", "one clap"), row("thunderclap_2.wav", "two claps", at=3)]
    tables = joined(["thunderclap_2.wav"], rows)
    assert captions_of(tables) == {"thunderclap_2.wav": ["two claps"], None: ["one clap"]}
    tables = joined(["thunderclap.wav"], rows)
    assert captions_of(tables) == {"thunderclap.wav": ["one clap"], None: ["two claps"]}
    tables = joined(["thunderclap.wav", "thunderclap_2.wav"], rows)
    assert captions_of(tables) == {"thunderclap.wav": ["one clap"], "thunderclap_2.wav": ["two claps"]}
    assert (tables.collisions, [recording["start_time"] for recording in tables.recordings]) == ([], [0.0, 0.0])


@pytest.mark.parametrize("name", ["LoudThunder", "RainOnGlass", "GlassBreak1", "Dog_bark_01"])
def test_words_with_capitals_are_no_videos_either(name):
    rows = [row(f"{name}.wav", "one"), row(f"{name}_2.wav", "two", at=3), row("dog.wav", "dog", at=4)]
    tables = joined([f"{name}_2.wav", "dog.wav"], rows)
    assert captions_of(tables) == {f"{name}_2.wav": ["two"], "dog.wav": ["dog"], None: ["one"]}


def test_what_several_manifests_tell_of_a_file_counts_once():
    """Of a list and its subset with labels; what one of them repeats, or says for another split, stays."""
    rows = [
        row("x.wav", "a dog", source=b"all.json"),
        row("x.wav", "a dog", at=3, source=b"all.json"),
        row("x.wav", "a bark", at=4, source=b"all.json"),
        row("y.wav", "a dog", at=5, source=b"all.json", split="train"),
        row("x.wav", "a dog", source=b"labelled.json", labels=["dog"]),
        row("y.wav", "a dog", at=3, source=b"labelled.json", split="test"),
        row("gone.wav", "a dog", at=4, source=b"labelled.json"),
    ]
    tables = joined(["x.wav", "y.wav"], rows)
    assert {name: sorted(captions) for name, captions in captions_of(tables).items()} == {
        "x.wav": ["a bark", "a dog"],
        "y.wav": ["a dog", "a dog"],
        None: ["a dog"],
    }
    assert [recording["labels"] for recording in tables.recordings if recording["path"] == "x.wav"] == [["dog"]]
    (remark,) = tables.remarks
    assert remark.startswith("2 rows repeat another manifest's captions of the same recording (first: all.json:2)")
    gone = [row("r1nicOVtvkQ", "a dog", source=name, start_time=30.0, number="7") for name in (b"v1.csv", b"v2.csv")]
    tables = joined(["x.wav"], gone)
    assert [(entry["captions"], entry["audiocap_ids"]) for entry in tables.missing] == [(["a dog"], ["7"])]
    assert tables.collisions == []
    again = [row("x.wav", "a dog", source=b"a.json"), row("x.wav", "a dog", source=b"b.json")]
    assert joined(["x.wav"], again, unique=True).collisions == []
    more = [row("x.wav", "a dog", source=b"a.json"), row("x.wav", "a cat", source=b"b.json")]
    assert len(joined(["x.wav"], more, unique=True).collisions) == 1


def test_ids_that_look_like_words_are_videos_among_others():
    rows = [row(f"{name}_30.wav", name) for name in ("r1nicOVtvkQ", "aB3-efghijk", "abcdefghijk")]
    names = ["Yr1nicOVtvkQ_30000_40000.mp3", "YaB3-efghijk.flac", "abcdefghijk_30.000_40.000.ogg"]
    assert captions_of(joined(names, rows)) == dict(zip(names, [["r1nicOVtvkQ"], ["aB3-efghijk"], ["abcdefghijk"]], strict=True))


def test_missing_files_of_one_name_in_several_folders_are_each_counted():
    rows = [
        row(name, at=at, source=f"{split}/metadata.csv".encode()) for split in "ab" for at, name in enumerate(["1.wav", "x.wav"])
    ]
    tables = joined(["a/1.wav", "b/1.wav"], rows)
    assert [entry["origins"] for entry in tables.missing] == [["a/metadata.csv:1"], ["b/metadata.csv:1"]]
    assert len({caption["recording_id"] for caption in tables.captions}) == 4
