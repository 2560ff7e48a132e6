"""Formats of JSON: TANGO, PANNs, Amphion, WavCaps, AudioLDM, NSynth, audiocraft and stable-audio-tools."""

import gzip
import json

import pytest

from soundmill.corpora import inventory, registry
from soundmill.errors import UserError
from tests.corpora.tiny import captions, detected, put, recordings, scan, write


def lines(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def entry(location: str, captions="a dog barks", **more) -> dict:
    return {"dataset": "audiocaps", "location": location, "captions": captions, **more}


def test_rows_of_one_location_are_captions_of_one_recording(lay):
    first = entry("/x/audio/r1nicOVtvkQ_30.wav", "one", labels=["dog", "rain"]), entry("data/r1nicOVtvkQ_30.wav", "two")
    bark = entry("data/dog bark.wav", ["three", "four"], labels="dog; bark")
    manifest = lines(*first, bark, entry("data/gone.wav", "five"))
    result = lay("sub/r1nicOVtvkQ_30.flac", "dog bark.wav", **{"train.json": "\ufeff" + manifest.replace("\n", "\r\n")})
    tables = registry.read("auto", result, 4)
    assert captions(tables) == {"sub/r1nicOVtvkQ_30.flac": ["one", "two"], "dog bark.wav": ["three", "four"], None: ["five"]}
    by_path = {row["path"]: row for row in tables.recordings}
    recording = by_path["sub/r1nicOVtvkQ_30.flac"]
    assert (recording["recording_id"], recording["start_time"], recording["split"]) == ("r1nicOVtvkQ", 30.0, "train")
    assert recording["labels"] == ["dog", "rain"]
    assert by_path["dog bark.wav"]["labels"] == ["dog", "bark"]
    assert by_path["dog bark.wav"]["corpus"] == "tango_json"


def test_bad_entries_are_quarantined_and_a_broken_line_is_an_error_with_its_number(lay):
    rows = lines(entry("x.wav"), {"location": 3, "captions": "x"}, entry("x.wav", captions=None), entry("../../x.wav"))
    tables = registry.read("tango_json", lay("x.wav", **{"test.json": rows}), 4)
    rejected = [(row["reason"], row["detail"].split(":")[0]) for row in tables.rejected]
    assert rejected == [("bad entry", "line 2"), ("no caption or label", "line 3")]
    assert [row["id"] for row in tables.missing] == ["../../x.wav"]
    with pytest.raises(UserError, match=r"test\.json:2: not readable as JSON lines"):
        registry.read("tango_json", lay("x.wav", **{"test.json": lines(entry("x.wav")) + "{\n"}), 4)


def test_panns_csv(lay):
    csv = 'file_name,caption_1,caption_2\r\nYr1nicOVtvkQ.wav,a dog barks,"rain, and wind"\r\nYYYYYYYYYYYY.wav,y,\r\n'
    result = lay("Yr1nicOVtvkQ.wav", "YYYYYYYYYYYY.flac", **{"train.csv": csv})
    tables = registry.read("auto", result, 4)
    assert captions(tables) == {"Yr1nicOVtvkQ.wav": ["a dog barks", "rain, and wind"], "YYYYYYYYYYYY.flac": ["y"]}
    assert {row["recording_id"]: row["split"] for row in tables.recordings} == {"r1nicOVtvkQ": "train", "YYYYYYYYYYY": "train"}


def test_panns_json_of_one_and_of_five_captions(lay):
    one = {"num_captions_per_audio": 1, "data": [{"caption": "wind", "audio": "/x/Yb0RFKhbpFJA.wav", "id": "Yb0RFKhbpFJA.wav"}]}
    texts = {f"caption_{n}": f"c{n}" for n in range(1, 6)}
    five = {"data": [{**texts, "wav": "w", "audio": "a", "duration": 9, "id": "Yr1nicOVtvkQ.wav"}]}
    result = lay("b0RFKhbpFJA_30.wav", "r1nicOVtvkQ.wav", **{"train.json": one, "test.json": five})
    tables = registry.read("auto", result, 4)
    assert captions(tables) == {"b0RFKhbpFJA_30.wav": ["wind"], "r1nicOVtvkQ.wav": ["c1", "c2", "c3", "c4", "c5"]}
    assert {row["path"]: row["split"] for row in tables.recordings} == {"b0RFKhbpFJA_30.wav": "train", "r1nicOVtvkQ.wav": "test"}


def uid(uid, caption="a dog barks"):
    return {"Dataset": "AudioCaps", "Uid": uid, "Caption": caption}


def test_uids_are_found_under_their_own_and_other_names(lay):
    rows = [
        uid("r1nicOVtvkQ_30000_40000"),
        uid("-bcdefghij__0_10000", "two"),
        uid("r1nicOVtvkQ_30000_40000", "again"),
        uid(7),
        uid("-Yb_cdEfG1h_30000_30500", "a click"),  # milliseconds too
    ]
    result = lay("r1nicOVtvkQ_30000_40000.wav", "Y-bcdefghij_.flac", "-Yb_cdEfG1h_30000_30500.wav", **{"test.json": rows})
    tables = registry.read("auto", result, 4)
    found = {"r1nicOVtvkQ_30000_40000.wav": ["a dog barks", "again"], "Y-bcdefghij_.flac": ["two"]}
    assert captions(tables) == found | {"-Yb_cdEfG1h_30000_30500.wav": ["a click"]}
    outcome = {row["group"]: (row["start_time"], row["split"]) for row in tables.recordings}
    assert outcome == {"r1nicOVtvkQ": (30.0, "test"), "-bcdefghij_": (0.0, "test"), "-Yb_cdEfG1h": (30.0, "test")}
    assert [(row["reason"], row["detail"]) for row in tables.rejected] == [("bad entry", "[3]: no `Uid`")]


SOUND = {"title": "a", "description": "b", "author": "c", "href": "d"}
RAIN, BELL = {"caption": "Rain falls.", "id": "180913", "duration": 3.1}, {"caption": "A bell.", "id": 17, "duration": 1.0}
FREESOUND = {"num_captions_per_audio": 1, "data": [SOUND | RAIN, SOUND | BELL]}
SOUNDBIBLE = [{"title": "a", "caption": "A dog.", "id": "17", "duration": 2}, {"title": "b", "caption": "Gone.", "id": "180913"}]
AUDIOSET = {"num_captions_per_audio": 1, "data": [{"id": "Yb0RFKhbpFJA.wav", "caption": "Wind blows.", "duration": 10.0}]}


def test_both_shapes_and_all_sources(lay):
    result = lay(
        "waveforms/FreeSound_flac/180913.flac",
        "waveforms/FreeSound_flac/17.flac",
        "waveforms/SoundBible_flac/17.flac",
        "waveforms/AudioSet_SL_flac/Yb0RFKhbpFJA.flac",
        "waveforms/BBC_Sound_Effects_flac/NHU05104235.flac",
        **{
            "json_files/FreeSound/fsd_final.json": FREESOUND,
            "json_files/SoundBible/sb_final.json": SOUNDBIBLE,
            "json_files/AudioSet_SL/as_final.json": AUDIOSET,
            "json_files/BBC_Sound_Effects/bbc_final.json": [{"id": "NHU05104235", "caption": "A bird.", "audio": "x"}],
        },
    )
    tables = registry.read("auto", result, 4)
    assert captions(tables) == {
        "waveforms/FreeSound_flac/180913.flac": ["Rain falls."],
        "waveforms/FreeSound_flac/17.flac": ["A bell."],
        "waveforms/SoundBible_flac/17.flac": ["A dog."],
        "waveforms/AudioSet_SL_flac/Yb0RFKhbpFJA.flac": ["Wind blows."],
        "waveforms/BBC_Sound_Effects_flac/NHU05104235.flac": ["A bird."],
        None: ["Gone."],
    }
    assert [row["group"] for row in tables.recordings if "AudioSet" in row["path"]] == ["b0RFKhbpFJA"]
    assert tables.ambiguous == tables.collisions == tables.orphans == []


def test_entries_without_id_duplicate_ids_and_hostile_ones(lay):
    data = [{"id": "a", "caption": "one"}, {"id": "a", "caption": "two"}, {"caption": "x"}, 5, {"id": "../../a", "caption": "z"}]
    tables = registry.read("wavcaps", lay("a.flac", **{"x.json": data}), 4)
    assert captions(tables) == {"a.flac": ["one", "two"], None: ["z"]}
    assert tables.collisions == [{"id": "a", "origins": ["x.json:[0]", "x.json:[1]"]}]
    assert [row["detail"].split(":")[0] for row in tables.rejected] == ["[2]", "[3]"]


def test_a_sound_of_a_source_that_no_json_is_there_of_is_nobody_elses(lay):
    entries = {"data": [{"id": "2219", "caption": "of Freesound"}, {"id": "3", "caption": "here"}]}
    result = lay("FreeSound_flac/3.flac", "SoundBible_flac/2219.flac", **{"json_files/FreeSound/fsd_final.json": entries})
    tables = registry.read("wavcaps", result, 4)
    assert captions(tables) == {None: ["of Freesound"], "FreeSound_flac/3.flac": ["here"]}


def of_wav(wav, **values):
    return {"wav": wav, "seg_label": "", **values}


def test_splits_are_where_the_root_lists_them(tmp_path):
    part = "dataset/audioset/zip_audios/unbalanced_train_segments/unbalanced_train_segments_part36"
    put(tmp_path, f"{part}/Yr1nicOVtvkQ.wav", "dataset/audioset/wav/40020.wav", "dataset/audioset/wav/40021.wav")
    metadata = "dataset/metadata/audiocaps"
    files = {"train": "datafiles/train.json", "val": "testset/val.json", "test": "testset/gone.json"}
    files["class_label_indices"] = "class_labels_indices.csv"
    where = {split: f"./data/{metadata}/{file}" for split, file in files.items()}
    root = {"audiocaps": "./data/dataset/audioset", "comments": {}, "metadata": {"path": {"audiocaps": where}}}
    write(tmp_path, "dataset/metadata/dataset_root.json", json.dumps(root))
    train = [
        of_wav(part.removeprefix("dataset/audioset/") + "/Yr1nicOVtvkQ.wav", labels="/m/02jz0l,/m/09x0r", caption="Water pours"),
        of_wav("wav/40020.wav", labels="", caption_1="One", captions=["Two", "Three"]),
        of_wav("wav/gone.wav", labels="", caption="Lost"),
        "nonsense",
    ]
    write(tmp_path, f"{metadata}/datafiles/train.json", json.dumps({"data": train}))
    valid = [of_wav("wav/40021.wav", labels="/m/unknown", caption="Four")]
    write(tmp_path, f"{metadata}/testset/val.json", json.dumps({"data": valid}))
    classes = 'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/02jz0l,"Water, tap"\n'
    write(tmp_path, f"{metadata}/class_labels_indices.csv", classes)
    tables = scan(tmp_path)
    by_name = {path.rpartition("/")[2]: values for path, values in recordings(tables, "split", "labels", "group").items()}
    assert by_name == {
        "Yr1nicOVtvkQ.wav": ("train", ["Water, tap", "Speech"], "r1nicOVtvkQ"),
        "40020.wav": ("train", [], None),
        "40021.wav": ("valid", [], None),
    }
    found = sorted(text for texts in captions(tables).values() for text in texts)
    assert found == ["Four", "Lost", "One", "Three", "Two", "Water pours"]
    assert captions(tables)["dataset/audioset/wav/40020.wav"] == ["One", "Two", "Three"]
    assert tables.counts["labels_without_name"] == 1
    assert any("1 labels are machine ids" in remark for remark in tables.remarks)
    assert [row["id"] for row in tables.missing] == ["wav/gone.wav"]
    rejected = {(row["reason"], row["detail"].partition(":")[0]) for row in tables.rejected}
    assert rejected == {("missing manifest", "test"), ("bad entry", "data[3]")}
    assert not [remark for remark in tables.remarks if "not read" in remark]


def note(instrument: str, family: str, source: str, qualities: list[str], pitch: int) -> dict:
    return {
        "note": 1,
        "note_str": f"{instrument}-{pitch:03d}-050",
        "instrument": 417,
        "instrument_str": instrument,
        "instrument_family": 0,
        "instrument_family_str": family,
        "instrument_source": 2,
        "instrument_source_str": source,
        "pitch": pitch,
        "velocity": 50,
        "sample_rate": 16000,
        "qualities": [0] * 10,
        "qualities_str": qualities,
    }


def test_nsynth(tmp_path):
    bass = note("bass_synthetic_033", "bass", "synthetic", ["dark", "long_release"], 22)
    lead = note("synth_lead_synthetic_003", "synth_lead", "synthetic", [], 60)
    put(tmp_path, "nsynth-train/audio/bass_synthetic_033-022-050.wav", "nsynth-test/audio/synth_lead_synthetic_003-060-050.wav")
    examples = {bass["note_str"]: bass, "bass_synthetic_033-023-050": {**bass, "pitch": 23}, "odd": {"pitch": 1}}
    write(tmp_path, "nsynth-train/examples.json", json.dumps(examples))
    write(tmp_path, "nsynth-test/examples.json", json.dumps({lead["note_str"]: lead}))
    tables = scan(tmp_path)
    assert recordings(tables, "labels", "split", "group") == {
        "nsynth-test/audio/synth_lead_synthetic_003-060-050.wav": (["synth lead"], "test", "synth_lead_synthetic_003"),
        "nsynth-train/audio/bass_synthetic_033-022-050.wav": (["bass"], "train", "bass_synthetic_033"),
    }
    assert captions(tables)["nsynth-train/audio/bass_synthetic_033-022-050.wav"] == ["synthetic bass, dark, long release"]
    assert captions(tables)["nsynth-test/audio/synth_lead_synthetic_003-060-050.wav"] == ["synthetic synth lead"]
    assert [row["id"] for row in tables.missing] == ["audio/bass_synthetic_033-023-050"]
    assert [row["detail"] for row in tables.rejected] == ["'odd': no `instrument_family_str`"]
    (alone,) = scan(tmp_path / "nsynth-test").recordings  # its folder tells its split
    assert (alone["path"], alone["split"]) == ("audio/synth_lead_synthetic_003-060-050.wav", "test")


def paths(*paths: str) -> str:
    entry = {"duration": 99.0, "sample_rate": 44100, "amplitude": None, "weight": None, "info_path": None}
    return "".join(json.dumps({"path": path, **entry}) + "\n" for path in paths)


@pytest.fixture
def audiocraft(tmp_path):
    put(tmp_path, "dataset/example/electro_1.wav", "dataset/example/electro_2.wav", "sfx/a.flac", "sfx/b.flac", "sfx/c.flac")
    packed = gzip.compress(paths("dataset/example/electro_1.wav", "/elsewhere/gone.wav").encode())
    write(tmp_path, "egs/example/train/data.jsonl.gz", packed)
    write(tmp_path, "egs/example/valid/data.jsonl", paths("/home/me/dataset/example/electro_2.wav"))
    write(tmp_path, "egs/evaluate.jsonl", paths("sfx/a.flac", "sfx/b.flac", "sfx/c.flac") + '"nonsense"\n')
    music = {"artist": "X", "description": "A cool beat ", "keywords": "bright, pulsing", "genre": "electronic", "bpm": ""}
    write(tmp_path, "dataset/example/electro_1.json", json.dumps(music))
    write(tmp_path, "dataset/example/electro_2.json", json.dumps({"description": None, "keywords": ["Dark", "slow"]}))
    write(tmp_path, "sfx/a.json", json.dumps({"description": ["a bang", "a loud bang"]}))
    write(tmp_path, "sfx/b.json", '{"description": ')
    return tmp_path


def test_manifests_tell_the_split_and_jsons_beside_recordings_the_rest(audiocraft):
    tables = scan(audiocraft)
    songs = {"electro_1.wav": ("train", ["electronic"]), "electro_2.wav": ("valid", ["dark", "slow"])}
    effects = {f"sfx/{name}.flac": ("test", []) for name in "abc"}
    assert recordings(tables, "split", "labels") == effects | {f"dataset/example/{name}": told for name, told in songs.items()}
    assert captions(tables) == {"dataset/example/electro_1.wav": ["A cool beat"], "sfx/a.flac": ["a bang", "a loud bang"]}
    assert [row["id"] for row in tables.missing] == ["/elsewhere/gone.wav"]
    listed = [row["path"] for row in tables.matched if not row["captions"] and row["path"].startswith("sfx")]
    assert (listed, tables.orphans) == (["sfx/b.flac", "sfx/c.flac"], [])
    rejected = {row["path"]: row["reason"] for row in tables.rejected}
    assert rejected == {"egs/evaluate.jsonl": "bad entry", "sfx/b.json": "unreadable caption"}


def test_a_packed_manifest_that_breaks_off_is_named_and_a_line_without_end_not_held(audiocraft):
    path = audiocraft / "egs/example/train/data.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(UserError, match=r"train/data\.jsonl\.gz:\d+: not readable"):
        scan(audiocraft, "audiocraft")
    write(audiocraft, "egs/example/train/data.jsonl.gz", gzip.compress(paths("sfx/a.flac").encode() + b" " * (3 << 20)))
    with pytest.raises(UserError, match="a line over 1048576 bytes"):
        scan(audiocraft, "audiocraft")


@pytest.fixture
def prompts(tmp_path):
    put(tmp_path, "a/000001.flac", "a/000002.flac", "b/000001.wav", "b/000003.wav", "b/000004.wav", "b/000005.wav")
    write(tmp_path, "a/000001.json", json.dumps({"prompt": "A dog barks", "seconds_total": 5, "timestamps": [0, 1]}))
    write(tmp_path, "a/000002.json", json.dumps({"prompt": ["Rain", " ", "Heavy rain"]}))
    write(tmp_path, "b/000001.json", "\ufeff" + json.dumps({"prompt": "Ein Käuzchen"}))
    write(tmp_path, "b/000003.json", json.dumps({"prompt": ""}))
    write(tmp_path, "b/000004.txt", "The sea\n")
    write(tmp_path, "b/gone.json", json.dumps({"prompt": "Nobody's"}))
    return tmp_path


def test_prompts_belong_to_the_recording_beside_them(prompts):
    tables = scan(prompts)
    found = {"a/000001.flac": ["A dog barks"], "a/000002.flac": ["Rain", "Heavy rain"], "b/000001.wav": ["Ein Käuzchen"]}
    assert captions(tables) == found | {"b/000004.wav": ["The sea"], None: ["Nobody's"]}
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
def test_a_damaged_json_costs_one_caption(prompts, content, reason):
    write(prompts, "a/000001.json", content)
    tables = scan(prompts, "stable_audio")
    assert len(tables.recordings) == 6
    assert "a/000001.flac" not in captions(tables)
    assert [row["reason"] for row in tables.rejected if row["path"] == "a/000001.json"] == [reason]


def test_prompts_without_a_recording_are_missing(tmp_path):
    put(tmp_path, "a.wav")
    for name in "abc":
        write(tmp_path, f"{name}.json", json.dumps({"prompt": name, "seconds_total": 5}))
    write(tmp_path, "workflow.json", json.dumps({"prompt": "A dog", "steps": 100}))
    write(tmp_path, "list.json", json.dumps([{"prompt": "A dog"}]))
    tables = scan(tmp_path)
    assert [(row["id"], row["captions"], row["origins"]) for row in tables.missing] == [
        ("b", ["b"], ["b.json:prompt"]),
        ("c", ["c"], ["c.json:prompt"]),
    ]
    assert (len(tables.matched), tables.rejected, tables.ambiguous) == (1, [], [])
    (remark,) = tables.remarks
    assert "not part of the format stable_audio (first: list.json)" in remark


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
    tables = scan(tmp_path)
    assert captions(tables) == {"1.flac": ["A dog barks", "Barking"], "2.flac": ["Heavy rain"]}
    assert [(row["path"], row["reason"]) for row in tables.rejected] == [("3.json", "empty caption")]


def test_names_of_classes_are_read_for_machine_ids_only(tmp_path):
    """Words are labels as they are, and a damaged table of names that no label needs is none of theirs."""
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    write(tmp_path, "class_labels_indices.csv", "index,mid,display_name\n0,dog,Hound\n1,/m/0k4j,Car\n")
    for labels, expected in ((["dog"], ["dog"]), (["/m/0k4j"], ["Car"])):
        line = {"dataset": "x", "location": "a.wav", "captions": "a sound", "labels": labels}
        write(tmp_path, "train.json", json.dumps(line) + "\n")
        assert [row["labels"] for row in registry.read("tango_json", inventory.list_files(tmp_path), 1).recordings] == [expected]
    write(tmp_path, "class_labels_indices.csv", "index,mid,display_name\n0,/m/0k4j,\0\n")
    write(tmp_path, "train.json", json.dumps(line | {"labels": ["dog"]}) + "\n")
    assert registry.read("tango_json", inventory.list_files(tmp_path), 1).recordings[0]["labels"] == ["dog"]
