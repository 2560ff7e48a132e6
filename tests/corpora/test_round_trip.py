"""What `soundmill corpus export` writes, our own adapters read back: the same captions, labels and splits for the same sounds."""

import numpy as np
import pytest

from soundmill import exports
from soundmill.corpora import inventory, registry
from soundmill.corpora.sources import Sources
from soundmill.decoding import decode
from tests import prepared
from tests.prepared import RATE, ROWS, prepare, wave_of

# The name of a format among the adapters, where it is another one.
READ_AS = {"tango": "tango_json", "audiofolder_csv": "audiofolder", "audiofolder_parquet": "audiofolder", "urbansound8k": "table"}
OTHERS = {"webdataset", "lhotse"}  # only written
WITHOUT_SPLITS = {"musiccaps", "stable_audio"}
ONE_CAPTION = {"stable_audio"}  # the rest is kept beside it
WITHOUT_CAPTIONS = {"esc", "nsynth", "urbansound8k"}


@pytest.mark.parametrize("name", sorted(set(exports.FORMATS) - OTHERS))
def test_an_export_is_detected_and_says_the_same(tmp_path, name):
    tables = prepare(tmp_path / "prepared")
    result = exports.export(tables, name, tmp_path / "out", RATE)
    actual = inventory.list_files(tmp_path / "out")
    adapter = READ_AS.get(name, name)
    assert registry.detect(actual) == adapter
    read = registry.read(adapter, actual, 4)
    assert not read.missing
    assert len(read.recordings) == result.written

    captions: dict[str, list[str]] = {}
    for row in read.captions:
        captions.setdefault(row["recording_id"], []).append(row["caption"])
    left = {clip_id for clip_id, _ in result.left_out}
    sources = Sources({b"": bytes(tmp_path / "out")})
    outcome = {}
    for row in read.recordings:
        with sources.open(row["raw_path"], tmp_path) as path:
            wave = decode.read_mono(path, RATE, 10.0)
        number = next(number for number in range(len(ROWS)) if np.allclose(wave, wave_of(number), atol=1e-3))
        outcome[ROWS[number][0]] = row, sorted(captions.get(row["recording_id"], []))
    assert set(outcome) == {clip_id for clip_id, *_ in ROWS} - left
    for clip_id, split, expected, labels in ROWS:
        if clip_id in left:
            continue
        row, found_captions = outcome[clip_id]
        if name in ONE_CAPTION:
            expected = expected[:1]
        if name not in WITHOUT_CAPTIONS:
            assert found_captions == sorted(" ".join(caption.split()) for caption in expected)
        if name not in WITHOUT_SPLITS and row["fold"] is None:
            assert row["split"] == split
        if name in WITHOUT_CAPTIONS:
            assert row["labels"] == [labels[0].replace("_", " ")]


@pytest.mark.parametrize("name", ["audiocaps", "musiccaps"])
def test_recordings_without_youtube_id_have_one_in_formats_that_know_no_other(tmp_path, name, monkeypatch):
    rows = [(f"{number:012x}_{start}", "train", ["a dog"], []) for number, start in ((0xF << 8, 0), (0xF << 8, 5), (0xE << 8, 0))]
    monkeypatch.setattr(prepared, "ROWS", rows)
    exports.export(prepare(tmp_path / "prepared"), name, tmp_path / "out", RATE)
    read = registry.read("auto", inventory.list_files(tmp_path / "out"), 4)
    assert (read.format, read.rejected, read.missing, read.orphans, len(read.matched)) == (name, [], [], [], 3)
