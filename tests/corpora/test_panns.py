"""AudioCaps in the forms of PANNs' lists and of WavCaps' code."""

from soundmill.corpora import registry

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
