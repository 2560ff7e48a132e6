"""The named files as TANGO reads them."""

import io
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from soundmill import manifest, shards
from stages import rename, scan
from tests.stages import handling
from tests.stages.handling import NAMING, RATE, call, call_rename, clip, external, json_rows, refusal, settle, table, tree


def test_rename_writes_what_tango_reads(small, capsys):
    metrics = call_rename()
    assert Path("data/audiocaps/train.json").read_text(encoding="utf-8") == (
        '{"dataset": "audiocaps", "location": "data/audiocaps/audio/-aaaaaaaaaa_30.wav", "captions": "first \\"é\\""}\n'
        '{"dataset": "audiocaps", "location": "data/audiocaps/audio/-aaaaaaaaaa_35.wav", "captions": "second"}\n'
    )
    rows = {split: [(Path(row["location"]).name, row["captions"]) for row in json_rows(split)] for split in manifest.SPLITS}
    assert rows["test"] == [("bbbbbbbbbbb_0.wav", "one"), ("bbbbbbbbbbb_0.wav", "other")]
    assert rows["valid"] == []
    for split in manifest.SPLITS:
        assert all(Path(row["location"]).is_file() for row in json_rows(split))
    assert "no clip of valid has a caption" in capsys.readouterr().out
    assert metrics["matched"] == 4
    assert (metrics["missing"], metrics["missing_first"]) == (1, ["ccccccccccc_0 (test.csv:4)"])
    assert (metrics["orphans"], metrics["orphans_first"]) == (1, ["0123456789ab_0"])
    assert metrics["captioned_by"] == {"window": 3, "none": 1}
    catalog = {row["clip_id"]: row for row in table("data/catalog.parquet")}
    assert list(catalog) == ["-aaaaaaaaaa_30", "-aaaaaaaaaa_35", "bbbbbbbbbbb_0", "0123456789ab_0"]
    assert [catalog[clip_id]["shard"] for clip_id in catalog] == [0, 0, 1, 1]
    assert catalog["-aaaaaaaaaa_35"]["labels"] == ["rain"]
    assert catalog["0123456789ab_0"]["captions"] == []
    assert "train" in {row["split"] for row in catalog.values()}


@pytest.mark.parametrize(("naming", "name"), [("start", "bbbbbbbbbbb_0.wav"), ("split", "test/Ybbbbbbbbbbb.wav")])
def test_tangos_train_py_reads_our_lists_and_its_own(small, tmp_path, monkeypatch, naming, name):
    """In its checkout it adds a prefix to each caption, and opens each location."""
    shards.write_rows([clip("-aaaaaaaaaa_30", "-aaaaaaaaaa", 0.0)], small / "data/clips" / shards.shard_name(0), manifest.CLIPS)
    settle(small, 1, **(NAMING | {"rename": NAMING["rename"] | {"naming": naming}}))
    call_rename()
    tango = tmp_path / "tango"
    (tango / "data").mkdir(parents=True)
    (tango / "data/audiocaps").symlink_to(small / "data/audiocaps")
    monkeypatch.chdir(tango)
    Path("data/own.json").write_text(json.dumps({"location": f"data/audiocaps/audio/{name}", "captions": "its own"}))
    lists = {"audiocaps/train": ['first "é"'], "audiocaps/test": ["one", "other"], "own": ["its own"]}
    for file, captions in lists.items():
        rows = pd.read_json(f"data/{file}.json", lines=True)
        assert [("" + row.captions, soundfile.info(row.location).duration) for row in rows.itertuples()] == [
            (caption, 0.1) for caption in captions
        ]


def test_two_clips_of_a_video_cannot_both_be_named_after_it(small, capsys):
    settle(small, 1, **(NAMING | {"rename": NAMING["rename"] | {"naming": "split"}}))
    assert "-aaaaaaaaaa_30 and -aaaaaaaaaa_35 would both be train/Y-aaaaaaaaaa.wav; choose `start`" in refusal(capsys)


def test_named_audio_has_the_clips_samples_bit_by_bit(small):
    call_rename()
    for number in (0, 1):
        for row in shards.read_rows(small / "data/clips" / shards.shard_name(number), manifest.CLIPS):
            expected, _ = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="int16")
            path = small / "data/audiocaps/audio" / f"{row['clip_id']}.wav"
            found, rate = soundfile.read(path, dtype="int16")
            assert rate == RATE
            assert soundfile.info(path).subtype == "PCM_16"
            assert np.array_equal(found, expected)


