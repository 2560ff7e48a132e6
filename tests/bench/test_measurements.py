"""Every measurement, shrunken: it runs with the real competitors and writes the figures it promises."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from bench import audiocaps_generator as generator
from bench import embedding, measure, picture, references
from bench.measure import Target
from soundmill.decoding import decode
from soundmill.errors import UserError


def bench(root: Path, results: Path, name: str, *arguments: str, results_name: str | None = None) -> dict:
    command = [sys.executable, "-m", f"bench.{name}", "--results", str(results), *arguments]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    document = json.loads((results / f"{results_name or name}.json").read_text())
    assert {"name", "machine", "items", "repetitions", "seconds", "medians", "items_per_second", "targets"} <= set(document)
    assert document["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert all(value > 0 for values in document["seconds"].values() for value in values)
    for target in document["targets"]:
        below, above = sorted((target["value"], target["limit"]))
        assert target["met"] == (below == above or target["at_least"] == (target["value"] == above))
    return document


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small AudioCaps: train with one caption a clip, val and test with five."""
    directory = tmp_path_factory.mktemp("captions")
    number = 0
    for table, clips, each in (("train", 60, 1), ("val", 8, 5), ("test", 8, 5)):
        lines = ["audiocap_id,youtube_id,start_time,caption"]
        for clip in range(clips):
            for _ in range(each):
                number += 1
                lines.append(f'{number},-{table[:2]}_{clip:07d},{10 * clip},"A sound, and number {number}"')
        (directory / f"{table}.csv").write_text("\n".join(lines) + "\n")
    return directory


def test_a_step_of_audio_dit(root, tmp_path):
    """Both sides take steps, in turns, and in processes of their own for their memory."""
    size = ["layers=1", "heads=2", "head_width=8", "key_heads=1", "condition_width=8"]
    overrides = [f"audio_dit.train.network.{one}" for one in size]
    document = bench(root, tmp_path, "audio_dit", "--steps", "1", "--repetitions", "2", *overrides)
    assert list(document["seconds"]) == list(document["memory_bytes"]) == ["audio_dit", "diffusers"]
    assert len(document["targets"]) == 2


def test_generated_sounds_are_each_ids_own(captions, tmp_path):
    clips = generator.read_clips(captions)
    assert len(clips) == 76
    assert sum(len(clip.captions) for clip in clips) == 60 + 16 * 5
    assert len({clip.path() for clip in clips}) == 76
    assert {Path(clip.path()).suffix for clip in clips} == {".flac", ".wav", ".ogg"}
    generator.generate(clips[:6], tmp_path / "one", 1.0, 1)
    generator.generate(clips[:6], tmp_path / "other", 1.0, 2)
    output = [(tmp_path / "one" / clip.path()).read_bytes() for clip in clips[:6]]
    assert len(set(output)) == 6
    for clip, raw in zip(clips, output, strict=False):
        if not clip.path().endswith(".ogg"):  # a stream of which has a random serial number
            assert (tmp_path / "other" / clip.path()).read_bytes() == raw


def test_sounds_made_of_recordings_are_each_ids_own(captions, tmp_path):
    clips, recordings = generator.read_clips(captions)[:4], []
    for number in range(4):
        recordings.append(tmp_path / f"{number}.wav")
        soundfile.write(recordings[-1], np.random.default_rng(number).uniform(-0.5, 0.5, (16_000, 2)), 16_000)
    generator.generate(clips, tmp_path / "corpus", 1.5, 2, tuple(recordings), "ogg")
    output = [soundfile.read(tmp_path / "corpus" / clip.path("ogg"))[0] for clip in clips]
    waves = generator._waves(tuple(recordings))
    for clip, wave in zip(clips, output, strict=True):
        assert wave.shape == (round(1.5 * generator.RECORDED_RATE),)
        expected = generator.mixed(waves, clip.choice, 1.5)[:, 0]
        assert np.corrcoef(wave, expected)[0, 1] > 0.9
        assert abs(np.corrcoef(wave, output[clips.index(clip) - 1])[0, 1]) < 0.2
    generator.generate(clips, tmp_path / "youtube", 1.5, 2, tuple(recordings), "youtube")
    coded = [tmp_path / "youtube" / clip.path("youtube") for clip in clips]
    assert {path.suffix for path in coded} == {".m4a", ".webm"}
    for path in coded:
        about = decode.probe(path, 10.0)
        assert (about.sample_rate, about.channels) == ({".m4a": 44_100, ".webm": 48_000}[path.suffix], 2)
        assert abs(about.num_frames / about.sample_rate - 1.5) < 0.05
    with pytest.raises(UserError, match="3 recordings are too few to mix; at least 4"):
        generator.generate(clips, tmp_path / "none", 1.0, 1, tuple(recordings[:3]), "ogg")


