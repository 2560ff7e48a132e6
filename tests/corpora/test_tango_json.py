"""TANGO's manifests: paths of another machine, a line per caption."""

import json
import shutil

import pytest

from soundmill.corpora import inventory, registry
from soundmill.corpora.json_entries import TANGO
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


def test_machine_ids_are_told_by_their_names_or_not_at_all(lay):
    mids = "/m/09x0r,/m/0llzx,/t/dd00127"
    manifest = lines(
        entry("data/a.wav", labels=mids), entry("data/b.wav", labels="/m/09x0r; dog"), entry("data/c.wav", labels=[mids])
    )
    classes = "index,mid,display_name\n0,/m/09x0r,Speech\n1,/m/0llzx,Sewing machine\n"
    tables = registry.read("auto", lay("a.wav", "b.wav", "c.wav", **{"t.json": manifest, "class_labels_indices.csv": classes}), 1)
    labels = {row["path"]: row["labels"] for row in tables.recordings}
    assert labels == {"a.wav": ["Speech", "Sewing machine"], "b.wav": ["Speech", "dog"], "c.wav": ["Speech", "Sewing machine"]}
    assert tables.counts["labels_without_name"] == 2


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


def test_real_manifests_find_files_under_other_names(shared, tmp_path, captions_of):
    source = shared / "data" / "audiocaps"
    for name in ("tango_style_test.json", "tango_style_valid.json"):
        shutil.copy(source / name, tmp_path / name)
    expected = {}
    forms = ("{v}_{s}.wav", "Y{v}.flac", "a/{v}_{s}000_{e}000.mp3", "{v}_{s}.000_{e}.000.ogg", "b/{v}.m4a")
    for name, split in (("tango_style_test.json", "test"), ("tango_style_valid.json", "valid")):
        for number, line in enumerate((source / name).read_text(encoding="utf-8").splitlines()[:300]):
            row = json.loads(line)
            video, _, start = row["location"].rpartition("/")[2].removesuffix(".wav").rpartition("_")
            path = tmp_path / forms[number % 5].format(v=video, s=start, e=int(start) + 10)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"RIFF")
            expected[str(path.relative_to(tmp_path))] = (row["captions"].strip(), split)
    result = inventory.list_files(tmp_path)
    assert TANGO.detect(result)
    tables = registry.read("auto", result, 4)
    captions = captions_of(tables)
    assert len(captions.pop(None)) == 975 + 495 - 600
    assert {path: " ".join(text) for path, text in captions.items()} == {
        path: " ".join(t.split()) for path, (t, _) in expected.items()
    }
    assert {row["path"]: row["split"] for row in tables.recordings} == {path: split for path, (_, split) in expected.items()}
    assert tables.collisions == tables.ambiguous == tables.orphans == tables.rejected == []
