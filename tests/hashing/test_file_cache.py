"""Digests of files are read again where a file changed, and only there."""

import os
import random
import time
from pathlib import Path

from soundmill import hashing
from soundmill.hashing import digests, file_cache
from tests.lost_bits import lose_a_bit


def test_digests_are_read_again_only_of_files_that_changed(tmp_path, monkeypatch):
    files = [os.fsencode(tmp_path / f"{n}.wav") for n in range(1200)]
    for path in files:
        Path(os.fsdecode(path)).write_bytes(path)
    read: list[bytes] = []
    real = hashing.file_digest
    monkeypatch.setattr(digests, "file_digest", lambda path: [real(path), read.append(path)][0])
    cache = tmp_path / "digests.sqlite"
    written = os.stat(files[0]).st_mtime_ns
    monkeypatch.setattr(file_cache.time, "time_ns", lambda: written)
    fresh = list(hashing.file_digests(files, cache, 2))
    assert fresh == [real(path) for path in files]
    assert len(read) == 1200
    read.clear()
    assert list(hashing.file_digests(files[:3], cache)) == fresh[:3]
    assert len(read) == 3  # changed too short a time ago to be known by their times
    later = written + 10**11
    monkeypatch.setattr(file_cache.time, "time_ns", lambda: later)
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


def test_no_lost_bit_in_the_cache_of_digests_tells_another_digest(tmp_path, monkeypatch):
    files = [os.fsencode(tmp_path / f"{n}.wav") for n in range(120)]
    for path in files:
        Path(os.fsdecode(path)).write_bytes(path)
        os.utime(path, ns=(10**18, 10**18))
    cache, later = tmp_path / "digests.sqlite", time.time_ns() + 10**11
    monkeypatch.setattr(file_cache.time, "time_ns", lambda: later)
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
    monkeypatch.setattr(digests, "file_digest", lambda path: "read again")
    assert list(hashing.file_digests(files, cache, linked=True)) == fresh
    assert hashing.cached_value(files[0], "what", lambda: "made again", cache) == outcome


def test_links_that_come_and_go_do_not_have_a_file_read_again(tmp_path, monkeypatch):
    path, cache = tmp_path / "shard", tmp_path / "digests.sqlite"
    path.write_bytes(b"sound")
    os.utime(path, ns=(10**18, 10**18))
    (digest,) = hashing.file_digests([bytes(path)], cache, linked=True)
    monkeypatch.setattr(digests, "file_digest", lambda path: "read again")
    os.link(path, tmp_path / "link")
    assert list(hashing.file_digests([bytes(path)], cache, linked=True)) == [digest]
    assert list(hashing.file_digests([bytes(path)], cache)) == ["read again"]
    os.utime(path, ns=(10**18, 10**18 + 1))
    assert list(hashing.file_digests([bytes(path)], cache, linked=True)) == ["read again"]


def test_a_text_about_a_file_is_kept_with_its_digest_under_its_own_name(tmp_path, monkeypatch):
    path, cache = tmp_path / "sound", tmp_path / "digests.sqlite"
    path.write_bytes(b"sound")
    os.utime(path, ns=(10**18, 10**18))
    later, asked = time.time_ns() + 10**11, []
    monkeypatch.setattr(file_cache.time, "time_ns", lambda: later)
    digest = hashing.file_digest(path)

    def digests_with(name: str, text: str) -> list[str]:
        about = name, lambda file: asked.append(name) or file.seek(0) or text + file.read().decode()[:2]
        return list(hashing.file_digests([bytes(path)], cache, about=about))

    assert digests_with("one", "1") == digests_with("one", "2") == [f"{digest}\n1so"]
    assert digests_with("two", "3") == [f"{digest}\n3so"]
    assert list(hashing.file_digests([bytes(path)], cache)) == [digest]
    assert asked == ["one", "two"]