def test_rename_of_a_changed_corpus_links_what_is_the_same(small, tmp_path_factory):
    call_rename()
    audio = small / "data/audiocaps/audio"
    before = {path.name: path.stat().st_ino for path in audio.iterdir()}
    (audio / "bbbbbbbbbbb_0.wav").write_bytes(b"somebody's")  # who writes through the link must not be handed on
    shards.write_rows(
        [clip("-aaaaaaaaaa_30", "-aaaaaaaaaa", 0.0), {**clip("-aaaaaaaaaa_35", "-aaaaaaaaaa", 5.0, 0.2), "digest": "another"}],
        small / "data/clips" / shards.shard_name(0),
        manifest.CLIPS,
    )
    shards.write_rows([clip("bbbbbbbbbbb_0", "bbbbbbbbbbb", 0.0)], small / "data/clips" / shards.shard_name(1), manifest.CLIPS)
    settle(small, 2, **NAMING)
    fresh = tmp_path_factory.mktemp("fresh")
    shutil.copytree(small / "data", fresh / "data", ignore=shutil.ignore_patterns(".work", "audiocaps"))
    call_rename()
    same = {name for name, inode in before.items() if (audio / name).exists() and (audio / name).stat().st_ino == inode}
    assert same == {"-aaaaaaaaaa_30.wav"}
    os.chdir(fresh)
    settle(fresh, 1, **NAMING)
    call_rename()
    assert tree(fresh / "data/audiocaps") == tree(small / "data/audiocaps")
    assert (fresh / "data/catalog.parquet").read_bytes() == (small / "data/catalog.parquet").read_bytes()


def test_rename_refuses_ids_that_come_twice_or_leave_the_directory(small, capsys):
    rows = [clip("bbbbbbbbbbb_0", "bbbbbbbbbbb", 0.0)] * 2
    shards.write_rows(rows, small / "data/clips" / shards.shard_name(1), manifest.CLIPS)
    assert "clip ids occur twice (first: bbbbbbbbbbb_0)" in refusal(capsys)
    shards.write_rows([], small / "data/clips" / shards.shard_name(0), manifest.CLIPS)
    shards.write_rows([], small / "data/clips" / shards.shard_name(1), manifest.CLIPS)
    assert "no clip at all" in refusal(capsys)
    with pytest.raises(Exception, match="is not a safe file name"):
        shards.write_rows([clip("../x", "bbbbbbbbbbb", 0.0)], small / "evil.parquet", manifest.CLIPS)
        rename.name_clips(small / "evil.parquet", {"../x"}, small / "out")


@pytest.mark.slow
def test_real_recordings_keep_their_folds_and_labels(project, shared):
    root = str(shared / "data" / "esc10")
    settle(project, 2, corpus=external(root, "esc"), **NAMING)
    assert call(scan, "--name", "scan", "--corpus", "data/corpus", section="corpus")["recordings"] == 240
    metrics = handling.from_corpus_to_names()
    assert metrics["clips"] == 242
    assert metrics["splits_by"] == "folds"
    assert metrics["captioned_by"] == {"label": 242}
    assert metrics["recordings_by_split"]["test"] == 80
    catalog = table("data/catalog.parquet")
    fold = {row["recording_id"]: row["fold"] for row in table("data/corpus/recordings.parquet")}
    assert {row["split"] for row in catalog if fold[row["recording_id"]] == 3} == {"test"}
    assert {row["split"] for row in catalog if fold[row["recording_id"]] != 3} == {"train", "valid"}
    valid = Counter(row["labels"][0] for row in catalog if row["split"] == "valid")
    assert len(valid) == 10
    assert 14 <= sum(valid.values()) <= 20
    source_of = {row["clip_id"]: row["source"].split("/")[-1].split("-")[1] for row in catalog}
    parts = {split: {source_of[row["clip_id"]] for row in catalog if row["split"] == split} for split in manifest.SPLITS}
    assert not parts["train"] & parts["valid"]
    assert not parts["train"] & parts["test"]
    assert ("the sound of rain") in {row["captions"] for row in json_rows("train")}
