"""Tags inside sound files, and that reading them is bounded and costs nothing the second time."""

import io
import json
import os
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from soundmill import hashing
from soundmill.corpora import check, inventory, sound_tags
from soundmill.manifest import TERMS
from tests.corpora.tiny import filled

BY = "https://creativecommons.org/licenses/by/4.0/"
BEYOND = {"license": "other", sound_tags.BEYOND: "yes"}
MANY = [b"artist=%d" % number for number in range(100_000)]
WAVE = np.zeros((800, 1), np.float32)


def chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def wav(*extra: bytes) -> bytes:
    """A WAV with chunks after its sound."""
    file = io.BytesIO()
    soundfile.write(file, WAVE, 8000, format="WAV", subtype="PCM_16")
    body = file.getvalue()[12:] + b"".join(extra)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


def info(**fields: bytes) -> bytes:
    return chunk(b"LIST", b"INFO" + b"".join(chunk(name.encode(), text) for name, text in fields.items()))


def id3(**frames: bytes) -> bytes:
    body = b"".join(name.encode() + struct.pack(">IH", len(data), 0) + data for name, data in frames.items())
    size = bytes(len(body) >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\x03\0\0" + size + body


def comments(texts: list[bytes]) -> bytes:
    """Of Vorbis, without a vendor."""
    return struct.pack("<II", 0, len(texts)) + b"".join(struct.pack("<I", len(text)) + text for text in texts)


def ogg(packet: bytes) -> bytes:
    """Pages of one packet."""
    lengths, pages, at = [255] * (len(packet) // 255) + [len(packet) % 255], b"", 0
    for first in range(0, len(lengths), 255):
        some = lengths[first : first + 255]
        pages += b"OggS" + bytes(22) + bytes([len(some), *some]) + packet[at : at + sum(some)]
        at += sum(some)
    return pages


def flac(block: bytes) -> bytes:
    """With a block of comments alone."""
    return b"fLaC\x84" + len(block).to_bytes(3, "big") + block


def tagged(form: str, subtype: str, **strings: str) -> bytes:
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", 8000, 1, subtype, format=form) as sound:
        for name, text in strings.items():
            setattr(sound, name, text)
        sound.write(WAVE)
    return file.getvalue()


def read(data: bytes) -> dict[str, str]:
    text = sound_tags.read(io.BytesIO(data))
    return json.loads(text) if text else {}


@pytest.mark.parametrize(
    ("data", "tags"),
    [
        (wav(), {}),
        (wav(info(ICOP=b"CC0\0", IART=b"Bj\xc3\xb6rn\0")), {"artist": "Björn", "copyright": "CC0"}),
        (
            wav(chunk(b"junk", b"x" * 999), info(IART=b"Bj\xf6rn", ISFT=b"Tool", ICMT=b"CC0")),
            {"artist": "Björn", "description": "CC0"},
        ),
        (
            wav(chunk(b"id3 ", id3(TCOP=b"\0CC BY 4.0", TPE1=b"\1" + "Ж".encode("utf-16")))),
            {"artist": "Ж", "copyright": "CC BY 4.0"},
        ),
        (
            tagged("FLAC", "PCM_16", license=BY, artist="Ann", copyright="2020 Ann"),
            {"artist": "Ann", "license": BY, "copyright": "2020 Ann"},
        ),
        (tagged("OGG", "VORBIS", license=BY, artist="Ann"), {"artist": "Ann", "license": BY}),
        (tagged("OGG", "OPUS", copyright="CC0"), {"copyright": "CC0"}),
        (
            id3(TCOP=b"\x002020 Ann", WCOP=BY.encode(), TPE1=b"\0Ann", WOAF=b"https://a.org/1") + tagged("MP3", "MPEG_LAYER_III"),
            {"artist": "Ann", "copyright": "2020 Ann", "license": BY, "url": "https://a.org/1"},
        ),
        (b"", {}),
        (b"RIFF", {}),
        (wav(b"LIST\xff\xff\xff\xffINFOICOP\xff\xff\xff\xffCC0"), {"copyright": "CC0"}),
        (wav(info(ICOP=b"CC BY-NC 4.0")) + b"\0" * 9000, {"copyright": "CC BY-NC 4.0"}),
        (id3(TCOP=b"\0CC0")[:-2], {"copyright": "C"}),
        (ogg(b"OpusTags" + comments([b"ARTIST=Ann", b"artist=Bob"])), {"artist": "Ann; Bob"}),
        (flac(comments([b"LICENSE=CC0"])), {"license": "CC0"}),
        (b"fLaC" + b"\x01\0\0\0" * 100_000, BEYOND),
        (ogg(b"OpusTags" + comments(MANY)), BEYOND),
        (ogg(b"\3vorbis" + comments(MANY)), BEYOND),
        (ogg(b"OpusTags" + struct.pack("<II", 0, 0xFFFFFFFF)), {}),
        (ogg(b"OpusTags" + struct.pack("<III", 0, 1, 0xFFFFFFFF) + b"license=CC0"), {"license": "CC0"}),
        (flac(comments(MANY)), BEYOND),
        (flac(struct.pack("<III", 0, 1, 0xFFFFFFFF) + b"license=CC0"), BEYOND),
        (id3(TPE1=b"\0" + b"\0".join(MANY)), BEYOND),
        (id3(GRP1=b"\0" + b"\0".join(MANY)), BEYOND),
        (id3(TRCK=b"\0" + b"9" * 5000, TCOP=b"\0CC0"), {}),
        (wav(*[chunk(b"junk", b"")] * 1001, info(ICOP=b"CC0")), BEYOND),
        (wav(info(ICOP=b"CC0"), *[chunk(b"junk", b"")] * 2000), BEYOND),
        (wav(info(ICOP=b"CC0"), chunk(b"id3 ", id3(TPE1=b"\0" + b"\0".join(MANY)))), BEYOND),
        (b"OggS" * 1000, {}),
    ],
)
def test_tags_of_each_container(data, tags):
    assert read(data) == tags


def test_huge_tags_are_not_read_whole():
    class Counting(io.BytesIO):
        total = 0

        def read(self, size=-1):
            data = super().read(size)
            self.total += len(data)
            return data

    for data in (wav(info(IART=b"x" * (20 << 20))), id3(TPE1=b"\0" + b"x" * (20 << 20))):
        file = Counting(data)
        sound_tags.read(file)
        assert file.total < sound_tags.MAX_BYTES + (1 << 16)


def test_every_cut_and_flip_of_a_tagged_file_is_read_or_ignored():
    whole = [wav(info(ICOP=b"CC0", IART=b"Ann")), tagged("FLAC", "PCM_16", license=BY), tagged("OGG", "VORBIS", artist="Ann")]
    for data in [*whole, id3(TPE1=b"\0Ann", WCOP=BY.encode())]:
        for at in range(0, min(len(data), 4000), 7):
            read(data[:at])
            read(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])


def test_a_recording_with_more_tags_than_are_read_has_an_unclear_licence(lay):
    files = lay("a.wav", **{"b.ogg": ogg(b"OpusTags" + comments(MANY)), "LICENSE": "CC0 1.0"})
    tables = filled(files)
    found = {row["path"]: (row["licence"], row["terms_found"]) for row in tables.recordings}
    assert found == {"a.wav": ("CC0-1.0", "LICENSE"), "b.ogg": ("unknown", "its tags")}
    assert tables.remarks == ["1 recordings have more tags than are read, so the licence in them is unclear (first: b.ogg)"]


def test_tags_are_read_once_and_stand_beside_tables(tmp_path, monkeypatch):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.flac").write_bytes(tagged("FLAC", "PCM_16", license=BY, artist="Ann"))
    (corpus / "b.wav").write_bytes(wav(info(ICOP=b"(c) Bob. All rights reserved", IART=b"Bob")))
    (corpus / "c.wav").write_bytes(wav(info(ICOP=b"2020 Eve")))
    (corpus / "d.wav").write_bytes(wav())
    (corpus / "list.csv").write_text("filename,license,uploader\na.flac,CC BY-NC 4.0,ann99\n")
    for path in corpus.iterdir():
        os.utime(path, (1e9, 1e9))
    reads = []
    real = sound_tags.read
    monkeypatch.setattr(sound_tags, "read", lambda file: reads.append(file) or real(file))
    monkeypatch.setattr("soundmill.hashing._SETTLED_NS", -1)
    for _ in range(2):
        files = inventory.list_files(corpus, cache=tmp_path / "digests.sqlite")
        tables = filled(files)
    assert len(reads) == 4
    stated = "licence, creator: list.csv:2 (CC-BY-NC-4.0); licence, creator: its tags (CC-BY-4.0)"
    assert {row["path"]: tuple(row[column] for column in TERMS) for row in tables.recordings} == {
        "a.flac": ("CC-BY-NC-4.0", "ann99; Ann", None, None, stated),
        "b.wav": ("(c) Bob. All rights reserved", "Bob", None, None, "its tags"),
        "c.wav": (None,) * 5,
        "d.wav": (None,) * 5,
    }
    assert files.audio[0].digest == hashing.file_digest(corpus / "a.flac")


def test_a_check_finds_the_terms_that_the_scan_finds(tmp_path):
    (tmp_path / "rain").mkdir()
    (tmp_path / "rain/a.flac").write_bytes(tagged("FLAC", "PCM_16", license=BY, artist="Ann"))
    (tmp_path / "rain/b.wav").write_bytes(wav(info(ICOP=b"CC BY-NC 4.0")))
    (tmp_path / "rain/c.ogg").write_bytes(ogg(b"OpusTags" + comments(MANY)))
    (tmp_path / "rain/d.wav").write_bytes(wav())
    (tmp_path / "LICENSE").write_text("CC0 1.0")
    scanned = filled(inventory.list_files(tmp_path))
    report = check.check(tmp_path, "folder")

    def found(rows):
        return {row["path"]: tuple(row[column] for column in TERMS) for row in rows}

    assert found(report.tables.recordings) == found(scanned.recordings)
    assert report.as_json()["licences"] == {"CC-BY-4.0": 1, "CC-BY-NC-4.0": 1, "CC0-1.0": 1, "unknown": 1}


def test_a_check_says_which_tags_it_does_not_read(tmp_path):
    row = {"audio": {"bytes": tagged("FLAC", "PCM_16", license=BY), "path": "a.flac"}, "text": "a dog"}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "train.parquet")
    report = check.check(tmp_path)
    assert report.as_json()["licences"] == {"unknown": 1}
    assert any("1 recordings are inside Parquet tables" in remark for remark in report.tables.remarks)
