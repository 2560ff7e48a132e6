import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soundmill import manifest
from soundmill.errors import UserError


@given(st.binary(max_size=40))
def test_escaped_paths_are_printable_and_distinct(raw):
    text = manifest.escape_path(raw)
    assert all(char.isprintable() or not char.isascii() for char in text)
    assert "\n" not in text
    text.encode("utf-8")
    assert manifest.unescape_path(text) == raw


def test_escape_known_answers():
    assert manifest.escape_path("Dog bark/é 1.wav".encode()) == "Dog bark/é 1.wav"
    assert manifest.escape_path(b"a\xff\nb\\.wav") == "a\\xff\\x0ab\\\\.wav"


@pytest.mark.parametrize(
    ("stem", "start", "name"),
    [
        ("-0BIyqJj9ZU", 30.0, "-0BIyqJj9ZU_30"),
        ("abc", 0.0, "abc_0"),
        ("abc", 12.5, "abc_12.5"),
        ("abc", 7.1004, "abc_7.1"),
        ("abc", 100.0, "abc_100"),
    ],
)
def test_clip_names(stem, start, name):
    assert manifest.clip_name(stem, start) == name
    assert manifest.check_clip_id(name) == name


@pytest.mark.parametrize("bad", ["../x", "", ".hidden", "a/b", "a b", "x" * 129, "a\n", "a\0"])
def test_ids_that_could_climb_are_refused(bad):
    with pytest.raises(UserError, match="is not a safe file name"):
        manifest.check_clip_id(bad)


def test_json_for_others_is_lines_of_whole_rows(tmp_path):
    rows = [{"dataset": "audiocaps", "location": "data/x.wav", "captions": 'A "dog" barks, é'}]
    path = tmp_path / "train.json"
    assert manifest.write_lines(path, rows) == 1
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == rows
