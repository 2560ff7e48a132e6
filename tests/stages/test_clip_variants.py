"""Clips in several forms: real one-shots as a family wants them, and variants beside each other in one `dvc repro`."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from soundmill import manifest, params, shards
from soundmill.audio import flac
from soundmill.audio.levels import integrated_loudness
from tests.checkouts import dvc, repro
from tests.corpora.tiny import sound
from tests.stages.test_segment_resample import clips_of, inventory, reasons_of, run_both, settle

SHORT = ["elec_tick", "tabla_ke1", "elec_flip", "hat_bdu", "hat_sci", "elec_twip", "bd_chip", "bd_zum"]  # 19 to 132 ms
LONGER = ["arovane_beat_d"]  # 11 s


@pytest.fixture
def one_shots(shared, tmp_path) -> Path:
    """Real drum hits, mono and stereo, at 44.1 and 192 kHz, and one longer recording."""
    source, folder = shared / "data/cc0_samples", tmp_path / "one shots"
    folder.mkdir()
    for name in SHORT + LONGER:
        shutil.copy(source / f"{name}.flac", folder)
    return folder


def cut(project: Path, folder: Path, **plan: object) -> dict:
    """Clips of the recordings in a folder; returns the metrics of `resample`."""
    inventory(project, folder)
    settle(project, folder, **plan)
    run_both(project)
    assert not {**reasons_of(project, "segment"), **reasons_of(project, "resample")}
    return json.loads((project / "data/metrics/resample.json").read_text())


def test_one_shots_are_kept_in_stereo_at_their_own_rate(one_shots, tmp_path):
    metrics = cut(tmp_path, one_shots, sample_rate=44_100, channels=2, clip_seconds=2.0, tail="keep", min_seconds=1.5)
    infos = {path.name: soundfile.info(path) for path in one_shots.iterdir()}
    assert metrics["doubled_recordings"] == sum(info.channels == 1 for info in infos.values()) > 0
    assert metrics["upsampled_recordings"] == metrics["reduced_recordings"] == 0
    clips = clips_of(tmp_path)
    assert set(clips) == set(infos)
    assert [clip["num_samples"] for clip in clips["arovane_beat_d.flac"]] == [88_200] * 5  # a remainder of 1.1 s is dropped
    for name in SHORT:
        (clip,) = clips[f"{name}.flac"]
        info, wave = infos[f"{name}.flac"], flac.decode_flac(clip["audio"]["bytes"])
        assert flac.flac_rate(clip["audio"]["bytes"]) == 44_100
        assert wave.shape == (2, clip["num_samples"])
        assert wave.shape[1] == pytest.approx(info.duration * 44_100, abs=1)
        assert clip["quality"]["seconds"] == pytest.approx(info.duration, abs=1e-4)
        if info.samplerate == 44_100:
            original, _ = soundfile.read(one_shots / f"{name}.flac", dtype="float32", always_2d=True)
            np.testing.assert_allclose(wave, np.broadcast_to(original.T, wave.shape), atol=1.1 / 32768)


def test_clips_come_to_one_loudness_and_are_measured_before_it(one_shots, tmp_path):
    for name, target in (("none", "none"), ("even", -30.0)):
        (tmp_path / name).mkdir()
        metrics = cut(tmp_path / name, one_shots, sample_rate=48_000, channels=2, tail="pad", loudness=target)
    plain, even = clips_of(tmp_path / "none"), clips_of(tmp_path / "even")
    measured = []
    for source, clips in even.items():
        for clip, before in zip(clips, plain[source], strict=True):
            assert clip["quality"] == before["quality"]
            length = round(clip["quality"]["seconds"] * 48_000)
            measured.append(integrated_loudness(flac.decode_flac(clip["audio"]["bytes"])[:, :length], 48_000))
    quieter = sum(abs(loudness + 30) > 0.1 for loudness in measured)
    assert quieter == metrics["limited_clips"] + metrics["silent_clips"] < len(measured) / 3
    rates = [soundfile.info(path).samplerate for path in one_shots.iterdir()]
    assert metrics["upsampled_recordings"] == sum(rate < 48_000 for rate in rates) == len(rates) - 1


def test_a_variant_may_refuse_what_it_would_have_to_upsample(one_shots, tmp_path):
    (one_shots / "low.wav").write_bytes(sound(0, 0.5, 22_050, "WAV"))
    (one_shots / "data.wav").write_bytes(sound(0, 10, 1, "WAV"))  # ten numbers, one a second
    inventory(tmp_path, one_shots)
    settle(tmp_path, one_shots, sample_rate=44_100, channels=2, upsample=False, tail="keep")
    run_both(tmp_path)
    mono = {path.name for path in one_shots.glob("*.flac") if soundfile.info(path).channels == 1}
    assert reasons_of(tmp_path, "segment") == {"low.wav": "low rate", "data.wav": "low rate", **dict.fromkeys(mono, "few channels")}
    assert set(clips_of(tmp_path)) == {path.name for path in one_shots.glob("*.flac")} - mono != set()


def test_surround_gives_its_first_two_channels_to_stereo_and_the_mean_to_mono(tmp_path):
    folder, rate = tmp_path / "audio", 22_050
    folder.mkdir()
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (rate, 6)).astype(np.float32)
    soundfile.write(folder / "surround.wav", noise, rate, subtype="FLOAT")
    for channels, expected in ((1, noise.mean(axis=1, keepdims=True)), (2, noise[:, :2])):
        project = tmp_path / str(channels)
        project.mkdir()
        metrics = cut(project, folder, sample_rate=rate, channels=channels, clip_seconds=1.0)
        (clip,) = clips_of(project)["surround.wav"]
        np.testing.assert_allclose(flac.decode_flac(clip["audio"]["bytes"]), expected.T, atol=0.6 / 32768)
        assert metrics["reduced_recordings"] == 1


@pytest.mark.slow
def test_another_variant_reruns_nothing_and_has_the_same_splits(graph_copy):
    hifi = {"sample_rate": 44_100, "channels": 2, "clip_seconds": 2.5, "tail": "pad", "min_seconds": 1.0, "loudness": "peak"}
    data = ["catalog@default", "mixup", "rename"]
    checkout, document = graph_copy, params.read_yaml(graph_copy / "params.yaml")
    before = {path: path.read_bytes() for path in sorted((checkout / "data").rglob("default*/*.parquet"))}

    document["clips"]["hifi"] = {**document["clips"]["default"], **hifi}
    params.write_yaml(document, checkout / "params.yaml")
    expected = {f"{stage}@hifi" for stage in ("segment", "resample", "quality", "catalog")}
    assert set(json.loads(dvc(checkout, "status", "--json").stdout)) & {*data, "splits", "duplicates"} == set()
    assert repro(checkout, *data, "catalog@hifi") == expected
    assert {path: path.read_bytes() for path in before} == before

    tables = {name: pq.read_table(checkout / f"data/catalog/{name}.parquet").to_pylist() for name in ("default", "hifi")}
    splits = {row["recording_id"]: row["split"] for row in pq.read_table(checkout / "data/splits.parquet").to_pylist()}
    for rows in tables.values():
        assert {row["recording_id"]: row["split"] for row in rows}.items() <= splits.items()
        assert {row["split"] for row in rows} == set(manifest.SPLITS)
    assert {row["recording_id"] for row in tables["hifi"]} == {row["recording_id"] for row in tables["default"]}
    assert len(tables["hifi"]) > len(tables["default"])
    row = next(shards.read_rows(shards.shard_paths(checkout / "data/clips/hifi")[0], manifest.CLIPS))
    wave = flac.decode_flac(row["audio"]["bytes"])
    assert (wave.shape, flac.flac_rate(row["audio"]["bytes"])) == ((2, 110_250), 44_100)
    assert np.abs(wave).max() == pytest.approx(32767 / 32768, abs=1e-4)
    assert (checkout / "data/quality/hifi.html").stat().st_size > 10_000
