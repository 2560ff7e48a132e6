"""Folders as sets: every file counts by its path without suffix, or the run says why not."""

import os

import numpy as np
import pytest

from soundmill.audio.flac import write_wav
from soundmill.errors import UserError
from soundmill.evaluation import evaluator, features, folders


def put(root, *names: str):
    for name in names:
        write_wav(root / name, np.zeros(100, np.float32), 8_000)
    return root


def test_ids_are_paths_without_suffix(tmp_path):
    put(tmp_path, "b.wav", "rain/7.take.wav", "rain/a b.WAV", "x/y/z.wav")
    (tmp_path / "notes.txt").write_text("text")
    result = folders.read(tmp_path, 1)
    assert result.ids == ["b", "rain/7.take", "rain/a b", "x/y/z"]
    assert result.sounds[1].path == os.fsencode(tmp_path / "rain" / "7.take.wav")
    assert result.remarks == ("not audio by name or content, so not scored: 1 .txt",)


def test_files_that_differ_in_their_suffix_alone_are_both_named(tmp_path):
    put(tmp_path, "one/a.wav", "one/a.mp3", "two/b.flac", "two/b.ogg", "c.wav")
    with pytest.raises(UserError) as error:
        folders.read(tmp_path, 1)
    for name in ("one/a.wav", "one/a.mp3", "two/b.flac", "two/b.ogg"):
        assert str(tmp_path / name) in str(error.value)
    assert "c.wav" not in str(error.value)
    put(tmp_path / "apart", "a.wav", "b/a.wav")  # of two folders they are two
    assert folders.read(tmp_path / "apart", 1).ids == ["a", "b/a"]


def test_what_may_be_a_sound_and_cannot_be_read_is_named_and_loops_are_told_of(tmp_path):
    put(tmp_path, "a.wav", "sub/b.wav")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert folders.read(tmp_path, 1).ids == ["a", "sub/b"]
    assert "loop: directory link" in folders.read(tmp_path, 1).remarks[0]
    (tmp_path / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    (tmp_path / "empty.wav").touch()
    os.mkfifo(tmp_path / "pipe.wav")
    result = folders.read(tmp_path, 1)
    assert result.ids == ["a", "sub/b"]
    with pytest.raises(UserError) as error:
        features.refuse(result.refused)
    assert "3 sounds cannot be scored" in str(error.value)
    for name in ("gone.wav: cannot be scored: dangling link", "empty.wav: cannot be scored: empty", "pipe.wav"):
        assert str(tmp_path / name) in str(error.value)


def test_links_out_of_the_folder_are_followed_and_told(tmp_path):
    put(tmp_path, "set/a.wav", "elsewhere/b.wav")
    (tmp_path / "set/b.wav").symlink_to(tmp_path / "elsewhere/b.wav")
    result = folders.read(tmp_path / "set", 1)
    assert result.ids == ["a", "b"]
    assert result.remarks == ("1 links that lead out of the folder and are followed (first: b.wav)",)


def test_nothing_to_score_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        folders.read(tmp_path / "none", 1)
    with pytest.raises(UserError, match="it is empty"):
        folders.read(tmp_path, 1)
    (tmp_path / "shard.parquet").touch()
    with pytest.raises(UserError, match=r"not scored: 1 \.parquet"):
        folders.read(tmp_path, 1)


def test_pairs_are_all_or_none(tmp_path):
    names = [f"{index:03d}.wav" for index in range(6)]
    full = folders.read(put(tmp_path / "full", *names), 1)
    assert folders.pairs(full, folders.read(put(tmp_path / "same", *names), 1))
    assert not folders.pairs(full, folders.read(put(tmp_path / "others", "x.wav", "y.wav"), 1))
    part = folders.read(put(tmp_path / "part", "000.wav", "002.wav", "005.wav", "006.wav"), 1)
    with pytest.raises(UserError, match=r"3 of 6 in .*full have no partner in .*part: 001, 003, 004; 1 of 4 in .*part .*: 006\."):
        folders.pairs(part, full)


def test_captions(tmp_path):
    result = folders.read(put(tmp_path / "sounds", "a.wav", "b/c.wav"), 1)
    path = tmp_path / "captions.csv"
    path.write_text('\ufeffid,caption,more\nb/c,"rain, then",1\na,a dog,2\nz,none,3\n', encoding="utf-8")
    assert folders.read_captions(path, result) == {"a": "a dog", "b/c": "rain, then"}
    path.write_text("id,caption\na,a dog\n", encoding="utf-8")
    with pytest.raises(UserError, match="no caption for b/c"):
        folders.read_captions(path, result)
    path.write_text("id,caption\na,a dog\na,a cat\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"captions\.csv:3: a has two captions"):
        folders.read_captions(path, result)
    path.write_text("file;text\n", encoding="utf-8")
    with pytest.raises(UserError, match="columns id and caption"):
        folders.read_captions(path, result)


RATE = 8_000


def test_only_the_beginning_of_a_long_sound_is_read_and_a_damaged_one_is_named(tmp_path):
    long = np.full(int(RATE * evaluator.LONGEST_SECONDS * 3), 0.1, np.float32)
    write_wav(tmp_path / "made" / "long.wav", long, RATE)
    sound = evaluator._beginning("generated", folders.read(tmp_path / "made", 1), "long")
    assert sound.max_samples < len(sound.wave) < len(long)
    folder = folders.read(put(tmp_path / "damaged", "a.wav", "b.wav"), 1)  # after scoring
    (tmp_path / "damaged" / "a.wav").unlink()
    (tmp_path / "damaged" / "b.wav").write_bytes(b"RIFF")
    for name in "ab":
        assert f"{tmp_path}/damaged/{name}.wav: " in evaluator._beginning("real", folder, name).fault