@pytest.mark.slow(minutes=1)
def test_scale_out_of_training(root, tmp_path):
    arguments = ("training", "--steps", "3", "--repetitions", "1")
    document = bench(root, tmp_path, "scale_out", *arguments, results_name="scale_out_training")
    assert set(document["seconds"]) == set(document["cpu_seconds_per_step"]) == {"1", "2"}
    assert [target["limit"] for target in document["targets"]] == [1.6, 1.6]


@pytest.mark.slow(minutes=1)
def test_decode(root, tmp_path):
    found = bench(root, tmp_path, "decode", "--clips", "4", "--repetitions", "1")
    assert {"soundmill", "lhotse", "bare loop", "shell loop of the pinned ffmpeg"} <= set(found["seconds"])
    assert [target["limit"] for target in found["targets"]] == [5, 1.2, 0.7, 0.7]
    check_ffmpegs(found, "shell loop of", {"lhotse's call without its imports, ours with them", "lhotse, with started processes"})


@pytest.mark.slow
def test_ffmpeg_formats(root, tmp_path):
    document = bench(root, tmp_path, "ffmpeg_formats", "--clips", "3", "--repetitions", "1")
    assert {"soundmill, resample", "soundmill, scan and segment"} <= set(document["seconds"])
    check_ffmpegs(document, "one process per file of")


def check_ffmpegs(document: dict, what: str, others: set[str] = frozenset()) -> None:
    """Every ffmpeg has competed and told its version; the target is held against the system's where there is one."""
    names = ["the system's ffmpeg"] if shutil.which("ffmpeg", path="/usr/local/bin:/usr/bin:/bin") else []
    names.append("the pinned ffmpeg")
    assert list(document["ffmpegs"]) == names
    assert all(document["ffmpegs"].values())
    assert document["targets"][0]["name"].endswith(f"{what} {names[0]}")
    assert set(document["other_ratios"]) == {f"{what} {name}" for name in names[1:]} | others
    assert {f"{what} {name}" for name in names} <= set(document["seconds"])


@pytest.mark.slow
def test_bandwidth(root, tmp_path):
    document = bench(root, tmp_path, "bandwidth", "--most=4")
    assert all(len(values) == 4 for values in document["readings"].values())
    assert all(target["met"] for target in document["targets"])


@pytest.mark.slow(minutes=1)
def test_log_mel(root, tmp_path):
    document = bench(root, tmp_path, "log_mel", "--clips", "4", "--repetitions", "1")
    assert {"soundmill", "lhotse", "lhotse, started processes"} <= set(document["seconds"])


@pytest.mark.slow
def test_tango_loop(root, tmp_path):
    small = ["tango.train.network.widths=[8,16]", "tango.train.network.heads=[2,2]", "tango.train.network.text_levels=[1]"]
    document = bench(root, tmp_path, "tango_loop", "--clips", "2", "--steps", "1", "--repetitions", "2", *small)
    assert set(document["seconds"]) == {"cached", "in the loop"}
    assert document["targets"][0]["value"] > 0


@pytest.mark.slow(minutes=1)
def test_scale(root, tmp_path, captions):
    document = bench(root, tmp_path, "scale", "--captions", str(captions), "--sizes", "20", "40")
    for size in ("20", "40"):
        stages = document["sizes"][size]["stages"]
        names = {name.partition("@")[0] for name in stages}
        assert names.issuperset("scan segment resample catalog rename mixup spectrogram".split())
        assert all(usage["peak_bytes"] > 1e7 and usage["cpu_seconds"] > 0 and usage["bytes"] > 0 for usage in stages.values())


@pytest.mark.slow(minutes=1)
def test_incremental(root, tmp_path, captions):
    arguments = ["--captions", str(captions), "--clips", "50", "--seconds", "1", "--form", "youtube"]
    document = bench(root, tmp_path, "incremental", *arguments, results_name="incremental_youtube")
    assert document["added"] == 1
    assert document["files"] > 20
    assert document["different_first"] == []


