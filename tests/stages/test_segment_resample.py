"""From an inventory to clips through the real stages: awkward files become clips, damaged ones quarantine, bytes never vary."""

import contextlib
import hashlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from soundmill import hashing, manifest, shards
from soundmill.audio import flac
from soundmill.audio.quality import RecordingMeter, measure_clip
from soundmill.corpora.clip_plan import ClipPlan
from soundmill.corpora.sources import Sources, embedded_path
from stages import resample, segment
from stages.resample import resample_shard
from stages.segment import ClipNames, plan_shard
from tests import prepared
from tests.decoding.files import ffmpeg
from tests.stages import handling
from tests.stages.handling import PLANNED
from tests.waves import noise

PLAN = {**prepared.PLAN, "clip_seconds": 2.0, "min_seconds": 0.5, "max_seconds": 60.0}
STAGES = {"segment": (segment, PLANNED), "resample": (resample, (*PLANNED, "--name", "resample", "--clips", "data/clips"))}
SHARDS = 10


def run(project: Path, stage: str) -> None:
    module, ports = STAGES[stage]
    with contextlib.chdir(project):
        handling.call(module, *ports, section="clips")


def run_both(project: Path) -> None:
    for stage in STAGES:
        run(project, stage)


def settle(project: Path, audio: Path | None = None, workers: int = 1, **plan: object) -> None:
    """Write params.yaml of a project over a folder, with some of the clip plan changed."""
    handling.settle(project, workers, corpus={"path": audio and str(audio)}, clips={"default": PLAN | plan})


def inventory(project: Path, audio: Path, count: int = 4) -> None:
    """What `scan` would write of the files below `audio`."""
    rows = []
    top = os.fsencode(audio)
    for name in sorted(os.listdir(top)):
        path = os.path.join(top, name)
        if not os.path.isfile(path):
            continue
        about = {"size": os.lstat(path).st_size, "digest": hashing.file_digest(path), "start_time": 0.0, "labels": []}
        name_of = {"recording_id": hashlib.blake2b(name, digest_size=6).hexdigest(), "path": manifest.escape_path(name)}
        rows.append({**name_of, "raw_path": name, "shard": shards.shard_of(name, count), **about})
    shards.write_rows(rows, project / "data/corpus/recordings.parquet", manifest.RECORDINGS)


def clips_of(project: Path) -> dict[str, list[dict]]:
    """Clips by source, in order."""
    found: dict[str, list[dict]] = {}
    for path in shards.shard_paths(project / "data/clips"):
        for row in shards.read_rows(path, manifest.CLIPS):
            found.setdefault(row["source"], []).append(row)
    return found


def reasons_of(project: Path, stage: str) -> dict[str, str]:
    return {row["path"]: row["reason"] for row in pq.read_table(project / f"data/quarantine/{stage}.parquet").to_pylist()}


