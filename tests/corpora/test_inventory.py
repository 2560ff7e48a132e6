"""The walk over a corpus: what counts as a recording, what is ignored, and what is named and never opened."""

import hashlib
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import soundfile

from soundmill.corpora import csv_tables, inventory, metadata, registry
from soundmill.errors import UserError
from tests.decoding.files import sparse_wav


def put(root, name: str | bytes, data: bytes = b"RIFF") -> None:
    path = os.path.join(os.fsencode(root), os.fsencode(name))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)


def names(taken: inventory.Inventory) -> list[bytes]:
    return [file.raw_path for file in taken.audio]


def test_awkward_names_are_recordings_in_stable_order(tmp_path):
    awkward = [b"b c/'q\".wav", b"-x.ogg", b"100%:1.flac", b"new\nline.mp3", b"\xff\xfe.wav", b"video.mp4", b"none"]
    awkward.append("ü.m4a".encode())
    for name in reversed(awkward):
        put(tmp_path, name, b"\0" + name)
    result = inventory.list_files(tmp_path)
    assert names(result) == sorted(awkward)
    digests = {name: hashlib.sha256(b"\0" + name).hexdigest()[:32] for name in awkward}
    assert {file.raw_path: file.digest for file in result.audio} == digests
    assert [file.path for file in result.audio if b"\xff" in file.raw_path] == [r"\xff\xfe.wav"]
    assert [file.path for file in result.audio if b"\n" in file.raw_path] == [r"new\x0aline.mp3"]
    assert not result.rejected


def test_metadata_and_dot_files_are_ignored_and_counted(tmp_path):
    unfinished = "b.wav.part c.wav~ a.pkf d.m4a.ytdl"  # halves of downloads, and what editors leave
    others = "README.txt LICENSE CITATION.cff.md meta/a.CSV cover.jpg .DS_Store ._x.wav .git/x.wav x.txt.wav"
    for name in f"{others} {unfinished}".split():
        put(tmp_path, name)
    put(tmp_path, "license_to_kill.wav")
    result = inventory.list_files(tmp_path)
    assert names(result) == [b"license_to_kill.wav", b"x.txt.wav"]
    unfinished = dict.fromkeys((".part", ".wav~", ".pkf", ".ytdl"), 1)
    assert result.ignored == unfinished | {".txt": 1, "LICENSE": 1, ".md": 1, ".csv": 1, ".jpg": 1, "dot files": 3}
    assert result.csv_files() == [b"meta/a.CSV"]


def test_what_cannot_be_read_is_named_and_never_opened(tmp_path):
    put(tmp_path, "ok.wav")
    put(tmp_path, "empty.wav", b"")
    os.mkfifo(tmp_path / "pipe.wav")
    os.mkfifo(tmp_path / "train.csv")
    (tmp_path / "dangling.wav").symlink_to("nowhere.wav")
    (tmp_path / "self.wav").symlink_to("self.wav")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s.wav"))
        result = inventory.list_files(tmp_path)
    assert names(result) == [b"ok.wav"]
    assert result.csv_files() == []
    reasons = {row["path"]: (row["reason"], row["detail"]) for row in result.rejected}
    assert reasons["empty.wav"] == ("empty", "zero bytes")
    assert reasons["pipe.wav"] == reasons["train.csv"] == ("not a regular file", "FIFO")
    assert reasons["s.wav"] == ("not a regular file", "socket")
    assert reasons["dangling.wav"] == ("dangling link", "leads to nowhere.wav: No such file or directory")
    assert reasons["self.wav"][0] == "dangling link"


def test_links_to_files_count_and_links_to_directories_are_followed_once(tmp_path):
    corpus, outside = tmp_path / "corpus", tmp_path / "outside"
    put(corpus, "dog/a.wav")
    put(outside, "bark/b.wav")
    (corpus / "linked.wav").symlink_to(outside / "bark" / "b.wav")
    (corpus / "elsewhere").symlink_to(outside)
    (corpus / "elsewhere2").symlink_to(outside)
    (corpus / "again").symlink_to("dog")
    (corpus / "dog" / "loop").symlink_to("..")
    (corpus / "above").symlink_to(tmp_path)
    (corpus / "root").symlink_to("/")
    (outside / "back").symlink_to(corpus)
    result = inventory.list_files(corpus, follow_links=True)
    assert names(result) == [b"dog/a.wav", b"elsewhere/bark/b.wav", b"linked.wav"]
    assert {row["path"] for row in result.rejected} == {"again", "above", "root", "dog/loop", "elsewhere2", "elsewhere/back"}
    assert {row["reason"] for row in result.rejected} == {"directory link"}
    message = "2 links that lead out of the folder and are followed (first: elsewhere)"
    assert list(result.remarks.values()) == [message]


