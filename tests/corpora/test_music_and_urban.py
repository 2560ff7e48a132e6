"""UrbanSound8K, GTZAN and NSynth by their published layouts."""

import json

import pytest

from tests.corpora.tiny import captions, detected, put, recordings, scan, write

URBAN = "slice_file_name,fsID,start,end,salience,fold,classID,class\n"


def test_urbansound8k(tmp_path):
    put(tmp_path, "audio/fold5/100032-3-0-0.wav", "audio/fold10/7061-6-0-0.wav", "audio/fold1/9-1-0-0.wav")
    rows = "100032-3-0-0.wav,100032.0,0.0,0.317551,1,5,3,dog_bark\n7061-6-0-0.wav,7061,1,2,1,10,6,gun_shot\n"
    bad = "x.wav,1,0,1,1,five,3,dog_bark\ny.wav,1,0,1,1,2,3,\ngone.wav,2,0,1,1,3,8,siren\n../../../etc/passwd,2,0,1,1,3,8,siren\n"
    write(tmp_path, "metadata/UrbanSound8K.csv", URBAN + rows + bad)
    assert detected(tmp_path) == "urbansound8k"
    tables = scan(tmp_path)
    assert recordings(tables, "labels", "fold", "group", "split") == {
        "audio/fold1/9-1-0-0.wav": ([], None, None, None),
        "audio/fold10/7061-6-0-0.wav": (["gun shot"], 10, "7061", None),
        "audio/fold5/100032-3-0-0.wav": (["dog bark"], 5, "100032", None),
    }
    assert not tables.captions
    assert [row["reason"] for row in tables.rejected] == ["bad fold", "empty category"]
    assert [row["id"] for row in tables.missing] == ["fold3/gone.wav", "fold3/../../../etc/passwd"]
    assert [row["path"] for row in tables.orphans] == ["audio/fold1/9-1-0-0.wav"]


@pytest.mark.parametrize("extension", ["wav", "au"])
def test_gtzan(tmp_path, extension):
    names = [f"genres_original/{genre}/{genre}.{number:05d}.{extension}" for genre in ("blues", "hiphop") for number in (0, 54)]
    put(tmp_path, *names, f"genres_original/blues/odd.{extension}")
    write(tmp_path, "features_30_sec.csv", "filename,length,tempo,label\nblues.00000.wav,661794,123,blues\n")
    assert detected(tmp_path) == "gtzan"
    tables = scan(tmp_path)
    assert set(recordings(tables, "labels", "split")) == {*names, f"genres_original/blues/odd.{extension}"}
    assert recordings(tables, "labels") == {
        **{name: [name.split("/")[1]] for name in names},
        f"genres_original/blues/odd.{extension}": [],
    }
    assert tables.counts == {"without_genre": 1}


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
    assert detected(tmp_path) == "nsynth"
    tables = scan(tmp_path)
    assert recordings(tables, "labels", "split", "group") == {
        "nsynth-test/audio/synth_lead_synthetic_003-060-050.wav": (["synth lead"], "test", "synth_lead_synthetic_003"),
        "nsynth-train/audio/bass_synthetic_033-022-050.wav": (["bass"], "train", "bass_synthetic_033"),
    }
    assert captions(tables)["nsynth-train/audio/bass_synthetic_033-022-050.wav"] == ["synthetic bass, dark, long release"]
    assert captions(tables)["nsynth-test/audio/synth_lead_synthetic_003-060-050.wav"] == ["synthetic synth lead"]
    assert [row["id"] for row in tables.missing] == ["audio/bass_synthetic_033-023-050"]
    assert [row["detail"] for row in tables.rejected] == ["'odd': no `instrument_family_str`"]


def test_one_part_of_nsynth_has_its_split_in_its_own_name(tmp_path):
    bass = note("bass_synthetic_033", "bass", "synthetic", ["dark"], 22)
    put(tmp_path, "nsynth-test/audio/bass_synthetic_033-022-050.wav")
    write(tmp_path, "nsynth-test/examples.json", json.dumps({bass["note_str"]: bass}))
    assert recordings(scan(tmp_path / "nsynth-test"), "split") == {"audio/bass_synthetic_033-022-050.wav": "test"}