def fingerprints(project: Path) -> dict[str, str]:
    kept = ["segments.parquet", "clips/**/*", "quarantine/*", "metrics/*"]
    paths = sorted({path for pattern in kept for path in (project / "data").glob(pattern) if path.is_file()})
    return {str(path.relative_to(project)): hashing.file_digest(path) for path in paths}


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project run over a corpus of every awkward and every damaged kind."""
    project = tmp_path_factory.mktemp("everything")
    audio = project / "outside"  # DVC itself could not hold some of these
    audio.mkdir()
    good = project / "good.wav"
    soundfile.write(good, noise(4.6, 44_100), 44_100)
    content = good.read_bytes()
    for name in (b"plain.wav", b"new\nline.wav", b"\xff\xfe.wav"):
        (Path(os.fsdecode(os.path.join(os.fsencode(audio), name)))).write_bytes(content)
    for name in ("a.ogg", "a.m4a", "surround.flac"):
        ffmpeg("-i", good, *(["-ac", "6"] if name == "surround.flac" else []), audio / name)
    os.rename(audio / "a.m4a", os.path.join(os.fsencode(audio), b"\xe9.m4a"))
    ffmpeg("-i", good, "-f", "lavfi", "-i", "testsrc=d=5:s=64x64:r=10", audio / "film.mp4")
    soundfile.write(audio / "whole.wav", noise(4.0, 16_000), 16_000)
    soundfile.write(audio / "remainder.wav", noise(4.001, 48_000), 48_000)
    soundfile.write(audio / "loud.wav", noise(2.0, 16_000) * 100, 16_000, subtype="FLOAT")
    soundfile.write(audio / "pair.wav", noise(2.0, 16_000)[:, None] * [1.0, 0.5], 16_000)
    (audio / "link.wav").symlink_to(audio / "plain.wav")

    (audio / "zero.wav").touch()
    (audio / "list.mp3").write_text(f"#EXTM3U\n#EXTINF:1,\n{good}\n")
    (audio / "cut.wav").write_bytes(content[: len(content) // 2])
    whole = (audio / "film.mp4").read_bytes()
    (audio / "corrupt.mp4").write_bytes(whole[: len(whole) // 2] + bytes(range(256)) * 3 + whole[len(whole) // 2 + 768 :])
    soundfile.write(audio / "one.wav", np.ones(1), 16_000)
    soundfile.write(audio / "click.wav", noise(0.009, 16_000), 16_000)
    soundfile.write(audio / "blip.wav", noise(0.3, 16_000), 16_000)
    soundfile.write(audio / "endless.flac", np.zeros(8000 * 70), 8000)
    soundfile.write(audio / "nan.wav", np.append(noise(3.0, 16_000), np.float32("nan")), 16_000, subtype="FLOAT")
    soundfile.write(audio / "silent.wav", np.zeros(48_000), 16_000)
    soundfile.write(audio / "inverted.wav", np.outer(noise(3.0, 16_000), [1, -1]), 16_000)
    inventory(project, audio)
    settle(project, audio)
    run_both(project)
    return project


def test_files_of_any_name_and_kind_become_clips(everything):
    """tests/decoding has more kinds, and more damage."""
    clips = clips_of(everything)
    names = ("plain.wav", "new\\x0aline.wav", "\\xff\\xfe.wav", "\\xe9.m4a", "a.ogg", "surround.flac", "film.mp4", "link.wav")
    for source in names:
        assert [clip["start"] for clip in clips[source]] == [0.0, 2.0, 4.0], source
        for clip in clips[source]:
            wave, rate = soundfile.read(io.BytesIO(clip["audio"]["bytes"]))
            assert (len(wave), rate, wave.ndim) == (32_000, 16_000, 1)
            assert clip["audio"]["path"] == f"{clip['clip_id']}.flac"
        assert np.abs(wave[: int(0.5 * 16_000)]).max() > 0.02
        assert not wave[int(0.75 * 16_000) :].any()  # 4.6 s and what a codec adds, then padding
    assert [clip["digest"] for clip in clips["plain.wav"]] == [clip["digest"] for clip in clips["link.wav"]]
    assert len({clip["digest"] for source in ("plain.wav", "a.ogg", "film.mp4") for clip in clips[source]}) == 9
    joined = np.concatenate([flac.decode_mono(clip["audio"]["bytes"]) for clip in clips["whole.wav"]])
    np.testing.assert_array_equal(joined, soundfile.read(everything / "outside/whole.wav", dtype="float32")[0])
    assert len(clips["remainder.wav"]) == 2
    assert json.loads((everything / "data/metrics/segment.json").read_text())["dropped_remainders"] == 1


def test_damaged_files_are_quarantined_by_name_with_the_reason(everything):
    reasons = {**reasons_of(everything, "segment"), **reasons_of(everything, "resample")}
    assert reasons.pop("corrupt.mp4") in ("corrupt", "truncated")
    assert reasons == {
        "zero.wav": "empty",
        "list.mp3": "playlist",
        "cut.wav": "truncated",
        "one.wav": "too short",
        "click.wav": "too short",
        "endless.flac": "too long",
        "nan.wav": "nan",
        "silent.wav": "silent",
        "inverted.wav": "silent",
    }
    rows = {row["path"]: row["detail"] for row in pq.read_table(everything / "data/quarantine/resample.parquet").to_pylist()}
    assert "its channels cancel when mixed to one: channel_correlation -1" in rows["inverted.wav"]
    assert "cancel" not in rows["silent.wav"]


def test_nothing_is_lost_without_a_word(everything):
    recordings = {row["path"] for row in pq.read_table(everything / "data/corpus/recordings.parquet").to_pylist()}
    quarantined = [*reasons_of(everything, "segment"), *reasons_of(everything, "resample")]
    assert sorted([*clips_of(everything), *quarantined]) == sorted(recordings)
    planned = json.loads((everything / "data/metrics/segment.json").read_text())
    output = json.loads((everything / "data/metrics/resample.json").read_text())
    assert planned["recordings"] == len(recordings)
    assert planned["recordings_cut"] + planned["quarantined"] == len(recordings)
    assert sum(planned["quarantined_for"].values()) == planned["quarantined"]
    assert planned["clips"] == output["clips"] + output["lost_clips"]
    assert output["clips"] == sum(map(len, clips_of(everything).values()))


def test_sound_beyond_full_scale_is_attenuated_not_clipped(everything):
    original, _ = soundfile.read(everything / "outside/loud.wav", dtype="float32")
    wave = flac.decode_mono(clips_of(everything)["loud.wav"][0]["audio"]["bytes"])
    np.testing.assert_allclose(wave, original / np.abs(original).max(), atol=1e-4)
    assert json.loads((everything / "data/metrics/resample.json").read_text())["attenuated_recordings"] == 1


def test_clips_are_measured_before_padding_and_as_they_are_stored(everything):
    clips = clips_of(everything)
    (short,) = clips["blip.wav"]  # no remainder
    wave = flac.decode_mono(short["audio"]["bytes"])
    assert (len(wave), short["quality"]["seconds"]) == (32_000, 0.3)
    assert wave[:4_800].any()
    assert not wave[4_800:].any()
    assert [clip["quality"]["seconds"] for clip in clips["plain.wav"]] == [2.0, 2.0, 0.6]
    assert clips["loud.wav"][0]["quality"]["peak"] > 10
    assert clips["plain.wav"][0]["quality"]["channel_correlation"] is None
    assert clips["pair.wav"][0]["quality"]["channel_correlation"] == 1.0
    assert all(7000 < clip["quality"]["bandwidth_hz"] <= 8000 for clip in clips["whole.wav"])
    assert abs(clips["\\xe9.m4a"][0]["quality"]["level_db"] - clips["film.mp4"][0]["quality"]["level_db"]) < 0.5


def project_over(audio: Path, directory: Path, workers: int) -> Path:
    directory.mkdir()
    inventory(directory, audio, count=SHARDS)
    settle(directory, audio, workers)
    return directory


@pytest.mark.slow
def test_only_what_is_new_is_made_and_the_bytes_are_those_of_a_fresh_build(tmp_path):
    audio = tmp_path / "audio"
    audio.mkdir()
    for index in range(16):
        soundfile.write(audio / f"{index:02d}.flac", noise(4.5, 44_100, seed=index), 44_100)
    for index in range(3):
        ffmpeg("-i", audio / f"{index:02d}.flac", audio / f"{index:02d}.m4a")
    (audio / "cut.flac").write_bytes((audio / "00.flac").read_bytes()[:50_000])
    project = project_over(audio, tmp_path / "grown", workers=2)
    run_both(project)

    ffmpeg("-i", audio / "07.flac", audio / "new.m4a")
    soundfile.write(audio / "new.flac", noise(3.5, 44_100, seed=99), 44_100)
    (audio / "01.flac").unlink()
    inventory(project, audio, count=SHARDS)
    fresh = project_over(audio, tmp_path / "fresh", workers=1)
    run_both(fresh)
    # Proof that the rest is not looked at: it is gone. (The damaged one is, every time.)
    for path in audio.iterdir():
        if path.name not in ("new.m4a", "new.flac", "cut.flac"):
            path.unlink()
    run_both(project)
    assert fingerprints(project) == fingerprints(fresh)
    assert reasons_of(project, "segment") | reasons_of(project, "resample") == {"cut.flac": "truncated"}


def test_recordings_inside_a_table_are_cut_like_files(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(3.0, 44_100), 44_100)
    ffmpeg("-i", tmp_path / "a.wav", tmp_path / "a.m4a")
    ffmpeg("-i", tmp_path / "a.wav", "-t", "2", tmp_path / "b.m4a")
    files = [tmp_path / name for name in ("a.wav", "a.m4a", "b.m4a")]
    cells = [{"bytes": path.read_bytes(), "path": path.name} for path in files]
    pq.write_table(pa.table({"audio": pa.array(cells, manifest.AUDIO)}), tmp_path / "t.parquet")
    params = ClipPlan.model_validate(PLAN)
    sources = Sources({b"": os.fsencode(tmp_path)})

    def clips(raw_paths: list[bytes], name: str) -> list[dict]:
        rows = [
            {"recording_id": f"r{index}", "raw_path": raw, "digest": hashing.file_digest(file)}
            | {"path": "x", "shard": 0, "start_time": 0.0}
            for index, (raw, file) in enumerate(zip(raw_paths, files, strict=True))
        ]
        output = tmp_path / name
        output.mkdir()
        recordings = pa.Table.from_pylist(rows, manifest.RECORDINGS)
        assert not plan_shard(recordings, sources, params, {}, output / "plan.parquet").quarantine
        plan = shards.read_table(output / "plan.parquet", manifest.SEGMENTS)
        assert not resample_shard(plan, sources, params, output / "clips.parquet").quarantine
        assert sorted(os.listdir(output)) == ["clips.parquet", "plan.parquet"]
        return [{**row, "source": None} for row in shards.read_rows(output / "clips.parquet", manifest.CLIPS)]

    inside = clips([embedded_path(b"t.parquet", row) for row in range(3)], "inside")
    assert len(inside) == 5
    assert inside == clips([os.fsencode(path.name) for path in files], "outside")


def refusal(project: Path, stage: str) -> str:
    with pytest.raises(SystemExit) as end:
        run(project, stage)
    assert isinstance(end.value.code, str)
    assert "fault of Soundmill" not in end.value.code
    return end.value.code


def test_no_surviving_clip_fails_the_stage_and_says_why(tmp_path):
    audio = tmp_path / "data/corpus/audio"
    audio.mkdir(parents=True)
    (audio / "a.wav").write_text("just text")
    (audio / "b.wav").touch()
    inventory(tmp_path, audio)
    settle(tmp_path)
    message = refusal(tmp_path, "segment")
    assert "2 recordings" in message
    assert "1 text" in message
    assert not (tmp_path / "data/segments.parquet").exists()

    soundfile.write(audio / "a.wav", np.zeros(48_000), 16_000)
    inventory(tmp_path, audio)
    run(tmp_path, "segment")
    assert "1 silent" in refusal(tmp_path, "resample")
    assert not (tmp_path / "data/clips").exists()


def test_a_file_that_changed_since_the_scan_is_not_taken_for_the_old_one(tmp_path):
    audio = tmp_path / "outside"
    audio.mkdir()
    soundfile.write(audio / "a.wav", noise(3.0, 16_000), 16_000)
    inventory(tmp_path, audio)
    settle(tmp_path, audio)
    good = (audio / "a.wav").read_bytes()
    for harm in (lambda: (audio / "a.wav").unlink(), lambda: soundfile.write(audio / "a.wav", noise(6.0, 16_000), 16_000)):
        harm()
        assert "a.wav: the file has changed" in refusal(tmp_path, "segment")
    (audio / "a.wav").write_bytes(good)  # mended: nothing of the other is left
    run(tmp_path, "segment")
    soundfile.write(audio / "a.wav", noise(3.0, 16_000, seed=1), 16_000)
    assert "a.wav: the file has changed" in refusal(tmp_path, "resample")


def resampled(folder: Path, num_samples: int) -> tuple[shards.Report, list[dict]]:
    """The report and the clips of `a.wav` by a plan of so many samples."""
    whose = {"clip_id": "x_0", "recording_id": "x", "source": "a.wav", "raw_path": b"a.wav", "shard": 0}
    place = {"start": 0.0, "start_sample": 0, "pad_samples": 0, "num_samples": num_samples, "recording_samples": num_samples}
    row = {**whose, **place, "digest": hashing.file_digest(folder / "a.wav")}
    sources, output = Sources({b"": os.fsencode(folder)}), folder / "out" / "s.parquet"
    report = resample_shard(pa.Table.from_pylist([row], manifest.SEGMENTS), sources, ClipPlan.model_validate(PLAN), output)
    return report, list(shards.read_rows(output, manifest.CLIPS))


@pytest.mark.parametrize(("planned", "reason"), [(16_500, None), (15_500, None), (17_000, "truncated"), (15_000, "corrupt")])
def test_the_decoder_is_held_to_the_plan(tmp_path, planned, reason):
    soundfile.write(tmp_path / "a.wav", noise(1.0, 16_000), 16_000)
    report, rows = resampled(tmp_path, planned)
    assert [row["reason"] for row in report.quarantine] == ([reason] if reason else [])
    assert [row["num_samples"] for row in rows] == ([] if reason else [planned])
    if not reason:
        assert len(flac.decode_mono(rows[0]["audio"]["bytes"])) == planned
        assert report.counts["length_adjusted_recordings"] == 1


@pytest.mark.parametrize(
    ("first", "tail", "lengths"),
    [(6.0, "keep", [2, 2, 2]), (5.0, "keep", [2, 2, 1]), (5.0, "drop", [2, 2]), (1.0, "pad", [2]), (60.0, "drop", [2] * 5)],
)
def test_only_the_first_seconds_of_a_recording_are_cut(tmp_path, first, tail, lengths):
    audio = tmp_path / "sounds"
    audio.mkdir()
    soundfile.write(audio / "a.wav", noise(11.0, 16_000), 16_000)
    inventory(tmp_path, audio)
    settle(tmp_path, audio, first_seconds=first, tail=tail)
    run_both(tmp_path)
    rows = pq.read_table(tmp_path / "data/clips").to_pylist()
    assert [(row["start"], row["num_samples"]) for row in rows] == [(2.0 * at, 16_000 * n) for at, n in enumerate(lengths)]
    settle(tmp_path, audio, first_seconds=1.0, tail="drop")
    with pytest.raises(SystemExit, match="`first_seconds`"):
        run_both(tmp_path)


@pytest.mark.parametrize(
    ("factor", "spike", "reason"), [(32_768.0, 0.0, None), (1.0, 2e18, "nan"), (1.0, 1e25, "nan"), (1e19, 0, "nan")]
)
def test_float_samples_of_another_scale_are_brought_back_and_impossible_ones_named(tmp_path, factor, spike, reason):
    wave = noise(2.0, 16_000) * np.float32(factor)
    wave[1000] += np.float32(spike)
    soundfile.write(tmp_path / "a.wav", wave, 16_000, subtype="FLOAT")
    report, rows = resampled(tmp_path, len(wave))
    assert [row["reason"] for row in report.quarantine] == ([reason] if reason else [])
    for row in rows:
        stored = measure_clip(wave / np.abs(wave).max(), 16_000, RecordingMeter(16_000), 0.0)
        assert row["quality"]["peak"] == pytest.approx(np.abs(wave).max(), rel=1e-4)
        for name in ("level_db", "dc_offset", "silence_ratio", "bandwidth_hz"):
            assert row["quality"][name] == pytest.approx(stored[name], abs=0.02)


def test_clip_names_are_audiocaps_names_and_never_meet():
    starts = {"abcdefghijk_30": 30.0, "abcdefghijk_35": 35.0, "0123456789ab": 0.0}
    names = ClipNames()
    found = []
    for key in starts:
        wished = [
            {"clip_id": manifest.clip_name(manifest.naming_stem(key), starts[key] + start), "recording_id": key, "start": start}
            for start in (0.0, 5.0, 7.5)
        ]
        settled = names.settle(pa.Table.from_pylist(wished, manifest.SEGMENTS))
        assert settled.schema == manifest.SEGMENTS
        found += settled["clip_id"].to_pylist()
    assert names.renamed == 1
    videos = "abcdefghijk_30 abcdefghijk_35 abcdefghijk_37.5 abcdefghijk_35_0 abcdefghijk_40 abcdefghijk_42.5"
    assert found == f"{videos} 0123456789ab_0 0123456789ab_5 0123456789ab_7.5".split()


def test_doubts_about_a_recording_are_counted_and_named(tmp_path):
    audio = tmp_path / "audio"
    audio.mkdir()
    tone = ["-f", "lavfi", "-i", "sine=440:d=6:r=48000"]
    ffmpeg(*tone, "-af", "aselect='lt(t,2)+gte(t,4)'", audio / "gap.webm")
    ffmpeg(*tone, "-c:a", "libvorbis", tmp_path / "whole.ogg")
    data = (tmp_path / "whole.ogg").read_bytes()
    (audio / "open.ogg").write_bytes(data[: data.rindex(b"OggS")])
    ffmpeg(*tone, audio / "plain.flac")
    project = project_over(audio, tmp_path / "project", workers=1)
    run_both(project)
    metrics = json.loads((project / "data/metrics/segment.json").read_text())
    assert metrics["remarks"] == 2
    assert [remark.split()[:2] for remark in metrics["first_remarks"]] == [["gap.webm:", "the"], ["open.ogg:", "no"]]
    assert set(clips_of(project)) == {"gap.webm", "open.ogg", "plain.flac"}
