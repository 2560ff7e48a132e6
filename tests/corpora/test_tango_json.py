"""TANGO's manifests: paths of another machine, a line per caption."""

import json

import pytest

from soundmill.corpora import registry
from soundmill.errors import UserError


def lines(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def entry(location: str, captions="a dog barks", **more) -> dict:
    return {"dataset": "audiocaps", "location": location, "captions": captions, **more}


def test_rows_of_one_location_are_captions_of_one_recording(lay, captions_of):
    manifest = lines(
        entry("/x/audio/r1nicOVtvkQ_30.wav", "one", labels=["dog", "rain"]),
        entry("data/r1nicOVtvkQ_30.wav", "two"),
        entry("data/dog bark.wav", ["three", "four"], labels="dog; bark"),
        entry("data/gone.wav", "five"),
    )
    result = lay("sub/r1nicOVtvkQ_30.flac", "dog bark.wav", **{"train.json": "\ufeff" + manifest.replace("\n", "\r\n")})
    assert registry.detect(result) == "tango_json"
    tables = registry.read("auto", result, 4)
    assert captions_of(tables) == {"sub/r1nicOVtvkQ_30.flac": ["one", "two"], "dog bark.wav": ["three", "four"], None: ["five"]}
    by_path = {row["path"]: row for row in tables.recordings}
    recording = by_path["sub/r1nicOVtvkQ_30.flac"]
    assert (recording["recording_id"], recording["start_time"], recording["split"]) == ("r1nicOVtvkQ", 30.0, "train")
    assert recording["labels"] == ["dog", "rain"]
    assert by_path["dog bark.wav"]["labels"] == ["dog", "bark"]
    assert by_path["dog bark.wav"]["corpus"] == "tango_json"


def test_bad_entries_are_quarantined_and_a_broken_line_is_an_error_with_its_number(lay):
    rows = lines(entry("x.wav"), {"location": 3, "captions": "x"}, entry("x.wav", captions=None), entry("../../x.wav"))
    tables = registry.read("tango_json", lay("x.wav", **{"test.json": rows}), 4)
    assert [(row["reason"], row["detail"].split(":")[0]) for row in tables.rejected] == [
        ("bad entry", "line 2"),
        ("empty caption", "line 3"),
    ]
    assert [row["id"] for row in tables.missing] == ["../../x.wav"]
    with pytest.raises(UserError, match=r"test\.json:2: not readable as JSON lines"):
        registry.read("tango_json", lay("x.wav", **{"test.json": lines(entry("x.wav")) + "{\n"}), 4)