@pytest.mark.parametrize("digests", [True, False])
def test_links_out_of_the_corpus_are_quarantined_and_reported(tmp_path, digests):
    corpus, outside = tmp_path / "corpus", tmp_path / "outside"
    put(outside, "passwd", b"root:x:0:0")
    put(outside, "deep/b.wav")
    put(corpus, "rain/r0.wav")
    put(corpus, "rain/r0.json", b"{}")
    put(corpus, ".annex/r1.wav")
    (tmp_path / "corpus2").mkdir()  # its name begins with the corpus's
    put(tmp_path, "corpus2/c.wav")
    leaving = {"rain/r0.txt": outside / "passwd", "rain/climbing.txt": "../../outside/passwd", "near.wav": "../corpus2/c.wav"}
    leaving |= {"rain/link.ogg": outside / "deep/b.wav", "rain/chain.wav": corpus / "rain/link.ogg", "folder": outside / "deep"}
    leaving |= {"above": tmp_path, "root": "/", "table.csv": "/etc/hostname"}
    staying = {"rain/again.wav": "r0.wav", "r1.wav": ".annex/r1.wav", "out-and-in.wav": "../corpus/rain/r0.wav"}
    for name, target in (leaving | staying).items():
        (corpus / name).symlink_to(target)
    result = inventory.list_files(corpus, digests=digests)
    assert names(result) == [b"out-and-in.wav", b"r1.wav", b"rain/again.wav", b"rain/r0.wav"]
    assert list(result.metadata) == [b"rain/r0.json"]
    assert {row["path"]: row["reason"] for row in result.rejected} == dict.fromkeys(leaving, "link_leaves_corpus")
    assert {row["path"]: row["detail"] for row in result.rejected}["rain/r0.txt"] == f"leads to {outside / 'passwd'}"
    (message,) = result.remarks.values()
    assert message.startswith("9 links that lead out of the folder and are not followed; corpus.follow_links: true follows")


@pytest.mark.parametrize("follow_links", [False, True])
def test_links_to_what_can_hang_or_is_not_there_are_reported(tmp_path, follow_links):
    put(tmp_path, "corpus/x.wav")
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "corpus/pipe.csv")
    targets = {"a.txt": tmp_path / "pipe", "b.wav": "pipe.csv", "c.json": "/dev/zero", "f.wav": tmp_path / "nowhere.wav"}
    targets |= {"e.csv": "e.csv", "g.wav": "h.wav", "h.wav": "g.wav", "i": "i/i"}
    for name, target in targets.items():
        (tmp_path / "corpus" / name).symlink_to(target)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        (tmp_path / "corpus/s.txt").symlink_to(tmp_path / "socket")
        result = inventory.list_files(tmp_path / "corpus", follow_links=follow_links)
    assert (names(result), result.metadata) == ([b"x.wav"], {})
    reasons = {row["path"]: row["reason"] for row in result.rejected}
    special, gone = ("a.txt", "b.wav", "c.json", "pipe.csv", "s.txt"), ("e.csv", "f.wav", "g.wav", "h.wav", "i")
    assert reasons == dict.fromkeys(special, "not a regular file") | dict.fromkeys(gone, "dangling link")


@pytest.mark.parametrize("digests", [True, False])
def test_texts_of_unknown_extensions_are_no_recordings(tmp_path, digests):
    texts = ("Dirt-Samples.quark", "list.m3u8", "notes", "kit.sfz", "déjà.quark", "utf16.quark")
    for name in texts:
        put(tmp_path, name, "é Quark(name: 1)".encode("utf-16" if name.startswith("utf16") else "utf-8"))
    put(tmp_path, "sound.quark", b"OggS\0\2")
    put(tmp_path, "error.wav", b"<html>404</html>")  # was to be a recording, and is a damaged one
    result = inventory.list_files(tmp_path, digests=digests)
    assert names(result) == [b"error.wav", b"sound.quark"]
    assert (result.ignored, result.rejected) == ({".quark": 3, ".m3u8": 1, "notes": 1, ".sfz": 1}, [])


