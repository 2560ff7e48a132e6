"""MusicCaps' csv."""

from soundmill.corpora import registry

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
