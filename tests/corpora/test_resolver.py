"""Manifest rows find their files under every naming convention, by id, and never a file of another id."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soundmill.corpora import resolver
from soundmill.corpora.inventory import AudioFile, Inventory
from soundmill.corpora.resolver import FileIndex, clip_of_name, youtube_clip

CHARACTERS = "ABCXYZabcxyz0189_-"
VIDEOS = st.text(CHARACTERS, min_size=11, max_size=11) | st.text("Y_-0", min_size=11, max_size=11)
STARTS = st.integers(0, 99_999)
# How a file of (video, start) may be called; `{e}` is ten seconds later, `{ms}` the start in milliseconds.
NAMINGS = (
    *"{v}_{s} Y{v}_{s} {v}_{s}_{e} {v}_{ms}_{ems} Y{v}_{ms}_{ems} {v}_{s}.000_{e}.000".split(),
    *"{v}_{s}.0-{e}.0 Y{v}_{s}-{e} {v}_{ms}-{ems} {v}_{s}.0 {v} Y{v}".split(),
)
EXTENSIONS = (".wav", ".flac", ".mp3", ".m4a", ".WAV", ".webm", "")
FOLDERS = ("", "audio/", "a b/c.d/", "train/Y/")


def index(*names: str) -> FileIndex:
    return FileIndex(Inventory(Path("/corpus"), audio=[AudioFile(name.encode(), 1, "") for name in sorted(names)]))


def paths(resolution: resolver.Resolution) -> list[str]:
    return [file.raw_path.decode() for file in resolution.files]


def named(naming: str, video: str, start: int) -> str:
    return naming.format(v=video, s=start, e=start + 10, ms=start * 1000, ems=(start + 10) * 1000)


@given(VIDEOS, STARTS, st.sampled_from(NAMINGS))
def test_every_naming_tells_its_clip(video, start, naming):
    # Milliseconds are known by their distance, so that no name has two readings.
    clip = clip_of_name(named(naming, video, start))
    assert clip == (video, None if naming in ("{v}", "Y{v}") else float(start))


@given(st.dictionaries(VIDEOS, STARTS, min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_every_row_finds_its_own_file_whatever_the_naming_and_the_order(clips, rng):
    kept = {video: start for video, start in clips.items() if rng.random() < 0.7}
    files = {}
    for video, start in kept.items():
        files[video] = rng.choice(FOLDERS) + named(rng.choice(NAMINGS), video, start) + rng.choice(EXTENSIONS)
    result = index(*files.values())
    for video, start in clips.items():
        expected = [files[video]] if video in files else []
        assert paths(result.resolve_clip(video, float(start))) == expected
        assert paths(result.resolve(f"/elsewhere/{video}_{start}.wav", of_video=True)) == expected
        assert paths(result.resolve(f"{video}_{start * 1000}_{(start + 10) * 1000}")) == expected
        assert paths(result.resolve(f"Y{video}.wav", of_video=True)) == expected


@given(st.text(max_size=40), st.lists(st.text(min_size=1, max_size=12).filter(lambda n: not set("/\0") & set(n)), max_size=8))
def test_keys_of_any_kind_give_files_of_the_index_or_nothing(key, names):
    paths = {name.encode("utf-8", "surrogatepass") for name in names if name not in (".", "..")}
    files = [AudioFile(name, 1, "") for name in sorted(paths)]
    result = FileIndex(Inventory(Path("/corpus"), audio=files)).resolve(key)
    assert set(result.files) <= set(files)
    assert bool(result.files) == (result.match != "none")


@pytest.mark.parametrize(
    ("stem", "clip"),
    [
        ("Yabcdefghij", ("Yabcdefghij", None)),  # eleven characters: the Y is one of them
        ("Yabcdefghijk", ("abcdefghijk", None)),
        ("YYabcdefghij", ("Yabcdefghij", None)),
        ("Yabcdefghij_30", ("Yabcdefghij", 30.0)),
        ("Yabcdefghijk_30", ("abcdefghijk", 30.0)),
        ("-bcdefghij_", ("-bcdefghij_", None)),
        ("abcdefghij__80.000_90.000", ("abcdefghij_", 80.0)),
        ("abcdefgh_10", ("abcdefgh_10", None)),  # what looks like a start belongs to the id
        ("abcdefghijk_30000_40000", ("abcdefghijk", 30.0)),
        ("abcdefghijk_30_40", ("abcdefghijk", 30.0)),
        ("abcdefghijk_0_10000", ("abcdefghijk", 0.0)),
        ("abcdefghijk_1500.5", ("abcdefghijk", 1500.5)),
        ("abcdefghijkl", None),
        ("abcdefghij", None),
        ("abcdefghijk_", None),
        ("abcdefghijk_3x", None),
        ("abcdefghijk_١٢", None),  # digits, but of no number that a tool writes
        ("abcdefghijk_-3", None),
        ("[abcdefghijk]-[30-40]", ("abcdefghijk", 30.0)),
        ("[abcdefghijk]", ("abcdefghijk", None)),
        ("A dog [barks] [abcdefghijk]", ("abcdefghijk", 0.0)),  # the whole video
        ("dog[abcdefghijk]", None),
        ("[abcdefghijkl]", None),
    ],
)
def test_readings(stem, clip):
    assert clip_of_name(stem) == clip


def test_a_path_is_taken_at_its_word_and_otherwise_told_apart_by_its_folders():
    result = index("a/x.wav", "b/x.wav", "b/y.flac", "meta/c/z.wav", "c/z.wav")
    assert (paths(result.resolve("b/x.wav")), result.resolve("b/x.wav").match) == (["b/x.wav"], "path")
    assert paths(result.resolve("./b//x.wav")) == ["b/x.wav"]
    assert paths(result.resolve("c/z.wav", base=b"meta")) == ["meta/c/z.wav"]
    assert paths(result.resolve("../b/x.wav", base=b"meta")) == ["b/x.wav"]
    assert paths(result.resolve("b/y.wav")) == ["b/y.flac"]
    result = index("train/x.wav", "test/x.wav", "only.wav")
    assert paths(result.resolve("/home/me/data/test/x.wav")) == ["test/x.wav"]
    assert paths(result.resolve(r"C:\data\train\x.wav")) == ["train/x.wav"]
    assert paths(result.resolve("/home/me/only.wav")) == ["only.wav"]
    both = result.resolve("/home/me/x.wav")
    assert (paths(both), both.same_clip) == (["test/x.wav", "train/x.wav"], False)
    result = index("dog/1.wav")
    assert result.resolve("cat/1.wav").elsewhere
    assert not result.resolve("1.wav").elsewhere
    assert not result.resolve("data/dog/1.wav").elsewhere
    assert not result.resolve("/cat/1.wav").elsewhere


@pytest.mark.parametrize(
    ("key", "files", "chosen"),
    [
        ("a/x.wav", ["a/x.flac", "b/x.wav"], "a/x.flac"),  # the folder says more than the extension
        ("x.wav", ["a/x.flac", "b/x.wav"], "b/x.wav"),
        ("/m/x.wav", ["a/x.flac", "b/x.wav"], "b/x.wav"),
        ("audio/x.wav", ["old/audio/x.mp3", "x.wav"], "x.wav"),
        ("/p/q/x.wav", ["p/x.wav", "q/x.wav", "x.wav"], "q/x.wav"),
        ("x", ["x.wav", "x.wav.flac"], "x.wav"),
        ("/etc/passwd", ["passwd"], "passwd"),  # an absolute path is only a name
        ("/etc/passwd", ["etc/passwd"], "etc/passwd"),
        ("caf\u00e9.wav", ["cafe\u0301.wav"], "cafe\u0301.wav"),  # composed and decomposed letters
    ],
)
def test_of_several_files_of_a_name_the_one_that_agrees_best_is_meant(key, files, chosen):
    assert paths(index(*files).resolve(key)) == [chosen]


def test_thousands_of_files_of_one_name_are_told_apart_by_folders_without_looking_at_all():
    result = index(*(f"{n // 100}/{n}/audio.wav" for n in range(3000)), "audio.wav")
    looked_at = []
    resolver_name = resolver.compatible
    resolver.compatible = lambda file, folders: looked_at.append(file) or resolver_name(file, folders)
    try:
        for n in range(0, 3000, 7):
            assert paths(result.resolve(f"/m/{n // 100}/{n}/audio.mp3")) == [f"{n // 100}/{n}/audio.wav"]
        assert len(result.resolve("/m/nowhere/audio.flac").files) == 1  # the one at the root agrees
        assert len(result.resolve("audio.flac").files) == resolver.MAX_FILES
    finally:
        resolver.compatible = resolver_name
    assert len(looked_at) < 3 * 3000


@pytest.mark.parametrize(
    "key", ["../x.wav", "a/../../x.wav", "../../etc/passwd", "", "  ", "x.wav\0", "x\n.wav", "\ud800", "x" * 5000]
)
def test_what_climbs_or_is_no_name_means_nothing(key):
    assert index("x.wav", "etc/passwd", "passwd").resolve(key, base=b"") is resolver.NOTHING


def test_extensions_do_not_matter_and_decimals_are_none():
    result = index("dog.v2.flac", "abcdefghijk_80.000_90.000", "no extension")
    assert paths(result.resolve("dog.v2.wav")) == ["dog.v2.flac"]
    assert paths(result.resolve("dog.v2")) == ["dog.v2.flac"]
    assert paths(result.resolve("dog")) == []
    assert paths(result.resolve("dog.v3")) == []
    assert paths(result.resolve("abcdefghijk_80.000_90.000.wav")) == ["abcdefghijk_80.000_90.000"]
    assert paths(result.resolve("no extension.wav")) == ["no extension"]


def test_case_matters_to_ids_and_where_names_differ_by_nothing_else():
    files = index("a/Dog_1.wav", "Rain.wav", "rain.wav", "abcDEFghi01.wav")
    assert paths(files.resolve("A/dog_1.WAV")) == paths(files.resolve("DOG_1")) == ["a/Dog_1.wav"]
    assert paths(files.resolve("rain.wav")) == ["rain.wav"]
    assert len(files.resolve("RAIN.wav").files) == 2
    assert paths(files.resolve("ABCdefghi01.wav")) == []
    assert (files.has_name_of("dog_1.flac"), files.has_name_of("cat_1.flac")) == (True, False)


def test_files_of_one_clip_are_told_from_files_of_one_name():
    result = index("a/r1nicOVtvkQ_30.wav", "b/r1nicOVtvkQ_30.mp3", "a/drum_kick_a.wav", "b/drum_kick_a.wav")
    assert result.resolve("r1nicOVtvkQ_30.wav").files[0].raw_path == b"a/r1nicOVtvkQ_30.wav"
    assert result.resolve("r1nicOVtvkQ_30").same_clip
    assert not result.resolve("drum_kick_a.wav").same_clip  # eleven letters, but words
    assert youtube_clip("x/drum_kick_a.wav") is None


def test_starts_within_half_a_second_are_the_same_and_the_closest_wins_of_thousands():
    result = index("r1nicOVtvkQ_29.999.wav", "r1nicOVtvkQ_30.4.wav", "r1nicOVtvkQ_40.wav")
    assert paths(result.resolve_clip("r1nicOVtvkQ", 30.0)) == ["r1nicOVtvkQ_29.999.wav"]
    assert paths(result.resolve_clip("r1nicOVtvkQ", 31.0)) == []
    starts = ("29.999", "30.4", "40")
    assert paths(result.resolve_clip("r1nicOVtvkQ")) == [f"r1nicOVtvkQ_{start}.wav" for start in starts]
    assert not result.resolve_clip("r1nicOVtvkQ").same_clip
    assert paths(result.resolve_inside("r1nicOVtvkQ", 35.0)) == ["r1nicOVtvkQ_30.4.wav"]
    assert paths(result.resolve_inside("r1nicOVtvkQ", 3.0)) == []
    result = index(*(f"r1nicOVtvkQ_{n}.wav" for n in range(0, 9000, 3)))
    assert paths(result.resolve_clip("r1nicOVtvkQ", 2997.0)) == ["r1nicOVtvkQ_2997.wav"]
    assert paths(result.resolve_inside("r1nicOVtvkQ", 2999.0)) == ["r1nicOVtvkQ_2997.wav"]
    assert paths(result.resolve_inside("r1nicOVtvkQ", 1e6)) == ["r1nicOVtvkQ_8997.wav"]
    assert len(result.resolve_clip("r1nicOVtvkQ").files) == resolver.MAX_FILES
