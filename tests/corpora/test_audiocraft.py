"""audiocraft's manifests, packed or not, with what their recordings' own json says."""

import gzip
import json

import pytest

from soundmill.errors import UserError
from tests.corpora.tiny import captions, detected, put, recordings, scan, write


def lines(*paths: str) -> str:
    entry = {"duration": 99.0, "sample_rate": 44100, "amplitude": None, "weight": None, "info_path": None}
    return "".join(json.dumps({"path": path, **entry}) + "\n" for path in paths)


@pytest.fixture
def corpus(tmp_path):
    put(tmp_path, "dataset/example/electro_1.wav", "dataset/example/electro_2.wav", "sfx/a.flac", "sfx/b.flac", "sfx/c.flac")
    write(
        tmp_path,
        "egs/example/train/data.jsonl.gz",
        gzip.compress(lines("dataset/example/electro_1.wav", "/elsewhere/gone.wav").encode()),
    )
    write(tmp_path, "egs/example/valid/data.jsonl", lines("/home/me/dataset/example/electro_2.wav"))
    write(tmp_path, "egs/evaluate.jsonl", lines("sfx/a.flac", "sfx/b.flac", "sfx/c.flac") + '"nonsense"\n')
    music = {
        "key": "",
        "artist": "X",
        "description": "A cool beat ",
        "keywords": "bright, pulsing",
        "genre": "electronic",
        "bpm": "",
    }
    write(tmp_path, "dataset/example/electro_1.json", json.dumps(music))
    write(tmp_path, "dataset/example/electro_2.json", json.dumps({"description": None, "keywords": ["Dark", "slow"]}))
    write(tmp_path, "sfx/a.json", json.dumps({"description": ["a bang", "a loud bang"]}))
    write(tmp_path, "sfx/b.json", '{"description": ')
    return tmp_path


def test_manifests_tell_the_split_and_jsons_beside_recordings_the_rest(corpus):
    assert detected(corpus) == "audiocraft"
    tables = scan(corpus)
    assert recordings(tables, "split", "labels") == {
        "dataset/example/electro_1.wav": ("train", ["electronic"]),
        "dataset/example/electro_2.wav": ("valid", ["dark", "slow"]),
        "sfx/a.flac": ("test", []),
        "sfx/b.flac": ("test", []),
        "sfx/c.flac": ("test", []),
    }
    assert captions(tables) == {"dataset/example/electro_1.wav": ["A cool beat"], "sfx/a.flac": ["a bang", "a loud bang"]}
    assert [row["id"] for row in tables.missing] == ["/elsewhere/gone.wav"]
    listed = [row["path"] for row in tables.matched if not row["captions"] and row["path"].startswith("sfx")]
    assert (listed, tables.orphans) == (["sfx/b.flac", "sfx/c.flac"], [])
    assert {row["path"]: row["reason"] for row in tables.rejected} == {
        "egs/evaluate.jsonl": "bad entry",
        "sfx/b.json": "unreadable caption",
    }


def test_a_packed_manifest_that_breaks_off_is_an_error_that_names_it(corpus):
    path = corpus / "egs/example/train/data.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(UserError, match=r"train/data\.jsonl\.gz:\d+: not readable"):
        scan(corpus, "audiocraft")


def test_a_line_without_end_is_refused_and_not_held(corpus):
    write(corpus, "egs/example/train/data.jsonl.gz", gzip.compress(lines("sfx/a.flac").encode() + b" " * (3 << 20)))
    with pytest.raises(UserError, match="a line over 1048576 bytes"):
        scan(corpus, "audiocraft")
