"""Known digests: rows, ids and checkpoints on disk hold such values, so none may change; and their cache."""

import hashlib
import io
import os
import random
import sqlite3
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from soundmill import hashing, hub
from soundmill.models.catalog import choose_by_hash
from soundmill.shards import shard_of
from soundmill.training.seeds import seed_of
from stages import mixup
from tests.lost_bits import lose_a_bit


def test_digests_of_values_and_order_by_hash():
    assert hashing.digest("a", 1, 0.5, [1, "ä"], {"b": None, "a": True}, b"raw") == "9f329147047d1a5870f564fb6b3b208e"
    assert hashing.digest({"a": True, "b": None}) == hashing.digest({"b": None, "a": True})
    assert hashing.digest("ab", "c") != hashing.digest("a", "bc")
    assert hashing.short_digest(b"a/b.wav") == "abf22e75a1bf"
    assert [shard_of(key, 7) for key in ("a", "b", b"c", "ä")] == [2, 5, 1, 0]
    assert seed_of(1, "clip", "ä", 3) == 4217270582666349523
    assert mixup._hash(3, "second 1", "clip-1") == 1388791198621227314
    ids = [str(number) for number in range(20)]
    assert choose_by_hash(ids, 4) == ["10", "11", "12", "4"]
    order = hashing.hash_order(ids, "halves", 3)
    assert sorted(order) == sorted(ids)
    assert order != hashing.hash_order(ids, "halves", 4)
    assert [name for name in order if name != "7"] == hashing.hash_order([name for name in ids if name != "7"], "halves", 3)


def test_digests_of_files_and_directories_and_of_nothing_that_is_missing(tmp_path):
    tree = tmp_path / "tree"
    for name, content in {"a.txt": "hello", "sub/b.txt": "x", "sub-x/c.txt": "y", ".gitignore": "*\n"}.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(content)
    sha256 = hashlib.sha256(b"hello").hexdigest()
    digests = {hashing.file_digest(tree / "a.txt"), hashing.tree_digest(tree / "a.txt"), hashing.bytes_digest(b"hello")}
    assert digests == {sha256[:32]}
    file = io.BytesIO(b"not hello")
    file.seek(4)
    assert hashing.opened_digest(file) == sha256[:32]
    assert hashing.tree_digest(tree) == "18ead9e98236e86351dad3ee70ab0271"
    assert hashing.tree_digest(tree, tmp_path / "digests.sqlite", 2) == hashing.tree_digest(tree)
    assert hashing.tree_digest(tree / "sub") == "f7d6a0af0d884bc4a0ac0551cd95da1c"
    assert hub.digest(tree, ["*.txt", "sub/*"]) == "e7c814fc4815d85da1028f6be8bc894c"
    assert hashing.model_digest(tree) == "931a50fc473782514c3f928bdd0afb941f8cf2de18bab208070acd94a816eda9"
    (tree / "sub" / "b.txt").rename(tree / "sub" / "renamed.txt")
    assert hashing.tree_digest(tree / "sub") != "f7d6a0af0d884bc4a0ac0551cd95da1c"
    whole = hashing.tree_digest(tree / "sub")
    assert hashing.is_intact(tree / "sub", whole)
    (tree / "sub" / "b.txt").write_text("y")
    assert not hashing.is_intact(tree / "sub", whole)
    with pytest.raises(FileNotFoundError):
        hashing.tree_digest(tree / "none")
    assert not hashing.is_intact(tree / "none", hashing.digest([]))


def test_checksummed_json_is_refused_after_any_change():
    values = {"a": [1, None, "ä"]}
    data = hashing.dump_checksummed(values)
    assert hashing.load_checksummed(data) == values
    for place in range(len(data)):
        with pytest.raises(ValueError, match="checksum"):
            hashing.load_checksummed(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])


