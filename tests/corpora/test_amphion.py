"""Amphion's lists."""

from soundmill.corpora import inventory, registry


def entry(uid, caption="a dog barks"):
    return {"Dataset": "AudioCaps", "Uid": uid, "Caption": caption}


def test_uids_are_found_under_their_own_and_other_names(lay, captions_of):
    rows = [
        entry("r1nicOVtvkQ_30000_40000"),
        entry("-bcdefghij__0_10000", "two"),
        entry("r1nicOVtvkQ_30000_40000", "again"),
        entry(7),
    ]
    result = lay("r1nicOVtvkQ_30000_40000.wav", "Y-bcdefghij_.flac", **{"test.json": rows})
    assert registry.detect(result) == "amphion"
    tables = registry.read("auto", result, 4)
    assert captions_of(tables) == {"r1nicOVtvkQ_30000_40000.wav": ["a dog barks", "again"], "Y-bcdefghij_.flac": ["two"]}
    assert {row["recording_id"]: (row["start_time"], row["split"]) for row in tables.recordings} == {
        "r1nicOVtvkQ": (30.0, "test"),
        "-bcdefghij_": (0.0, "test"),
    }
    assert [(row["reason"], row["detail"]) for row in tables.rejected] == [("bad entry", "[3]: no `Uid`")]


def test_a_uid_of_less_than_a_second_is_in_milliseconds_too(lay, tmp_path):
    lay(
        "-Yb_cdEfG1h_30000_30500.wav",
        **{"train.json": '[{"Dataset": "x", "Uid": "-Yb_cdEfG1h_30000_30500", "Caption": "a click"}]'},
    )
    (recording,) = registry.read("amphion", inventory.list_files(tmp_path), 1).recordings
    assert (recording["group"], recording["start_time"]) == ("-Yb_cdEfG1h", 30.0)
