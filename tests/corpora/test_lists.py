"""Lists of AudioCaps and MusicCaps: PANNs', WavCaps' code's, MusicCaps' own and Amphion's."""

from soundmill.corpora import inventory, registry

CSV = 'file_name,caption_1,caption_2\r\nYr1nicOVtvkQ.wav,a dog barks,"rain, and wind"\r\nYYYYYYYYYYYY.wav,y,\r\n'


def test_panns_csv(lay, captions_of):
    result = lay("Yr1nicOVtvkQ.wav", "YYYYYYYYYYYY.flac", **{"train.csv": CSV})
    assert registry.detect(result) == "panns"
    tables = registry.read("auto", result, 4)
    assert captions_of(tables) == {"Yr1nicOVtvkQ.wav": ["a dog barks", "rain, and wind"], "YYYYYYYYYYYY.flac": ["y"]}
    assert {row["recording_id"]: row["split"] for row in tables.recordings} == {"r1nicOVtvkQ": "train", "YYYYYYYYYYY": "train"}


def test_panns_json_of_one_and_of_five_captions(lay, captions_of):
    one = {"num_captions_per_audio": 1, "data": [{"caption": "wind", "audio": "/x/Yb0RFKhbpFJA.wav", "id": "Yb0RFKhbpFJA.wav"}]}
    five = {
        "data": [
            {**{f"caption_{n}": f"c{n}" for n in range(1, 6)}, "wav": "w", "audio": "a", "duration": 9, "id": "Yr1nicOVtvkQ.wav"}
        ]
    }
    result = lay("b0RFKhbpFJA_30.wav", "r1nicOVtvkQ.wav", **{"train.json": one, "test.json": five})
    assert registry.detect(result) == "panns"
    tables = registry.read("auto", result, 4)
    assert captions_of(tables) == {"b0RFKhbpFJA_30.wav": ["wind"], "r1nicOVtvkQ.wav": ["c1", "c2", "c3", "c4", "c5"]}
    assert {row["path"]: row["split"] for row in tables.recordings} == {"b0RFKhbpFJA_30.wav": "train", "r1nicOVtvkQ.wav": "test"}


HEADER = "ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,author_id,is_balanced_subset,is_audioset_eval\n"
ROWS = (
    '-0Gj8-vB1q4,30,40,"/m/0140xf,/m/02cjck","[\'low quality\', \'sad\']","A low voice,\nsings.",4,False,True\n'
    "-0vPFx-wRRI,30,40,/m/02cjck,\"['x']\",Drums.,4,False,False\n"
    "../../../ab,30,40,/m/02cjck,[],Bad.,4,False,False\n"
    "'-0vPFx-wRRJ,soon,40,/m/02cjck,[],Bad.,4,False,False\n"
)


def test_rows_splits_and_classes(lay, captions_of):
    classes = 'index,mid,display_name\n0,/m/02cjck,Song\n1,/m/0140xf,"Singing bowl"\n'
    result = lay(
        "-0Gj8-vB1q4.wav", "Y-0vPFx-wRRI_30.mp3", **{"musiccaps-public.csv": HEADER + ROWS, "class_labels_indices.csv": classes}
    )
    assert registry.detect(result) == "musiccaps"
    tables = registry.read("auto", result, 4)
    assert captions_of(tables) == {"-0Gj8-vB1q4.wav": ["A low voice, sings."], "Y-0vPFx-wRRI_30.mp3": ["Drums."]}
    assert {row["recording_id"]: row["split"] for row in tables.recordings} == {"-0Gj8-vB1q4": "test", "-0vPFx-wRRI": "train"}
    assert [row["labels"] for row in tables.captions] == [["Singing bowl", "Song"], ["Song"]]
    assert [row["reason"] for row in tables.rejected] == ["bad id", "bad start time"]


def test_without_the_class_csv_there_are_no_labels(lay):
    tables = registry.read("musiccaps", lay("-0Gj8-vB1q4.wav", **{"m.csv": HEADER + ROWS}), 4)
    assert not any(row["labels"] for row in tables.captions + tables.recordings)
    assert any("machine ids of AudioSet classes" in remark for remark in tables.remarks)


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
