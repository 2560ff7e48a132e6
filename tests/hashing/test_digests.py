"""Known digests: rows, ids and checkpoints on disk hold such values, so none may change."""

import hashlib
import io
import os
from pathlib import Path

import pytest

from soundmill import hashing, hub
from soundmill.corpora.tables import id_of_path
from soundmill.models.catalog import choose_by_hash
from soundmill.shards import shard_of
from soundmill.training.seeds import seed_of
from stages import mixup


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    files = {"a.txt": "hello", "sub/b.txt": "x", "sub-x/c.txt": "y", ".gitignore": "*\n"}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path


def test_digests_of_values():
    assert hashing.digest("a", 1, 0.5, [1, "ä"], {"b": None, "a": True}, b"raw") == "9f329147047d1a5870f564fb6b3b208e"
    assert hashing.digest({"a": True, "b": None}) == hashing.digest({"b": None, "a": True})
    assert hashing.digest("ab", "c") != hashing.digest("a", "bc")
    assert hashing.short_digest(b"a/b.wav") == id_of_path(b"a/b.wav") == "abf22e75a1bf"
    assert [shard_of(key, 7) for key in ("a", "b", b"c", "ä")] == [2, 5, 1, 0]
    assert seed_of(1, "clip", "ä", 3) == 4217270582666349523
    assert mixup._hash(3, "second 1", "clip-1") == 1388791198621227314


def test_order_by_hash_is_stable():
    ids = [str(number) for number in range(20)]
    assert choose_by_hash(ids, 4) == ["10", "11", "12", "4"]
    order = hashing.hash_order(ids, "halves", 3)
    assert sorted(order) == sorted(ids)
    assert order != hashing.hash_order(ids, "halves", 4)
    assert [name for name in order if name != "7"] == hashing.hash_order([name for name in ids if name != "7"], "halves", 3)


def test_digests_of_files(tree):
    sha256 = hashlib.sha256(b"hello").hexdigest()
    assert (
        hashing.file_digest(tree / "a.txt") == hashing.tree_digest(tree / "a.txt") == hashing.bytes_digest(b"hello") == sha256[:32]
    )
    file = io.BytesIO(b"not hello")
    file.seek(4)
    assert hashing.opened_digest(file) == sha256[:32]


def test_digests_of_directories(tree, tmp_path_factory):
    assert hashing.tree_digest(tree) == "18ead9e98236e86351dad3ee70ab0271"
    assert hashing.tree_digest(tree, tmp_path_factory.mktemp("cache") / "digests.sqlite", 2) == hashing.tree_digest(tree)
    assert hashing.tree_digest(tree / "sub") == "f7d6a0af0d884bc4a0ac0551cd95da1c"
    assert hub.digest(tree, ["*.txt", "sub/*"]) == "e7c814fc4815d85da1028f6be8bc894c"
    assert hashing.model_digest(tree) == "931a50fc473782514c3f928bdd0afb941f8cf2de18bab208070acd94a816eda9"
    (tree / "sub" / "b.txt").rename(tree / "sub" / "renamed.txt")
    assert hashing.tree_digest(tree / "sub") != "f7d6a0af0d884bc4a0ac0551cd95da1c"


def test_what_is_missing_has_no_digest(tree):
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
