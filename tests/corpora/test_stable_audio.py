"""Recordings with a prompt beside each, as stable-audio-tools' datasets have them."""

import json

import pytest

from soundmill.errors import UserError
from tests.corpora.tiny import captions, detected, put, recordings, scan, write


@pytest.fixture
def corpus(tmp_path):
    put(tmp_path, "a/000001.flac", "a/000002.flac", "b/000001.wav", "b/000003.wav", "b/000004.wav", "b/000005.wav")
    write(tmp_path, "a/000001.json", json.dumps({"prompt": "A dog barks", "seconds_total": 5, "timestamps": [0, 1]}))
    write(tmp_path, "a/000002.json", json.dumps({"prompt": ["Rain", " ", "Heavy rain"]}))
    write(tmp_path, "b/000001.json", "\ufeff" + json.dumps({"prompt": "Ein Käuzchen"}))
    write(tmp_path, "b/000003.json", json.dumps({"prompt": ""}))
    write(tmp_path, "b/000004.txt", "The sea\n")
    write(tmp_path, "b/gone.json", json.dumps({"prompt": "Nobody's"}))
    return tmp_path


def test_prompts_belong_to_the_recording_beside_them(corpus):
    assert detected(corpus) == "stable_audio"
    tables = scan(corpus)
    assert captions(tables) == {
        "a/000001.flac": ["A dog barks"],
        "a/000002.flac": ["Rain", "Heavy rain"],
        "b/000001.wav": ["Ein Käuzchen"],
        "b/000004.wav": ["The sea"],
        "missing:b/gone": ["Nobody's"],
    }
    assert set(recordings(tables, "split").values()) == {None}
    assert [(row["path"], row["reason"]) for row in tables.rejected] == [("b/000003.json", "empty caption")]
    assert [row["path"] for row in tables.orphans] == ["b/000003.wav", "b/000005.wav"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"prompt": ', "unreadable caption"),
        (b"\xff\xfe", "empty caption"),
        (b"[" * 100_000, "unreadable caption"),
        (b'{"prompt": "' + b"x" * (1 << 20) + b'"}', "caption too long"),
        (b'["prompt"]', "empty caption"),
        (b'{"prompt": 7}', "empty caption"),
        (b"", "empty caption"),
    ],
)
def test_a_damaged_json_costs_one_caption(corpus, content, reason):
    write(corpus, "a/000001.json", content)
    tables = scan(corpus, "stable_audio")
    assert len(tables.recordings) == 6
    assert "a/000001.flac" not in captions(tables)
    assert [row["reason"] for row in tables.rejected if row["path"] == "a/000001.json"] == [reason]


def test_prompts_without_a_recording_are_missing(tmp_path):
    put(tmp_path, "a.wav")
    for name in "abc":
        write(tmp_path, f"{name}.json", json.dumps({"prompt": name, "seconds_total": 5}))
    write(tmp_path, "workflow.json", json.dumps({"prompt": "A dog", "steps": 100}))
    write(tmp_path, "list.json", json.dumps([{"prompt": "A dog"}]))
    assert detected(tmp_path) == "stable_audio"
    tables = scan(tmp_path)
    assert [(row["id"], row["captions"], row["origins"]) for row in tables.missing] == [
        ("b", ["b"], ["b.json:prompt"]),
        ("c", ["c"], ["c.json:prompt"]),
    ]
    assert (len(tables.matched), tables.rejected, tables.ambiguous) == (1, [], [])
    (remark,) = tables.remarks
    assert remark.startswith(
        "2 tables, lists or texts not read, since they are not part of the format stable_audio (first: list.json)"
    )


def test_jsons_without_prompts_are_something_else(tmp_path):
    put(tmp_path, "a.wav")
    write(tmp_path, "a.json", json.dumps({"title": "x"}))
    assert detected(tmp_path) == "folder"
    with pytest.raises(UserError, match='"prompt" beside a recording'):
        scan(tmp_path, "stable_audio")


def test_a_folder_of_its_own_name_inside_takes_nothing_away(tmp_path):
    put(tmp_path, "a/x.wav", "a/a/x.wav")
    write(tmp_path, "a/x.json", '{"prompt": "outer"}')
    write(tmp_path, "a/a/x.json", '{"prompt": "inner"}')
    assert captions(scan(tmp_path, "stable_audio")) == {"a/x.wav": ["outer"], "a/a/x.wav": ["inner"]}


def test_jsons_with_a_text_are_those_of_laion_clap(tmp_path):
    put(tmp_path, "1.flac", "2.flac", "3.flac")
    write(tmp_path, "1.json", json.dumps({"text": ["A dog barks", "Barking"], "tag": ["dog"]}))
    write(tmp_path, "2.json", json.dumps({"text": "Rain", "prompt": "Heavy rain"}))
    write(tmp_path, "3.json", json.dumps({"text": [], "tag": ["nothing"]}))
    assert detected(tmp_path) == "stable_audio"
    tables = scan(tmp_path)
    assert captions(tables) == {"1.flac": ["A dog barks", "Barking"], "2.flac": ["Heavy rain"]}
    assert [(row["path"], row["reason"]) for row in tables.rejected] == [("3.json", "empty caption")]
