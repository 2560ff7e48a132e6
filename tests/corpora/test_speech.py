"""Speech Commands, its ten digits as SC09, and LJSpeech by their published layouts."""

import pytest

from soundmill.corpora import check
from tests.corpora.tiny import captions, detected, put, recordings, scan, write

FIRST, SECOND, THIRD = "0a7c2a8d", "1b4c9b89", "c1d39ce8"
WORDS = (
    f"yes/{FIRST}_nohash_0.wav",
    f"yes/{SECOND}_nohash_0.wav",
    f"zero/{FIRST}_nohash_1.wav",
    f"zero/{THIRD}_nohash_0.wav",
    f"nine/{THIRD}_nohash_0.wav",
)
NOISE = "_background_noise_/running_tap.wav"


def commands(root, valid: str | bytes = f"yes/{SECOND}_nohash_0.wav\n", test: str = f"zero/{THIRD}_nohash_0.wav\n"):
    put(root, *WORDS, NOISE)
    write(root, "validation_list.txt", valid)
    write(root, "testing_list.txt", test)
    write(root, "LICENSE", "Attribution 4.0")
    return root


def test_speech_commands(tmp_path):
    commands(tmp_path, test=f"zero/{THIRD}_nohash_0.wav\nnine/{THIRD}_nohash_0.wav\n")
    assert detected(tmp_path) == "speech_commands"
    tables = scan(tmp_path)
    assert recordings(tables, "labels", "split", "group") == {
        WORDS[4]: (["nine"], "test", THIRD),
        WORDS[0]: (["yes"], "train", FIRST),
        WORDS[1]: (["yes"], "valid", SECOND),
        WORDS[2]: (["zero"], "train", FIRST),
        WORDS[3]: (["zero"], "test", THIRD),
    }
    assert (tables.captions, tables.missing, tables.orphans, tables.collisions, tables.rejected) == ([], [], [], [], [])
    assert len(tables.matched) == len(WORDS)
    (remark,) = tables.remarks
    assert remark == f"1 recordings that are not words, as in `_background_noise_`, which are left out (first: {NOISE})"


def test_sc09_is_the_ten_digits_of_speech_commands(tmp_path):
    tables = scan(commands(tmp_path, valid=f"yes/{SECOND}_nohash_0.wav\nyes/{SECOND}_nohash_9.wav\n"), "sc09")
    assert recordings(tables, "labels", "split") == {
        WORDS[4]: (["nine"], "train"),
        WORDS[2]: (["zero"], "train"),
        WORDS[3]: (["zero"], "test"),
    }
    assert tables.missing == []  # what the lists say of other words is no concern of it
    assert tables.remarks[1] == f"2 recordings of other words than those of sc09, which are left out (first: {WORDS[0]})"


def test_digits_alone_are_recognised_as_sc09(tmp_path):
    put(tmp_path, *WORDS[2:])
    assert detected(tmp_path) == "sc09"
    assert set(recordings(scan(tmp_path), "split").values()) == {None}


def test_without_lists_a_speaker_keeps_recordings_together(tmp_path):
    """In whatever folder it was unpacked to, as torchaudio has it."""
    put(tmp_path, *(f"SpeechCommands/speech_commands_v0.02/{name}" for name in WORDS))
    tables = scan(tmp_path)
    assert tables.format == "speech_commands"
    assert sorted(recordings(tables, "split", "group").values(), key=str) == sorted(
        [(None, FIRST), (None, FIRST), (None, SECOND), (None, THIRD), (None, THIRD)], key=str
    )


@pytest.mark.parametrize("prefix", ["", "speech_commands_v0.02/"])
def test_lists_with_odd_lines(tmp_path, prefix):
    gone, twice, both = f"yes/{FIRST}_nohash_7.wav", f"yes/{SECOND}_nohash_0.wav", f"nine/{THIRD}_nohash_0.wav"
    lines = [twice, "", f"  {both} ", gone, twice, "../../../etc/passwd", f"{THIRD}_nohash_0.wav", "café/0_nohash_0.wav"]
    root = commands(tmp_path / prefix, valid=b"\xef\xbb\xbf" + "\r\n".join(lines).encode("cp1252"), test=f"{both}\n")
    tables = scan(tmp_path)
    assert tables.format == "speech_commands"
    splits = recordings(tables, "split")
    assert {name.removeprefix(prefix): split for name, split in splits.items()} == {
        WORDS[0]: "train",
        WORDS[1]: "valid",
        WORDS[2]: "train",
        WORDS[3]: "train",
        WORDS[4]: "test",  # in both lists: the more protected one
    }
    assert [row["id"] for row in tables.missing] == [gone, "../../../etc/passwd", "café/0_nohash_0.wav"]
    source = f"{prefix}validation_list.txt"
    assert tables.collisions == [
        {"id": both, "origins": [f"{prefix}testing_list.txt:1", f"{source}:3"]},
        {"id": twice, "origins": [f"{source}:1", f"{source}:5"]},
    ]
    assert [(row["reason"], row["detail"][:7]) for row in tables.rejected] == [("bad path", "line 7:")]
    assert [(entry["id"], entry["taken"]) for entry in tables.ambiguous] == [(both, "test")]
    assert any("not UTF-8, read as Windows-1252" in remark for remark in tables.remarks)
    assert check.check(root).coverage == 5 / 8


