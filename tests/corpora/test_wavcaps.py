"""WavCaps' JSON in both shapes."""

import pytest

from soundmill.corpora import registry
from soundmill.errors import UserError

FREESOUND = {
    "num_captions_per_audio": 1,
    "data": [
        {"title": "a", "description": "b", "author": "c", "href": "d", "caption": "Rain falls.", "id": "180913", "duration": 3.1},
        {"title": "a", "description": "b", "author": "c", "href": "d", "caption": "A bell.", "id": 17, "duration": 1.0},
    ],
}
SOUNDBIBLE = [{"title": "a", "caption": "A dog.", "id": "17", "duration": 2}, {"title": "b", "caption": "Gone.", "id": "180913"}]
AUDIOSET = {"num_captions_per_audio": 1, "data": [{"id": "Yb0RFKhbpFJA.wav", "caption": "Wind blows.", "duration": 10.0}]}


def test_both_shapes_and_all_sources(lay, captions_of):
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
    assert registry.detect(result) == "wavcaps"
    tables = registry.read("auto", result, 4)
    assert captions_of(tables) == {
        "waveforms/FreeSound_flac/180913.flac": ["Rain falls."],
        "waveforms/FreeSound_flac/17.flac": ["A bell."],
        "waveforms/SoundBible_flac/17.flac": ["A dog."],
        "waveforms/AudioSet_SL_flac/Yb0RFKhbpFJA.flac": ["Wind blows."],
        "waveforms/BBC_Sound_Effects_flac/NHU05104235.flac": ["A bird."],
        None: ["Gone."],
    }
    assert [row["group"] for row in tables.recordings if "AudioSet" in row["path"]] == ["b0RFKhbpFJA"]
    assert tables.ambiguous == tables.collisions == tables.orphans == []


def test_entries_without_id_duplicate_ids_and_hostile_ones(lay, captions_of):
    data = [{"id": "a", "caption": "one"}, {"id": "a", "caption": "two"}, {"caption": "x"}, 5, {"id": "../../a", "caption": "z"}]
    tables = registry.read("wavcaps", lay("a.flac", **{"x.json": data}), 4)
    assert captions_of(tables) == {"a.flac": ["one", "two"], None: ["z"]}
    assert tables.collisions == [{"id": "a", "origins": ["x.json:[0]", "x.json:[1]"]}]
    assert [row["detail"].split(":")[0] for row in tables.rejected] == ["[2]", "[3]"]


@pytest.mark.parametrize("content", ['[{"id": "a", "caption": "x"}', '[{"id": "a", "caption": ' + "[" * 100_000])
def test_broken_json_is_an_error_that_names_it(lay, content):
    with pytest.raises(UserError, match=r"x\.json:1: not readable as JSON"):
        registry.read("wavcaps", lay("a.flac", **{"x.json": content}), 4)


def test_a_sound_of_a_source_that_no_json_is_there_of_is_nobody_elses(lay, captions_of):
    entries = {"data": [{"id": "2219", "caption": "of Freesound"}, {"id": "3", "caption": "here"}]}
    result = lay("FreeSound_flac/3.flac", "SoundBible_flac/2219.flac", **{"json_files/FreeSound/fsd_final.json": entries})
    tables = registry.read("wavcaps", result, 4)
    assert captions_of(tables) == {None: ["of Freesound"], "FreeSound_flac/3.flac": ["here"]}