def test_the_signature_of_a_folder_is_that_of_its_files(tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("b", "a"):
        (tmp_path / "folder" / name).write_text(name)
    before = hashing.signature(tmp_path / "folder")
    assert [name for name, *_ in before] == ["a", "b"]
    os.utime(tmp_path / "folder" / "b", ns=(0, 0))
    assert hashing.signature(tmp_path / "folder") != before


def test_digests_are_read_again_only_of_files_that_changed(tmp_path, monkeypatch):
    files = [os.fsencode(tmp_path / f"{n}.wav") for n in range(1200)]
    for path in files:
        Path(os.fsdecode(path)).write_bytes(path)
    read: list[bytes] = []
    real = hashing.file_digest
    monkeypatch.setattr(hashing, "file_digest", lambda path: [real(path), read.append(path)][0])
    cache = tmp_path / "digests.sqlite"
    written = os.stat(files[0])
    settled = max(written.st_mtime_ns, written.st_ctime_ns) + 2 * 10**9  # of the first file, after one more nanosecond
    monkeypatch.setattr(hashing.time, "time_ns", lambda: settled)
    fresh = list(hashing.file_digests(files, cache, 2))
    assert fresh == [real(path) for path in files]
    assert len(read) == 1200
    read.clear()
    assert list(hashing.file_digests(files[:3], cache)) == fresh[:3]
    assert len(read) == 3  # changed too short a time ago to be known by their times
    monkeypatch.setattr(hashing.time, "time_ns", lambda: settled + 1)
    assert list(hashing.file_digests(files[:1], cache)) == fresh[:1]
    read.clear()
    assert list(hashing.file_digests(files[:1], cache)) == fresh[:1]
    assert read == []
    monkeypatch.setattr(hashing.time, "time_ns", lambda: settled + 10**11)
    assert list(hashing.file_digests(files, cache)) == fresh
    read.clear()
    Path(os.fsdecode(files[7])).write_bytes(b"another size")
    stamp = os.stat(files[9])
    Path(os.fsdecode(files[9])).write_bytes(files[9][::-1])
    os.utime(files[9], ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # the same size and time, as a restored backup has
    os.unlink(files[11])
    result = list(hashing.file_digests(files, cache, 2))
    assert sorted(read) == [files[7], files[9]]
    assert [result[7], result[9]] == [real(files[7]), real(files[9])]
    assert isinstance(result[11], FileNotFoundError)
    cache.write_bytes(b"no database" * 1000)
    assert list(hashing.file_digests(files[:5], cache)) == result[:5]
    assert list(hashing.file_digests(files[:5], cache / "below a file")) == result[:5]  # which cannot even be removed


def test_no_lost_bit_in_the_cache_of_digests_tells_another_digest(tmp_path, monkeypatch):
    files = [os.fsencode(tmp_path / f"{n}.wav") for n in range(120)]
    for path in files:
        Path(os.fsdecode(path)).write_bytes(path)
        os.utime(path, ns=(10**18, 10**18))
    cache, later = tmp_path / "digests.sqlite", time.time_ns() + 10**11
    monkeypatch.setattr(hashing.time, "time_ns", lambda: later)
    fresh = list(hashing.file_digests(files, cache, linked=True))
    outcome = hashing.cached_value(files[0], "what", lambda: "this", cache)
    rng = random.Random(13)
    for turn in range(200):
        lose_a_bit(cache, rng.random() if turn % 2 else 0.1 * rng.random())  # the first page says what it is
        assert list(hashing.file_digests(files, cache, linked=True)) == fresh
        assert hashing.cached_value(files[0], "what", lambda: "this", cache) == outcome
    for _ in range(2):  # the first may find the last damage
        list(hashing.file_digests(files, cache, linked=True))
        hashing.cached_value(files[0], "what", lambda: "this", cache)
    monkeypatch.setattr(hashing, "file_digest", lambda path: "read again")
    assert list(hashing.file_digests(files, cache, linked=True)) == fresh
    assert hashing.cached_value(files[0], "what", lambda: "made again", cache) == outcome


def test_a_cache_that_another_process_uses_is_kept(tmp_path, monkeypatch):
    path, cache, open_now = tmp_path / "a.wav", tmp_path / "digests.sqlite", partial(sqlite3.connect, timeout=0.1)
    path.write_bytes(b"")
    list(hashing.file_digests([os.fsencode(path)], cache))
    with closing(sqlite3.connect(cache)) as other:
        other.execute("BEGIN EXCLUSIVE")
        monkeypatch.setattr(hashing.sqlite3, "connect", lambda name, timeout=0: open_now(name))
        assert list(hashing.file_digests([os.fsencode(path)], cache)) == [hashing.file_digest(path)]
    assert cache.exists()


def test_a_text_about_a_file_is_kept_with_its_digest_and_links_to_it_come_and_go(tmp_path, monkeypatch):
    path, cache = tmp_path / "sound", tmp_path / "digests.sqlite"
    path.write_bytes(b"sound")
    os.utime(path, ns=(10**18, 10**18))
    later, asked = time.time_ns() + 10**11, []
    monkeypatch.setattr(hashing.time, "time_ns", lambda: later)
    digest = hashing.file_digest(path)

    def digests_with(name: str, text: str) -> list[str]:
        about = name, lambda file: asked.append(name) or file.seek(0) or text + file.read().decode()[:2]
        return list(hashing.file_digests([bytes(path)], cache, about=about))

    assert digests_with("one", "1") == digests_with("one", "2") == [f"{digest}\n1so"]
    assert digests_with("two", "3") == [f"{digest}\n3so"]
    assert list(hashing.file_digests([bytes(path)], cache)) == [digest]
    assert asked == ["one", "two"]
    (digest,) = hashing.file_digests([bytes(path)], cache, linked=True)
    monkeypatch.setattr(hashing, "file_digest", lambda path: "read again")
    os.link(path, tmp_path / "link")
    assert list(hashing.file_digests([bytes(path)], cache, linked=True)) == [digest]
    assert list(hashing.file_digests([bytes(path)], cache)) == ["read again"]
    os.utime(path, ns=(10**18, 10**18 + 1))
    assert list(hashing.file_digests([bytes(path)], cache, linked=True)) == ["read again"]