def test_a_speaker_of_one_word_is_not_taken_for_that_of_another(tmp_path):
    """Names repeat in every word's folder: the list names that of a word whose recording is gone."""
    put(tmp_path, *WORDS)
    write(tmp_path, "testing_list.txt", f"nine/{FIRST}_nohash_0.wav\n")
    tables = scan(tmp_path)
    assert [row["id"] for row in tables.missing] == [f"nine/{FIRST}_nohash_0.wav"]
    assert set(recordings(tables, "split").values()) == {"train"}


def test_what_is_no_word_s_is_reported(tmp_path):
    put(tmp_path, *WORDS, "yes/odd.wav", "stray.wav")
    tables = scan(tmp_path)
    assert recordings(tables, "labels", "group")["yes/odd.wav"] == (["yes"], None)
    assert "stray.wav" not in recordings(tables, "labels")
    assert "1 recordings that are not words" in tables.remarks[0]


LINES = (
    "LJ001-0001|Printing, in the only sense|Printing, in the only sense\n"
    'LJ001-0002|says "20" times|says "twenty times\n'
    "LJ001-0003|only this|\n"
)
WAVS = ("wavs/LJ001-0001.wav", "wavs/LJ001-0002.wav", "wavs/LJ001-0003.wav")


def test_ljspeech(tmp_path):
    put(tmp_path, *WAVS, "wavs/LJ999-0001.wav")
    write(tmp_path, "metadata.csv", LINES + "LJ001-0004|gone|gone\n")
    write(tmp_path, "README", "The LJ Speech Dataset")
    assert detected(tmp_path) == "ljspeech"
    tables = scan(tmp_path)
    assert captions(tables) == {
        WAVS[0]: ["Printing, in the only sense"],
        WAVS[1]: ['says "twenty times'],
        WAVS[2]: ["only this"],
        "missing:wavs/LJ001-0004": ["gone"],
    }
    assert [row["path"] for row in tables.orphans] == ["wavs/LJ999-0001.wav"]
    assert [(row["id"], row["origins"]) for row in tables.missing] == [("wavs/LJ001-0004", ["metadata.csv:4"])]
    assert (tables.rejected, tables.remarks) == ([], [])
    assert {(row["split"], row["fold"], row["group"]) for row in tables.recordings} == {(None, None, None)}


def test_ljspeech_in_a_folder_of_its_own_and_without_recordings(tmp_path):
    put(tmp_path / "whole", *(f"LJSpeech-1.1/{name}" for name in WAVS))
    write(tmp_path / "whole", "LJSpeech-1.1/metadata.csv", LINES)
    tables = scan(tmp_path / "whole")
    assert (tables.format, len(tables.matched), tables.missing) == ("ljspeech", 3, [])
    write(tmp_path / "bare", "metadata.csv", LINES)
    report = check.check(tmp_path / "bare")
    assert (report.tables.format, report.coverage, len(report.tables.missing)) == ("ljspeech", 0, 3)


def test_ljspeech_with_odd_lines(tmp_path):
    put(tmp_path, *WAVS, "secret.wav")
    lines = [
        "LJ001-0001|a|one",
        "LJ001-0001|a|another",
        "",
        "LJ001-0002|two cells",
        "../secret|climbs out of wavs, and stays in the corpus|x",
        "../../../etc/passwd|x|x",
        "|x|x",
        "LJ001-0003|a|b|c",
        "LJ001-0003",
        "LJ001-0003| | ",
        "LJ001-0003|café|café",
    ]
    write(tmp_path, "metadata.csv", b"\xef\xbb\xbf" + "\r\n".join(lines).encode("cp1252"))
    tables = scan(tmp_path)
    assert tables.format == "ljspeech"
    assert {path: texts for path, texts in captions(tables).items() if path in WAVS} == {
        WAVS[0]: ["one", "another"],
        WAVS[1]: ["two cells"],
        WAVS[2]: ["café"],
    }
    assert tables.collisions == [{"id": "wavs/LJ001-0001", "origins": ["metadata.csv:1", "metadata.csv:2"]}]
    assert [(row["reason"], row["detail"].partition(":")[0]) for row in tables.rejected] == [
        ("bad id", "line 7"),
        ("bad row", "line 8"),
        ("bad row", "line 9"),
        ("empty caption", "line 10"),
    ]
    assert [row["id"] for row in tables.missing] == ["wavs/../../../etc/passwd"]
    assert any("line 11" in remark and "Windows-1252" in remark for remark in tables.remarks)


@pytest.mark.parametrize(
    "table",
    [
        "file_name|text\nLJ001-0001.wav|a\n",
        "audio_file|text|speaker_name\nwavs/LJ001-0001.wav|a|x\n",
        "other|a|b\nothers|a|b\n",
        "LJ001-0001,a,b\n",
    ],
)
def test_other_tables_of_that_name_are_no_ljspeech(tmp_path, table):
    put(tmp_path, *WAVS)
    write(tmp_path, "metadata.csv", table)
    assert detected(tmp_path) == "folder"


def test_a_header_with_file_name_is_an_audiofolder_s(tmp_path):
    put(tmp_path, *WAVS)
    write(tmp_path, "metadata.csv", "file_name,text\nwavs/LJ001-0001.wav,a|b|c\n")
    assert detected(tmp_path) == "audiofolder"
