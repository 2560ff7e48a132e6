"""Exports as the libraries that they are for read them."""

import io
import re

import datasets
import lhotse
import numpy as np
import pytest
import soundfile

from soundmill import exports
from soundmill.audio import flac
from tests.prepared import RATE, ROWS, prepare, wave_of
from tests.test_exports import AS_AUDIOCAPS, with_rows


@pytest.mark.parametrize("rows", [ROWS, AS_AUDIOCAPS], ids=["mixed", "audiocaps"])
@pytest.mark.parametrize(
    ("name", "kind"),
    [("audiofolder", "audiofolder"), ("audiofolder_csv", "audiofolder"), ("audiofolder_parquet", "parquet"), ("webdataset",) * 2],
)
def test_datasets_finds_the_same_columns_in_all_splits(tmp_path, monkeypatch, rows, name, kind):
    """What it needs torchcodec for, it is not asked for here: to look into the sound of files."""
    exports.export(with_rows(tmp_path, monkeypatch, *rows), name, tmp_path / "out", RATE)
    found = datasets.load_dataset(kind, data_dir=str(tmp_path / "out"), streaming=True, cache_dir=str(tmp_path / "cache"))
    assert set(found) == {"train", "validation", "test"}
    features = [found[split].features or found[split]._resolve_features().features for split in found]
    assert features[0] == features[1] == features[2]
    assert any(isinstance(feature, datasets.Audio) for feature in features[0].values())
    words = {str(feature) for column, feature in features[0].items() if re.match("caption|labels|txt", column)}
    assert words <= {"Value('string')", "Value('large_string')", "List(Value('string'))"}


def test_datasets_reads_parquet_with_the_sound(tmp_path, monkeypatch):
    exports.export(with_rows(tmp_path, monkeypatch, *AS_AUDIOCAPS), "audiofolder_parquet", tmp_path / "out", RATE)
    found = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    for split, number in (("train", 0), ("validation", 2), ("test", 3)):
        row = found[split].cast_column("audio", datasets.Audio(decode=False))[0]
        _, _, captions, labels = AS_AUDIOCAPS[number]
        assert (row["captions"], row["labels"]) == (captions, labels)
        samples, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="int16")
        assert rate == RATE
        assert np.array_equal(samples, flac.to_pcm16(wave_of(number)))


def test_lhotse_reads_its_manifests(tmp_path):
    exports.export(prepare(tmp_path), "lhotse", tmp_path / "out", RATE)
    recordings = lhotse.load_manifest(tmp_path / "out/soundmill_recordings_train.jsonl.gz")
    supervisions = lhotse.load_manifest(tmp_path / "out/soundmill_supervisions_train.jsonl.gz")
    cuts = lhotse.CutSet.from_manifests(recordings=recordings, supervisions=supervisions)
    lhotse.validate(cuts)
    cut = next(cut for cut in cuts if cut.recording_id == "abcdefghijk_5.5")
    assert [supervision.text for supervision in cut.supervisions] == ["an engine idles", "a car waits\tnearby"]
    assert np.array_equal(flac.to_pcm16(cut.load_audio()[0]), flac.to_pcm16(wave_of(1)))