def test_the_picture_shows_every_target(tmp_path):
    targets = [Target("a thing", 12.0, 10.0), Target("another", 7.0, 6.0, at_least=False, unit=" s"), Target("none", 0, 0, False)]
    measure.write("some", tmp_path, 10, {"one": [1.0, 3.0, 2.0]}, targets)
    assert json.loads((tmp_path / "some.json").read_text())["items_per_second"] == {"one": 5.0}
    assert [row["met"] for row in picture.groups(tmp_path)["some"]] == [True, False, True]
    assert picture.goodness({"value": -0.1, "limit": 1e-6, "at_least": False, "met": True}) > 1
    picture.draw(tmp_path, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes()[:4] == b"\x89PNG"


def test_distances(root, tmp_path):
    small = ["--clips", "60", "--size", "128", "--patches", "400", "--patch_size", "32"]
    few = ["--few", "300", "--many", "600", "--memory_size", "64", "--repetitions", "1"]
    document = bench(root, tmp_path, "distances", *small, *few)
    assert set(document["seconds"]) == {f"{what}, {way}" for what in ("FD", "FAD") for way in ("soundmill", "scipy's sqrtm")}
    assert [target["limit"] for target in document["targets"]] == [30, 1e-6, 1, 1e-6, 1.25]
    assert document["targets"][3]["met"]
    assert set(document["peak_megabytes"]) == {"300", "600"}


@pytest.mark.slow
def test_ladder(root, tmp_path, shared):
    document = bench(root, tmp_path, "ladder", "--repetitions", "1", "--every", "4")
    (target,) = document["targets"]
    assert target["limit"] == 0.2
    assert 0 < target["value"] < 1
    assert document["cpu_seconds"]["with the ladder"] > document["cpu_seconds"]["without"]


@pytest.mark.slow
def test_evaluation_memory(root, tmp_path, shared):
    assert (shared / "models" / "yamnet.tflite").is_file()
    document = bench(root, tmp_path, "evaluation_memory", "--sizes", "12", "24", "--reference", "0")
    assert set(document["sizes"]) == {"12", "24"}
    assert all(usage["peak_bytes"] > 1e8 and usage["seconds"] > 0 for both in document["sizes"].values() for usage in both.values())
    assert [target["limit"] for target in document["targets"]] == [1.25, 2]


@pytest.mark.slow
def test_copies_are_planted_and_found(root, shared, tmp_path):
    command = [sys.executable, "-m", "bench.duplicates", "--results", str(tmp_path), "--recordings", "2", "--largest", "1000"]
    done = subprocess.run([*command, "--audio", str(shared / "data/esc10/002 - Rain")], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    document = json.loads((tmp_path / "duplicates.json").read_text())
    (table,) = document["recall"].values()
    assert len(table) == 10
    assert all(row["planted"] == row["found"] == 2 and row["score_lowest"] > 0.4 for row in table.values())
    assert document["growth"][0]["recall"] == 1.0
    assert document["growth"][0]["alarms"] == 0
    assert list(document["alarms"].values()) == [[]]


@pytest.mark.slow(minutes=1)
def test_embedding(tmp_path, monkeypatch):
    (tmp_path / "audio").mkdir()
    for index in range(2):
        noise = 0.1 * np.random.default_rng(index).standard_normal(22_050)
        soundfile.write(tmp_path / "audio" / f"{index}.ogg", noise, 22_050)
    monkeypatch.setattr(references, "PACKAGES", {"vggish": "torchvggish"})
    arguments = ["--audio", str(tmp_path / "audio"), "--results", str(tmp_path), "--repetitions", "1", "--yamnet_clips", "4"]
    monkeypatch.setattr(sys, "argv", ["bench.embedding", *arguments])
    embedding.main()
    document = json.loads((tmp_path / "embedding.json").read_text())
    assert document["items"] == 2  # though more were asked for: the same sound is embedded once
    assert set(document["seconds"]) == {"soundmill, vggish", "torchvggish, vggish"}
    assert all(values[0] > 0 for values in document["seconds"].values())
    assert set(document["working_cpu_seconds"]) >= set(document["seconds"])
    for name, values in document["working_cpu_seconds"].items():
        assert 0 < values[0] < document["cpu_seconds"].get(name, [1e9])[0]
    assert document["targets"][0]["limit"] == 3
    memory = next(target for target in document["targets"] if "memory" in target["name"])
    assert 0.5 < memory["value"] < 1.25  # of the same two clips
    if "yamnet" in document:
        assert document["targets"][-1]["value"] == 4 / document["yamnet"]["seconds"][0]


SMALL_RAVE = ["network.channels=4", "network.latent_channels=8", "weights.num_samples=16384"]
RAVE = ["--repetitions", "1", "--seconds", "1", "--sound", "1", "--steps", "1"]


@pytest.mark.slow(minutes=1)
def test_rave(root, tmp_path):
    document = bench(root, tmp_path, "rave", *RAVE, *(f"rave.autoencoder.{one}" for one in SMALL_RAVE))
    assert set(document["seconds"]) == {"soundmill, codec", "soundmill, training step"}
    assert document["live"]["causal"]["latency"] == 368
    for told in document["live"].values():
        assert told["blocks"] == 23
        assert (told["drawn_latents"], told["noise"]) == (7, True)  # as what ships
        assert 0 < told["median_ms"] <= told["p99_ms"] <= told["worst_ms"]
        assert 0 < told["cpu_p99_ms"]
    assert len(document["targets"]) == 2


@pytest.mark.slow(minutes=2)
def test_rave_beside_acids_rave(root, tmp_path):
    peer = os.environ.get("SOUNDMILL_RAVE_PEER")
    if not peer:
        pytest.skip("$SOUNDMILL_RAVE_PEER names no Python with acids-rave (bench/rave.py says how it is made)")
    document = bench(root, tmp_path, "rave", *RAVE, "--peer", peer)
    names = {f"{side}, {what}" for side in ("soundmill", "acids-rave") for what in ("codec", "training step")}
    assert set(document["seconds"]) == names
    assert len(document["targets"]) == 4
