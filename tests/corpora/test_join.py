"""Rows and files joined: what describes what, and what is reported instead of guessed."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soundmill.corpora.inventory import AudioFile, Inventory
from soundmill.corpora.join import join
from soundmill.corpora.tables import MAX_CAPTION, ManifestRow
from tests.corpora.tiny import captions

VIDEO = "r1nicOVtvkQ"


def row(key: str, caption: str = "a sound", at: int = 2, source: bytes = b"m.csv", **rest) -> ManifestRow:
    return ManifestRow(source, at, key, captions=[caption], **rest)


def joined(names, rows, **options):
    """Rows joined with files that are only names."""
    files = Inventory(Path("/corpus"), audio=[AudioFile(name.encode(), 1, "") for name in sorted(names)])
    tables = join(files, rows, 4, **options)
    tables.settle("test")
    return tables


def test_rows_of_one_file_add_up():
    second = row("/a/x.wav", "two", split="test", labels=["dog", "rain"])
    tables = joined(["x.flac"], [row("x.wav", "one", labels=["dog"]), second, row("x", "three", split="train")])
    assert captions(tables) == {"x.flac": ["one", "two", "three"]}
    (recording,) = tables.recordings
    assert (recording["labels"], recording["split"], recording["corpus"]) == (["dog", "rain"], "test", "test")
    assert tables.counts["recordings_in_two_splits"] == 1
    assert [(entry["path"], entry["captions"]) for entry in tables.matched] == [("x.flac", 3)]


def test_files_of_one_clip_collide_and_the_first_is_described():
    names = [f"b/{VIDEO}_30.wav", f"a/Y{VIDEO}_30.mp3", f"{VIDEO}.flac", "7.ogg"]
    tables = joined(names, [row(VIDEO, start_time=30.0, number="7")])
    assert tables.collisions == [{"id": VIDEO, "paths": [f"a/Y{VIDEO}_30.mp3", "7.ogg", f"b/{VIDEO}_30.wav", f"{VIDEO}.flac"]}]
    assert captions(tables) == {f"a/Y{VIDEO}_30.mp3": ["a sound"]}
    assert {recording["group"] for recording in tables.recordings} == {VIDEO}
    assert not tables.orphans


def test_a_file_without_start_is_the_only_window_or_the_whole_video_and_that_is_reported():
    one = joined([f"{VIDEO}.wav"], [row(VIDEO, start_time=30.0)])
    assert one.recordings[0]["start_time"] == 30.0
    assert not one.ambiguous
    two = joined([f"{VIDEO}.wav"], [row(VIDEO, "a", start_time=30.0), row(VIDEO, "b", at=3, start_time=60.0)])
    assert two.recordings[0]["start_time"] == 0.0
    assert two.ambiguous[0]["reason"] == "rows have 2 starts, the file name has none"


def test_assumptions_are_reported():
    rows = [row(VIDEO, start_time=130.0), row("UDGBjjwyaqE", start_time=30.0, at=3)]
    tables = joined([f"{VIDEO}.wav", "UDGBjjwyaqE_29.wav"], rows)
    assert [recording["start_time"] for recording in tables.recordings] == [29.0, 130.0]
    bare, inside = tables.remarks
    assert bare.startswith(f"1 files are named by a YouTube id without a start (first: {VIDEO}.wav)")
    assert inside.startswith("1 rows start inside a longer file (first: m.csv:3)")
    assert joined([f"{VIDEO}_30.wav"], [row(VIDEO, start_time=30.0)]).remarks == []


@pytest.mark.parametrize(
    ("key", "caption", "reason"),
    [
        ("", "x", "bad id"),
        ("a\x1b.wav", "x", "bad id"),
        ("\udce9.wav", "x", "bad id"),
        ("x" * 5000, "x", "bad id"),
        ("x.wav", " \n", "no caption or label"),
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
KEYS = [(name, None) for name in ("x.wav", "a/x", "/p/b/x.wav", f"Y{VIDEO}.wav", "z")]
ROWS = st.sampled_from([*KEYS, *((VIDEO, start) for start in (30.0, 60.0, 65.0))])


@given(st.sets(NAMES, min_size=1), st.lists(ROWS, max_size=7), st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing_and_nothing_is_lost(names, keys, rng):
    rows = [row(key, f"text {n}", at=n, start_time=start, number="7" if start == 30 else "") for n, (key, start) in enumerate(keys)]
    first = joined(names, list(rows))
    rng.shuffle(rows)
    again = joined(names, rows)

    def outcome(tables):
        return (
            tables.recordings,
            {path: sorted(texts) for path, texts in captions(tables).items()},
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


def test_words_of_eleven_letters_are_no_videos_but_among_others():
    """`thunderclap_2` is another sound, and not its second second."""
    rows = [row("thunderclap.wav", "one clap"), row("thunderclap_2.wav", "two claps", at=3)]
    tables = joined(["thunderclap_2.wav"], rows)
    assert captions(tables) == {"thunderclap_2.wav": ["two claps"], None: ["one clap"]}
    tables = joined(["thunderclap.wav"], rows)
    assert captions(tables) == {"thunderclap.wav": ["one clap"], None: ["two claps"]}
    tables = joined(["thunderclap.wav", "thunderclap_2.wav"], rows)
    assert captions(tables) == {"thunderclap.wav": ["one clap"], "thunderclap_2.wav": ["two claps"]}
    assert (tables.collisions, [recording["start_time"] for recording in tables.recordings]) == ([], [0.0, 0.0])
    rows = [row(f"{name}_30.wav", name) for name in ("r1nicOVtvkQ", "aB3-efghijk", "abcdefghijk")]
    names = ["Yr1nicOVtvkQ_30000_40000.mp3", "YaB3-efghijk.flac", "abcdefghijk_30.000_40.000.ogg"]
    assert captions(joined(names, rows)) == dict(zip(names, [["r1nicOVtvkQ"], ["aB3-efghijk"], ["abcdefghijk"]], strict=True))


@pytest.mark.parametrize("name", ["LoudThunder", "RainOnGlass", "GlassBreak1", "Dog_bark_01"])
def test_words_with_capitals_are_no_videos_either(name):
    rows = [row(f"{name}.wav", "one"), row(f"{name}_2.wav", "two", at=3), row("dog.wav", "dog", at=4)]
    tables = joined([f"{name}_2.wav", "dog.wav"], rows)
    assert captions(tables) == {f"{name}_2.wav": ["two"], "dog.wav": ["dog"], None: ["one"]}


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
    found = {name: sorted(texts) for name, texts in captions(tables).items()}
    assert found == {"x.wav": ["a bark", "a dog"], "y.wav": ["a dog", "a dog"], None: ["a dog"]}
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


def test_missing_files_of_one_name_in_several_folders_are_each_counted():
    names = [(split, at, name) for split in "ab" for at, name in enumerate(["1.wav", "x.wav"])]
    rows = [row(name, at=at, source=f"{split}/metadata.csv".encode()) for split, at, name in names]
    tables = joined(["a/1.wav", "b/1.wav"], rows)
    assert [entry["origins"] for entry in tables.missing] == [["a/metadata.csv:1"], ["b/metadata.csv:1"]]
    assert len({caption["recording_id"] for caption in tables.captions}) == 4


def test_two_files_of_a_rows_name_and_two_rows_that_find_one_file_are_reported_and_not_described():
    tables = joined(["a/x.wav", "b/x.wav", "c.wav"], [row("x.wav"), row("x.wav", "again", at=3), row("c.wav", "sea")])
    assert captions(tables) == {None: ["a sound", "again"], "c.wav": ["sea"]}
    told = {"id": "x.wav", "paths": ["a/x.wav", "b/x.wav"], "reason": "several files have this name", "taken": None}
    assert tables.ambiguous == [told | {"origins": ["m.csv:2", "m.csv:3"]}]
    assert not tables.orphans
    assert not tables.missing
    tables = joined(["x.wav"], [row("/home/train/x.wav", "one"), row("/home/test/x.wav", "two", at=3)])
    assert captions(tables) == {None: ["one", "two"]}
    assert tables.ambiguous[0]["reason"] == "rows with different names match only this file"
    assert (tables.ambiguous[0]["id"], tables.ambiguous[0]["origins"]) == ("/home/train/x.wav", ["m.csv:2", "m.csv:3"])
    rows = [row("2219", "a dog", source=b"fsd.json", part="freesound"), row("2219", "a gun", source=b"sb.json", part="soundbible")]
    tables = joined(["audio/2219.flac"], rows)
    assert captions(tables) == {None: ["a dog", "a gun"]}
    (entry,) = tables.ambiguous
    assert (entry["paths"], entry["origins"]) == (["audio/2219.flac"], ["fsd.json:2", "sb.json:2"])
    rows = [row(VIDEO, "one", start_time=30.0, number="7"), row("AAAAAAAAAAA", "two", at=3, start_time=0.0, number="7")]
    tables = joined(["7.wav"], rows)
    assert captions(tables) == {None: ["one", "two"]}
    assert tables.collisions == [{"id": "7", "origins": ["m.csv:2", "m.csv:3"]}]
    assert tables.ambiguous[0]["reason"] == "rows with different names match only this file"


def test_parts_keep_files_of_one_name_apart_and_never_lend_each_other_one():
    names = ["FreeSound_flac/12.flac", "SoundBible_flac/12.flac", "FreeSound_flac/13.flac"]
    rows = [
        row("12", "free", part="freesound"),
        row("12", "bible", source=b"sb.json", part="soundbible"),
        row("13", "nobody", source=b"sb.json", part="soundbible"),
    ]
    tables = joined(names, rows, unique=True)
    assert captions(tables) == {"FreeSound_flac/12.flac": ["free"], "SoundBible_flac/12.flac": ["bible"], None: ["nobody"]}
    assert [entry["path"] for entry in tables.orphans] == ["FreeSound_flac/13.flac"]
    assert not tables.collisions


def test_a_path_from_the_manifests_folder_means_no_other_folders_file():
    places = [(name, number) for name in ("dog", "cat") for number in (0, 1)]
    rows = [row(f"{n}.wav", f"{name} {n}", source=f"{name}/metadata.jsonl".encode(), at=2 + n) for name, n in places]
    tables = joined(["cat/0.wav", "cat/1.wav", "dog/0.wav", "other/1.wav"], rows)
    assert captions(tables) == {"cat/0.wav": ["cat 0"], "cat/1.wav": ["cat 1"], "dog/0.wav": ["dog 0"], None: ["dog 1"]}
    assert [entry["origins"] for entry in tables.missing] == [["dog/metadata.jsonl:3"]]
    assert tables.ambiguous == []
    # A whole folder is gone: its table's names mean files of its own all the same.
    tables = joined(["cat/0.wav", "cat/1.wav"], rows)
    assert captions(tables) == {"cat/0.wav": ["cat 0"], "cat/1.wav": ["cat 1"], None: ["dog 0", "dog 1"]}
    # Another extension is the same place; deeper below its folder it is found, and reported.
    tables = joined(["dog/0.wav", "dog/1.flac", "cat/0.wav", "cat/more/1.wav"], rows)
    found = captions(tables)
    assert found == {"cat/0.wav": ["cat 0"], "cat/more/1.wav": ["cat 1"], "dog/0.wav": ["dog 0"], "dog/1.flac": ["dog 1"]}
    assert tables.ambiguous == []


@pytest.mark.parametrize(
    ("names", "keys", "source"),
    [
        (["meta/b0.wav", *(f"audio/b{n}.wav" for n in range(1, 6))], [f"b{n}.wav" for n in range(6)], b"meta/metadata.csv"),
        (["b0.wav", *(f"audio/b{n}.wav" for n in range(1, 6))], [f"b{n}.wav" for n in range(6)], b"metadata.csv"),
        (["m/r1nicOVtvkQ.wav", "audio/Ar1nicOVtvk.wav"], ["r1nicOVtvkQ.wav", "Ar1nicOVtvk.wav"], b"m/t.csv"),
        (["m/0.wav", "audio/1.wav"], ["0.wav", r"C:\data\audio\1.wav"], b"m/t.csv"),
    ],
)
def test_one_file_beside_its_table_takes_nothing_from_those_in_other_folders(names, keys, source):
    tables = joined(names, [row(key, source=source, at=number) for number, key in enumerate(keys)])
    assert captions(tables) == {name: ["a sound"] for name in names}
    assert tables.ambiguous == []


def test_two_corpora_in_one_may_name_their_files_differently():
    rows = [row("a.wav", source=b"A/metadata.csv"), *(row(f"b{n}.wav", source=b"B/meta/metadata.csv", at=n) for n in range(3))]
    names = ["A/a.wav", "B/audio/b0.wav", "B/audio/b1.wav", "B/audio/b2.wav"]
    assert captions(joined(names, rows)) == {name: ["a sound"] for name in names}


@pytest.mark.parametrize("more", ["", "corpus/"])
def test_rows_that_say_fewer_folders_of_the_same_path_agree(more):
    keys = ["x.wav", "b/x.wav", "a/x.wav"] if not more else ["corpus/b/x.wav", "b/x.wav", "a/x.wav"]
    tables = joined([f"{more}b/x.wav"], [row(key, key, at=number) for number, key in enumerate(keys)])
    assert captions(tables) == {f"{more}b/x.wav": keys[:2], None: ["a/x.wav"]}


def test_of_two_rows_of_one_name_the_one_with_the_files_folder_has_it():
    rows = [row("/home/x/data/train/002.wav", "train"), row("/home/x/data/test/002.wav", "test", at=3, split="test")]
    tables = joined(["audio/test/002.wav"], rows)
    assert captions(tables) == {"audio/test/002.wav": ["test"], None: ["train"]}
    assert tables.recordings[0]["split"] == "test"
    assert [entry["id"] for entry in tables.missing] == ["/home/x/data/train/002.wav"]


def test_a_path_of_windows_of_another_machine_or_that_climbs_is_one_from_the_manifests_folder():
    here, gone = row("train\\1.wav", "near"), row("train\\2.wav", "lost", at=3)
    tables = joined(["train/1.wav", "test/1.wav", "test/2.wav"], [here, gone, row("test\\1.wav", "far", at=4)])
    assert captions(tables) == {"train/1.wav": ["near"], "test/1.wav": ["far"], "test/2.wav": ["lost"]}
    assert [(entry["reason"], entry["paths"]) for entry in tables.ambiguous] == [("found in another folder", ["test/2.wav"])]
    rows = [row("/home/me/train/1.wav"), row("/home/me/train/2.wav", at=3), row("/home/me/deep/3.wav", at=4)]
    tables = joined(["train/1.wav", "test/2.wav", "test/3.wav"], rows)
    assert [(entry["reason"], entry["paths"]) for entry in tables.ambiguous] == [("found in another folder", ["test/2.wav"])]
    rows = [row("../audio/one.wav", source=b"json/train.json"), row("../../two.wav", "out", at=3)]
    tables = joined(["audio/one.flac", "two.flac"], rows)
    assert captions(tables) == {"audio/one.flac": ["a sound"], None: ["out"]}


def test_any_number_of_a_clip_names_its_file_and_freesounds_are_not_taken_for_audiocaps():
    """Where other names are found by YouTube id, of a folder's numbers most must be the rows' own."""
    rows = [row(VIDEO, start_time=30.0, number="7"), row("Y0aBcDe_gHi", start_time=10.0, number="8")]
    strange = joined(["fsd/7.wav", "fsd/100.wav", "fsd/101.wav", "Y0aBcDe_gHi_10.wav", "own/8.wav"], rows)
    assert captions(strange) == {None: ["a sound"], "Y0aBcDe_gHi_10.wav": ["a sound"]}
    beside = joined(["fsd/7.wav", "fsd/100.wav", "fsd/101.wav", "own/Y0aBcDe_gHi_10.wav"], rows)
    assert captions(beside) == {None: ["a sound"], "own/Y0aBcDe_gHi_10.wav": ["a sound"]}
    assert beside.remarks[0].startswith("1 files are named like a row's `audiocap_id` but not used")
    numbers_alone = joined(["all/7.wav", "all/100.wav", "all/101.wav"], rows)  # a csv of some of them
    assert captions(numbers_alone) == {None: ["a sound"], "all/7.wav": ["a sound"]}
    assert [remark.rpartition("first: ")[2] for remark in numbers_alone.remarks] == ["m.csv:2)"]
    half = joined(["fsd/7.wav", "fsd/100.wav", "Y0aBcDe_gHi_10.wav"], rows)
    assert captions(half) == {"fsd/7.wav": ["a sound"], "Y0aBcDe_gHi_10.wav": ["a sound"]}
    rows = [row(VIDEO, f"caption {n}", at=n, start_time=30.0, number=f"9715{n}") for n in range(5)]
    assert captions(joined(["97152.wav"], rows)) == {"97152.wav": [f"caption {n}" for n in range(5)]}
    tables = joined(["97154.wav", "97151.flac"], rows)
    assert captions(tables) == {"97151.flac": [f"caption {n}" for n in range(5)]}
    assert [entry["paths"] for entry in tables.collisions] == [["97151.flac", "97154.wav"]]
    assert not tables.missing


def test_a_part_is_a_word_of_its_folder_and_not_a_piece_of_one():
    rows = [row("x.wav", "seen", part="val"), row("y.wav", "unseen", part="eval")]
    tables = joined(["my_Eval/x.wav", "my_Eval/y.wav", "Validation/z.wav"], rows, parts={"val": "valid", "eval": "test"})
    assert captions(tables) == {None: ["seen"], "my_Eval/y.wav": ["unseen"]}


@pytest.mark.parametrize("key", [" x.wav", "x.wav ", "rain%20on%20x.wav"])
def test_a_name_with_spaces_around_it_or_as_the_web_spells_it_finds_its_file(key):
    name = "rain on x.wav" if "%" in key else "x.wav"
    assert captions(joined([name], [row(key)])) == {name: ["a sound"]}


@pytest.mark.parametrize(
    ("folder", "matched"),
    [
        ("clothoevaluation", True),
        ("CLOTHOEvaluation", True),
        ("train_val_test", True),
        ("trains", True),
        ("device_audio", True),
        ("Valley", True),
        ("run/audio", True),
        ("run/training", False),
        ("my_Validation-set", False),
    ],
)
def test_folders_whose_names_are_no_other_parts(folder, matched):
    parts = {"development": "train", "training": "train", "train": "train", "val": "valid", "validation": "valid", "test": "test"}
    rows = [row("x.wav", source=b"run/evaluation.csv", part="evaluation")]
    tables = joined([f"{folder}/x.wav"], rows, parts={**parts, "evaluation": "test"})
    assert bool(tables.matched) is matched


def test_a_whole_video_does_not_take_a_clips_caption_and_a_tag_is_no_video():
    rows = [row("abcdEFGH123", start_time=30.0), row("-abcdEFGH12", start_time=30.0, at=3)]
    tables = joined(["audio/Funny dogs [abcdEFGH123].wav", "clips/abcdEFGH123.wav", "Title [-abcdEFGH12].wav"], rows)
    assert captions(tables)["clips/abcdEFGH123.wav"] == ["a sound"]
    starts = {recording["path"]: recording["start_time"] for recording in tables.recordings}
    assert (starts["clips/abcdEFGH123.wav"], starts["Title [-abcdEFGH12].wav"]) == (30.0, 0.0)
    tags = joined(["Dog [HD-Remaster].wav"], [row("Dog [HD-Remaster].wav", "dog"), row("Cat [HD-Remaster].wav", "cat", at=3)])
    assert captions(tags) == {"Dog [HD-Remaster].wav": ["dog"], None: ["cat"]}


@pytest.mark.parametrize("written", ["{}.wav ", "{}%20x.wav"])
def test_a_manifest_that_spells_names_its_own_way_still_means_its_own_folder(written):
    """Where its file is lost, the other split's file of that name is not it."""
    suffix = " x.wav" if "%" in written else ".wav"
    rows = [
        row(written.format("a"), "train a", source=b"train/metadata.csv"),
        row(written.format("c"), "train c, lost", at=3, source=b"train/metadata.csv"),
        row(written.format("c"), "test c", source=b"test/metadata.csv"),
        row(written.format("e"), "test e", at=3, source=b"test/metadata.csv"),
    ]
    result = captions(joined([f"train/a{suffix}", f"test/c{suffix}", f"test/e{suffix}"], rows))
    found = {f"{name}{suffix}": [name.replace("/", " ")] for name in ("train/a", "test/c", "test/e")}
    assert result == {**found, None: ["train c, lost"]}