def bytes_read() -> int:
    """By this process, so far."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_a_recording_that_its_header_rules_out_is_not_read(tmp_path):
    """Sparse files: they take no room on the disk, and all of their gigabytes would be read for a digest."""
    for name in ("tail.wav", "whole.wav", "zeros.ogg"):
        soundfile.write(tmp_path / name, np.full(16_000, 0.1), 16_000)
    sparse_wav(tmp_path / "sparse.wav", 4 << 30)
    os.truncate(tmp_path / "tail.wav", 4 << 30)
    os.truncate(tmp_path / "zeros.ogg", 2 << 30)
    before = bytes_read()
    result = inventory.list_files(tmp_path, workers=2, max_seconds=7200.0)
    assert bytes_read() - before < 32 << 20
    assert names(result) == [b"whole.wav"]
    assert {row["path"]: (row["reason"], row["detail"]) for row in result.rejected} == {
        "sparse.wav": ("too long", "more than 7200 s"),
        "tail.wav": ("corrupt", "ends in more than 1048576 zeros"),
        "zeros.ogg": ("corrupt", "ends in more than 1048576 zeros"),
    }


def test_what_no_recording_can_be_is_neither_read_nor_lost(tmp_path):
    put(tmp_path, "x.wav")
    with open(tmp_path / "zeros.wav", "wb") as file:
        file.truncate(inventory.MAX_RECORDING_BYTES + 1)  # takes no room on the disk
    with open(tmp_path / "notes.csv", "wb") as file:
        file.truncate(3 << 30)
    result = inventory.list_files(tmp_path)
    assert [(row["path"], row["reason"]) for row in result.rejected] == [("zeros.wav", "too large")]
    assert csv_tables.csv_columns(result, b"notes.csv") == []


def test_recordings_whose_tags_cannot_be_read_are_named(tmp_path):
    for name in ("a.wav", "b.wav"):
        put(tmp_path, name)
    taken = inventory.list_files(tmp_path, digests=False)
    (tmp_path / "b.wav").unlink()
    assert inventory.read_tags(taken) == [b"b.wav"]


def test_nothing_to_find_is_an_error_that_says_what_was_there(tmp_path):
    with pytest.raises(UserError, match=r"no recording in .*no files"):
        inventory.list_files(tmp_path).check_not_empty()
    put(tmp_path, "notes.txt")
    put(tmp_path, "zero.wav", b"")
    with pytest.raises(UserError, match=r"2 files.*1 \.txt.*zero\.wav: empty.*give the directory"):
        inventory.list_files(tmp_path).check_not_empty()


def test_csv_with_byte_order_mark_crlf_quotes_and_short_rows(tmp_path):
    put(tmp_path, "a.csv", b'\xef\xbb\xbfName , Caption\r\n1,"a, ""b""\nc"\r\n\r\n2\r\n')
    result = inventory.list_files(tmp_path)
    assert csv_tables.csv_columns(result, b"a.csv") == ["name", "caption"]
    rows = [(line, dict(cells)) for line, cells in csv_tables.read_csv(result, b"a.csv")]
    assert rows == [(3, {"name": "1", "caption": 'a, "b"\nc'}), (5, {"name": "2", "caption": ""})]


def test_json_with_repeated_keys_and_deep_nesting(tmp_path):
    put(tmp_path, "a.json", b'\xef\xbb\xbf[{"id": "x", "caption": "a", "id": "y"}]')
    put(tmp_path, "lines.json", b'{"id": 1}\n\n{"id": 2, "id": 3}\r\n')
    put(tmp_path, "deep.json", b"[" * 200_000)
    put(tmp_path, "cut.json", b'[{"id": "x"')
    result = inventory.list_files(tmp_path)
    assert metadata.read_json(result, b"a.json") == [{"id": "y", "caption": "a"}]
    assert list(metadata.read_json_lines(result, b"lines.json")) == [(1, {"id": 1}), (3, {"id": 3})]
    told = {name: text.split("(")[1] for (name, _), text in result.remarks.items()}
    assert told == dict.fromkeys((b"a.json", b"lines.json"), "first: 'id')")
    for name in (b"deep.json", b"cut.json"):
        with pytest.raises(UserError, match=rf"{name.decode()}: not readable as JSON"):
            metadata.read_json(result, name)
    with pytest.raises(UserError, match=r"deep\.json:1: not readable as JSON lines"):
        list(metadata.read_json_lines(result, b"deep.json"))


def test_a_manifest_too_large_to_be_read_at_once_or_no_text_is_an_error_that_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr(metadata, "MAX_MANIFEST_BYTES", 1 << 20)
    put(tmp_path, "large.csv", b"id\n" + b"x\n" * (1 << 19))
    put(tmp_path, "large.json", b"[" + b" " * (1 << 20) + b"]")
    result = inventory.list_files(tmp_path)
    with pytest.raises(UserError, match=r"large\.csv: more than 1 MiB"):
        list(csv_tables.read_csv(result, b"large.csv"))
    with pytest.raises(UserError, match=r"large\.json: more than 1 MiB"):
        metadata.read_json(result, b"large.json")
    put(tmp_path, "bad.csv", b"name\nx\0y")
    result = inventory.list_files(tmp_path)
    with pytest.raises(UserError, match=r"bad\.csv: not UTF-8 text"):
        list(csv_tables.read_csv(result, b"bad.csv"))


SAVED = 'name{0}caption\r\n1{0}"a, b; c"\r\n2{0}café'  # as table programs save it


@pytest.mark.parametrize(
    ("content", "captions", "remark"),
    [
        *((SAVED.format(mark).encode(code), ["a, b; c", "café"], "") for mark, code in ((";", "utf-8"), ("\t", "utf-8-sig"))),
        *((SAVED.format(mark).encode("utf-16"), ["a, b; c", "café"], "") for mark in "\t,"),
        (
            b"\xef\xbb\xbfName,Caption\r\n1,caf\xc3\xa9\r\n2,na\xefve \x93dog\x94\r\n3,ordinary\x81",
            ["café", "naïve “dog”", "ordinary\ufffd"],
            "2 lines that are not UTF-8, read as Windows-1252 (first: line 3)",
        ),
        (b'name,caption\n1,a dog, barking\n2,"a cat"\n', ["a dog", "a cat"], "1 rows with more cells than the header"),
        (b"name,caption,x\n1,a dog, barking,cat\n", ["a dog"], "1 rows with more cells than the header"),
        (b"name,caption,caption\n1,a,b\n", ["b"], "1 repeated columns in a header, of which the last is read (first: caption)"),
        (b'name,caption,"notes; a; b; c"\n1,a,x\n', ["a"], ""),
        (b"name,caption\r1,a; b; c; d\r", ["a; b; c; d"], ""),
        (b"name,caption\t\t\n1,a\n", ["a"], ""),
        (b'name,caption,";;;;"\n1,a,x\n', ["a"], ""),
        (b"name;caption;length, s\n1;a;1,0\n", ["a"], ""),
        (b"name,caption (a; b; c)\n1,a\n", ["a"], ""),
    ],
)
def test_csv_of_every_program_is_read_and_what_is_odd_in_it_reported(tmp_path, content, captions, remark):
    put(tmp_path, "a.csv", content)
    result = inventory.list_files(tmp_path)
    name, caption = csv_tables.csv_columns(result, b"a.csv")[:2]
    assert (name, caption[:7]) == ("name", "caption")
    assert [row[caption] for _, row in csv_tables.read_csv(result, b"a.csv")] == captions
    told = "\n".join(result.remarks.values())
    assert remark in told if remark else not told


def test_what_a_header_rules_out_is_refused_whatever_was_read_before(tmp_path):
    path = tmp_path / "sounds" / "long.wav"
    path.parent.mkdir()
    sparse_wav(path, 44 + 3600 * 32_000)
    os.utime(path, (1, 1))  # not so new that its digest is not kept
    for seconds, kept in ((7200.0, 1), (600.0, 0), (7200.0, 1)):
        result = inventory.list_files(path.parent, cache=tmp_path / "digests.sqlite", max_seconds=seconds)
        assert len(result.audio) == kept


def test_small_metadata_files_are_opened_once_for_all_formats(tmp_path, monkeypatch):
    for number in range(3):
        put(tmp_path, f"{number}.wav")
        put(tmp_path, f"{number}.json", b'{"prompt": "rain"}')
    taken = inventory.list_files(tmp_path, digests=False)
    opened = []
    monkeypatch.setattr(metadata.buckets, "open_file", lambda path: opened.append(path) or open(path, "rb"))
    assert len(registry.read("auto", taken, 1).captions) == 3
    assert sorted(opened) == sorted(taken.metadata.values())
