"""The embedded corpus and external ones as tables, and clips with their captions, splits and names, through the real stages."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from soundmill import manifest, params, shards, stage, tracking
from soundmill.corpora import copies
from stages import catalog, corpus, rename, resample, scan, segment, splits
from tests.lost_bits import lose_a_bit
from tests.prepared import PLAN, json_lines

CORPUS = {
    "format": "synthetic",
    "path": None,
    "embedded": ["synthetic"],
    "external": [],
    "shards": 3,
    "recordings": 16,
    "window_seconds": 5.0,
    "min_seconds": 1.0,
    "seed": 7,
}
SPLITS = {"valid_fraction": 0.1, "test_fraction": 0.1, "duplicates": "fail", "seed": 0}
NAMING = {
    "clips": {"default": PLAN},
    "splits": SPLITS,
    "catalog": {"caption_template": "the sound of {label}"},
    "rename": {"clips": "default", "dataset": "audiocaps", "location": "data/audiocaps/audio"},
}
RATE = 16_000


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """An empty project; what it runs writes below `data/` there."""
    monkeypatch.setenv("SOUNDMILL_TRACKING", "off")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settle(project: Path, workers: int = 1, **sections) -> None:
    params.write_yaml({"execution": {"workers": workers, "dask": None}, **sections}, project / "params.yaml")


def call(module, *argv: str, section: str | None = None) -> dict:
    """Run a stage in this process; returns its metrics."""
    name = module.__name__.rpartition(".")[2]
    kept = ["--metrics", f"data/metrics/{name}.json", "--quarantine", f"data/quarantine/{name}.parquet"]
    stage.main(module.run, section or name, [*argv, *kept])
    return json.loads(Path(f"data/metrics/{name}.json").read_text(encoding="utf-8"))


def failure(capsys, module, *argv: str, section: str | None = None) -> str:
    with pytest.raises(SystemExit) as end:
        call(module, *argv, section=section)
    assert isinstance(end.value.code, str)
    assert "Traceback" not in end.value.code + capsys.readouterr().err
    return end.value.code


def tree(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def table(path: str) -> list[dict]:
    return pq.read_table(path).to_pylist()


@pytest.fixture(scope="module")
def embedded(tmp_path_factory) -> Path:
    """A project with a small embedded corpus made by two workers."""
    project = tmp_path_factory.mktemp("embedded")
    settle(project, 2, corpus=CORPUS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOUNDMILL_TRACKING", "off")
        patch.chdir(project)
        call(corpus, "--corpus", "data/corpus")
    return project


@pytest.mark.slow
def test_the_embedded_corpus_is_the_same_bytes_with_one_worker_or_two(project, embedded):
    settle(project, 1, corpus=CORPUS)
    metrics = call(corpus, "--corpus", "data/corpus")
    assert metrics["recordings"] == 16
    assert metrics["labels"] == 12
    assert metrics["quarantined"] == metrics["collisions"] == 0
    assert metrics["captions"] == metrics["captions_with_audio"]
    first = tree(Path("data/corpus"))
    assert tree(embedded / "data" / "corpus") == first
    assert {Path(name).suffix for name in first} == {".wav", ".flac", ".ogg", ".mp3", ".m4a", ".csv", ".parquet"}

    recordings, captions = table("data/corpus/recordings.parquet"), table("data/corpus/captions.parquet")
    for row in recordings:
        path = Path("data/corpus/audio") / os.fsdecode(row["raw_path"])
        assert shards.file_digest(path) == row["digest"]
        assert path.stat().st_size == row["size"]
    split_of = {row["recording_id"]: row["split"] for row in recordings}
    for split in ("valid", "test"):
        assert len({label for row in captions if split_of[row["recording_id"]] == split for label in row["labels"]}) == 12
    assert len({row["group"] for row in recordings}) == 15  # one video gave two recordings
    assert all(manifest.naming_stem(row["recording_id"]) == row["group"] for row in recordings)


@pytest.mark.slow
def test_every_clip_of_the_embedded_corpus_has_its_own_caption(project, embedded):
    shutil.copytree(embedded / "data" / "corpus", project / "data" / "corpus")
    settle(project, 2, **NAMING)
    metrics = from_corpus_to_names()
    assert metrics["missing"] == metrics["orphans"] == 0
    assert metrics["captioned_by"] == {"window": metrics["clips"]}
    assert metrics["splits_by"] == "given"
    assert metrics["labels_absent_from_train"] == []
    captions = {
        (row["youtube_id"], float(row["start_time"])): row["caption"]
        for name in ("train", "val", "test")
        for row in rows_of_csv(f"data/corpus/{name}.csv")
    }
    told = {Path(row["location"]).stem: row["captions"] for split in manifest.SPLITS for row in json_rows(split)}
    assert told == {f"{video}_{start:g}": caption for (video, start), caption in captions.items()}


def rows_of_csv(path: str) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def json_rows(split: str) -> list[dict[str, str]]:
    return json_lines(Path(f"data/audiocaps/{split}.json"))


def from_corpus_to_names() -> dict:
    ports = ("--variant", "default", "--corpus", "data/corpus", "--segments", "data/segments.parquet")
    call(segment, "--name", "segment", *ports, section="clips")
    call(resample, "--name", "resample", *ports, "--clips", "data/clips", section="clips")
    return call_rename()


def verdicts(**rejected: str) -> None:
    """Write what `quality` would say of the clips below data/clips: clip id (its letters and digits) → the rule it breaks."""
    rows = []
    for path in shards.shard_paths(Path("data/clips")):
        for row in shards.read_rows(path, manifest.CLIPS, ["clip_id", "source", "start"]):
            rule = rejected.get("".join(filter(str.isalnum, row["clip_id"])))
            rows.append({**row, "quality": {"seconds": 5.0}, "rejected": rule})
    shards.write_rows(rows, Path("data/quality.parquet"), manifest.VERDICTS)


def call_splits(*pairs: dict) -> dict:
    if not Path("data/quality.parquet").exists():
        verdicts()
    shards.write_rows(pairs, Path("data/duplicates.parquet"), manifest.DUPLICATES)
    ports = ("--corpus", "data/corpus", "--clips", "data/clips", "--quality", "data/quality.parquet")
    return call(splits, *ports, "--duplicates", "data/duplicates.parquet", "--splits", "data/splits.parquet")


def call_rename(*pairs: dict) -> dict:
    """Splits by these pairs of duplicates, the catalog, and the named files; returns all their metrics."""
    metrics = call_splits(*pairs)
    ports = ("--corpus", "data/corpus", "--clips", "data/clips", "--quality", "data/quality.parquet")
    metrics |= call(catalog, *ports, "--splits", "data/splits.parquet", "--catalog", "data/catalog.parquet")
    named = call(rename, "--clips", "data/clips", "--catalog", "data/catalog.parquet", "--audiocaps", "data/audiocaps")
    return metrics | {key: value for key, value in named.items() if key != "clips"}


BOUNDS = {"follow_links": False, "max_seconds": 7200.0}


def external(path: str | None, name: str = "folder") -> dict:
    return {"format": name, "path": path, "parts": {}, "embedded": [], "external": [name], "shards": 4, **BOUNDS}


def test_scan_records_a_run_where_it_found_something_new(project, monkeypatch):
    begun = []
    monkeypatch.setattr(tracking.StageRun, "begin", lambda run: begun.append(run))
    (project / "sounds").mkdir()
    settle(project, corpus=external("sounds"))
    for name, count in (("a", 1), ("a", 1), ("b", 2)):
        (project / "sounds" / f"{name}.wav").write_bytes(b"RIFF")
        stage.main(scan.run, "corpus", ["--name", "scan", "--corpus", "data/corpus"], always_runs=True)
        assert len(table("data/corpus/recordings.parquet")) == len(begun) == count


def test_scan_counts_quarantines_and_repeats_itself(project):
    root = project / "my sounds; touch x"
    (root / "Dog").mkdir(parents=True)
    (root / "Dog" / "a.wav").write_bytes(b"RIFF")
    (root / "Dog" / "a.txt").write_text("a dog barks")
    (root / "README.md").write_text("about")
    (root / "none.wav").touch()
    os.mkfifo(root / "pipe.wav")
    (root / "gone.wav").symlink_to("nowhere")
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\n.ogg")).write_bytes(b"OggS")
    settle(project, corpus=external("my sounds; touch x"))
    metrics = call(scan, "--name", "scan", "--corpus", "data/corpus", section="corpus")
    assert metrics["files"] == 5
    assert metrics["recordings"] == 2
    assert metrics["ignored_kinds"] == {".md": 1, ".txt": 1}
    assert metrics["captions"] == metrics["labels"] == 1
    assert {row["path"]: row["reason"] for row in table("data/quarantine/scan.parquet")} == {
        "none.wav": "empty",
        "pipe.wav": "not a regular file",
        "gone.wav": "dangling link",
    }
    assert [row["path"] for row in table("data/corpus/recordings.parquet")] == ["Dog/a.wav", r"\xff\x0a.ogg"]
    before = tree(project / "data" / "corpus")
    call(scan, "--name", "scan", "--corpus", "data/corpus", section="corpus")
    assert tree(project / "data" / "corpus") == before
    assert not (project / "x").exists()


@pytest.mark.parametrize("name", ["recordings.parquet", "captions.parquet", "outcome.json"])
def test_scan_does_not_hand_on_tables_with_a_lost_bit(project, capsys, name):
    (project / "sounds").mkdir()
    (project / "sounds" / "a.wav").write_bytes(b"RIFF")
    settle(project, corpus=external("sounds"))
    metrics = call(scan, "--name", "scan", "--corpus", "data/corpus", section="corpus")
    before = tree(project / "data" / "corpus")
    (kept,) = (project / "data/.work/scan/kept").rglob(name)
    lose_a_bit(kept, 0.5)
    capsys.readouterr()
    assert call(scan, "--name", "scan", "--corpus", "data/corpus", section="corpus") == metrics
    assert tree(project / "data" / "corpus") == before
    assert f"1 damaged, so made anew ({name})" in capsys.readouterr().out
    call(scan, "--name", "scan", "--corpus", "data/corpus", section="corpus")
    assert "damaged" not in capsys.readouterr().out


def test_links_out_of_the_corpus_are_followed_where_the_parameters_say_so(project):
    (project / "sounds" / "rain").mkdir(parents=True)
    (project / "elsewhere").mkdir()
    (project / "elsewhere" / "passwd").write_text("root:x:0:0")
    for place in ("sounds/rain/r0.wav", "elsewhere/r1.wav"):
        (project / place).write_bytes(b"RIFF")
    (project / "sounds" / "rain" / "r0.txt").symlink_to(project / "elsewhere" / "passwd")
    (project / "sounds" / "rain" / "r1.wav").symlink_to(project / "elsewhere" / "r1.wav")
    links = {"rain/r0.txt", "rain/r1.wav"}
    for follow in (False, True, False):
        settle(project, corpus=external("sounds") | {"follow_links": follow})
        metrics = call(scan, "--name", "scan", "--corpus", "data/corpus", section="corpus")
        assert [row["caption"] for row in table("data/corpus/captions.parquet")] == (["root:x:0:0"] if follow else [])
        assert metrics["recordings"] == (2 if follow else 1)
        rejected = {row["path"] for row in table("data/quarantine/scan.parquet") if row["reason"] == "link_leaves_corpus"}
        assert rejected == (set() if follow else links)
        said = "followed" if follow else "not followed"
        assert [f"2 links that lead out of the folder and are {said}" in remark for remark in metrics["remarks"]] == [True]
    # What was said of links is not said of the same files without them.
    settle(project, corpus=external("sounds") | {"follow_links": True})
    call(scan, "--name", "scan", "--corpus", "data/corpus", section="corpus")
    for path in (project / "sounds" / name for name in links):
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    assert call(scan, "--name", "scan", "--corpus", "data/corpus", section="corpus")["remarks"] == []


def test_the_scan_refuses_by_its_header_what_is_longer_than_the_parameters_allow(project):
    (project / "sounds").mkdir()
    hour, size = project / "sounds" / "hour.wav", 3600 * 32_000
    soundfile.write(hour, np.zeros(16_000), 16_000, subtype="PCM_16")
    os.truncate(hour, 44 + size)  # sparse: it takes no room
    with hour.open("r+b") as file:
        file.seek(40)
        file.write(size.to_bytes(4, "little"))
    (project / "sounds" / "short.wav").write_bytes(b"RIFF")
    for seconds, rejected in ((600.0, [("hour.wav", "too long")]), (7200.0, [])):
        settle(project, corpus=external("sounds") | {"max_seconds": seconds})
        assert call(scan, "--name", "scan", "--corpus", "data/corpus", section="corpus")["recordings"] == 2 - len(rejected)
        assert [(row["path"], row["reason"]) for row in table("data/quarantine/scan.parquet")] == rejected


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (None, "corpus.path is not set"),
        ("nowhere", "nowhere: no such directory"),
        ("params.yaml", "params.yaml is a file, not a directory"),
        ("hollow", "corpus.path: no recording in"),
    ],
)
def test_scan_of_nothing_names_the_key_the_path_and_the_remedy(project, capsys, path, said):
    (project / "hollow").mkdir()
    settle(project, corpus=external(path))
    message = failure(capsys, scan, "--corpus", "data/corpus", section="corpus")
    assert said in message
    assert "set it to the directory" in message
    assert not (project / "data" / "corpus").exists()


def test_wrong_parameters_are_named(project, capsys):
    settle(project, corpus={**CORPUS, "recordings": 3, "sed": 1})
    message = failure(capsys, corpus, "--corpus", "data/corpus")
    assert "corpus.recordings" in message
    assert "did you mean 'seed'?" in message


def clip(clip_id: str, recording_id: str, start: float, seconds: float = 0.1) -> dict:
    wave = np.random.default_rng(len(clip_id)).integers(-32768, 32768, round(seconds * RATE)).astype(np.int16)
    data = io.BytesIO()
    soundfile.write(data, wave, RATE, format="FLAC", subtype="PCM_16")
    audio = {"bytes": data.getvalue(), "path": f"{clip_id}.flac"}
    return {
        "clip_id": clip_id,
        "audio": audio,
        "source": f"{recording_id}.wav",
        "start": start,
        "digest": "d",
        "recording_id": recording_id,
    }


@pytest.fixture
def small(project) -> Path:
    """Three AudioCaps recordings with four clips in two shards, before `rename`."""
    recordings = [
        {
            "recording_id": name,
            "path": f"{name}.wav",
            "raw_path": name.encode(),
            "shard": min(number, 1),
            "start_time": start,
            "labels": [],
            "split": split,
        }
        for number, (name, start, split) in enumerate(
            [("-aaaaaaaaaa", 30.0, "train"), ("bbbbbbbbbbb", 0.0, "test"), ("0123456789ab", 0.0, None)]
        )
    ]
    captions = [
        {"recording_id": "-aaaaaaaaaa", "start_time": 30.0, "caption": 'first "é"', "labels": ["dog"], "origin": "train.csv:2"},
        {"recording_id": "-aaaaaaaaaa", "start_time": 35.0, "caption": "second", "labels": ["rain"], "origin": "train.csv:3"},
        {"recording_id": "bbbbbbbbbbb", "start_time": 0.0, "caption": "one", "labels": [], "origin": "test.csv:2"},
        {"recording_id": "bbbbbbbbbbb", "start_time": 0.0, "caption": "other", "labels": [], "origin": "test.csv:3"},
        {"recording_id": "ccccccccccc_0", "start_time": 0.0, "caption": "lost", "labels": [], "origin": "test.csv:4"},
    ]
    clips = [
        [clip("-aaaaaaaaaa_30", "-aaaaaaaaaa", 0.0), clip("-aaaaaaaaaa_35", "-aaaaaaaaaa", 5.0)],
        [clip("bbbbbbbbbbb_0", "bbbbbbbbbbb", 0.0), clip("0123456789ab_0", "0123456789ab", 0.0)],
    ]
    shards.write_rows(recordings, project / "data/corpus/recordings.parquet", manifest.RECORDINGS)
    shards.write_rows(captions, project / "data/corpus/captions.parquet", manifest.CAPTIONS)
    for number, rows in enumerate(clips):
        shards.write_rows(rows, project / "data/clips" / shards.shard_name(number), manifest.CLIPS)
    settle(project, **NAMING)
    return project


def test_rename_writes_what_tango_reads(small):
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


def test_named_audio_has_the_clips_samples_bit_by_bit(small):
    call_rename()
    for number in (0, 1):
        for row in shards.read_rows(small / "data/clips" / shards.shard_name(number), manifest.CLIPS):
            wanted, _ = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="int16")
            path = small / "data/audiocaps/audio" / f"{row['clip_id']}.wav"
            found, rate = soundfile.read(path, dtype="int16")
            assert rate == RATE
            assert soundfile.info(path).subtype == "PCM_16"
            assert np.array_equal(found, wanted)


def test_rename_has_the_same_bytes_with_one_worker_or_two_and_after_a_kill(small):
    call_rename()
    first = tree(small / "data/audiocaps") | {"catalog": Path("data/catalog.parquet").read_bytes()}
    # What a killed worker leaves: half a folder that was not yet put in place.
    settle(small, 2, **NAMING)
    call_rename()
    assert tree(small / "data/audiocaps") | {"catalog": Path("data/catalog.parquet").read_bytes()} == first
    partial = small / "work" / "shard-00000.attempt-x"
    partial.mkdir(parents=True)
    (partial / "half.wav").write_bytes(b"RI")
    job = shards.Job("shard-00000", (small / "data/clips" / shards.shard_name(0), {"-aaaaaaaaaa_30", "-aaaaaaaaaa_35"}))
    shards.map_shards(rename.name_clips, [job], small / "work", workers=1)
    assert {path.name for path in (small / "work" / "shard-00000").iterdir()} == {"-aaaaaaaaaa_30.wav", "-aaaaaaaaaa_35.wav"}
    assert not partial.exists()


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


def test_rename_does_not_hand_on_a_named_wav_with_a_lost_bit(small, capsys):
    call_rename()
    first = tree(small / "data/audiocaps")
    lose_a_bit(small / "data/audiocaps/audio/bbbbbbbbbbb_0.wav", 0.5)  # one file with what is kept
    assert tree(small / "data/audiocaps") != first
    call_rename()
    assert tree(small / "data/audiocaps") == first
    assert "1 damaged, so made anew" in capsys.readouterr().out


def test_rejected_clips_are_left_out_everywhere_and_their_captions_are_not_missing(small):
    verdicts(aaaaaaaaaa30="clipping")
    metrics = call_rename()
    assert metrics["rejected"] == 1
    assert (metrics["matched"], metrics["missing"]) == (4, 1)
    assert metrics["clips"] == 3
    assert [row["clip_id"] for row in table("data/catalog.parquet")] == ["-aaaaaaaaaa_35", "bbbbbbbbbbb_0", "0123456789ab_0"]
    assert not (small / "data/audiocaps/audio/-aaaaaaaaaa_30.wav").exists()
    assert [row["captions"] for row in json_rows("train")] == ["second"]


def refusal(capsys, *pairs: dict) -> str:
    """What splits, catalog or rename says that ends badly."""
    with pytest.raises(SystemExit) as end:
        call_rename(*pairs)
    assert "Traceback" not in str(end.value.code) + capsys.readouterr().err
    return str(end.value.code)


def duplicate(a: str, b: str) -> dict:
    return {"a": min(a, b), "b": max(a, b), "score": 1.0, "kind": "sound"}


def test_duplicates_across_given_splits_fail_by_name_or_are_dropped_outside_test(small, capsys):
    pairs = [duplicate("-aaaaaaaaaa_35", "bbbbbbbbbbb_0"), duplicate("-aaaaaaaaaa_30", "-aaaaaaaaaa_35")]
    said = refusal(capsys, *pairs)
    assert "1 clips are the same sound or video as one in another of the corpus's own splits (given)" in said
    assert "-aaaaaaaaaa.wav (-aaaaaaaaaa_35, train) and bbbbbbbbbbb.wav (bbbbbbbbbbb_0, test)" in said
    assert "`splits.duplicates: drop`" in said
    settle(small, **NAMING | {"splits": SPLITS | {"duplicates": "drop"}})
    metrics = call_rename(*pairs)
    assert (metrics["duplicate_pairs"], metrics["duplicates_dropped"]) == (1, 1)
    assert [row["clip_id"] for row in table("data/catalog.parquet")] == ["-aaaaaaaaaa_30", "bbbbbbbbbbb_0", "0123456789ab_0"]
    assert not (small / "data/audiocaps/audio/-aaaaaaaaaa_35.wav").exists()
    (rejected,) = table("data/quarantine/splits.parquet")
    assert rejected["path"] == "-aaaaaaaaaa.wav"
    assert rejected["reason"] == "duplicate"
    assert "the same sound or video as bbbbbbbbbbb_0 (test)" in rejected["detail"]


def test_rejected_copies_join_what_they_are_copies_of(small):
    """Two sounds of which no pair was found, but of both with a clip that a rule refuses."""
    pairs = [duplicate("-aaaaaaaaaa_35", "0123456789ab_0"), duplicate("0123456789ab_0", "bbbbbbbbbbb_0")]
    verdicts(**{"0123456789ab0": "max_dc_offset"})
    settle(small, **NAMING | {"splits": SPLITS | {"duplicates": "drop"}})
    metrics = call_rename(*pairs)
    assert (metrics["duplicate_pairs"], metrics["duplicates_dropped"]) == (1, 1)
    assert [row["clip_id"] for row in table("data/catalog.parquet")] == ["-aaaaaaaaaa_30", "bbbbbbbbbbb_0"]


def test_rejected_copies_join_every_clip_of_a_recording(small):
    pairs = [duplicate(name, "0123456789ab_0") for name in ("-aaaaaaaaaa_30", "-aaaaaaaaaa_35", "bbbbbbbbbbb_0")]
    verdicts(**{"0123456789ab0": "max_dc_offset"})
    settle(small, **NAMING | {"splits": SPLITS | {"duplicates": "drop"}})
    assert call_rename(*pairs)["duplicates_dropped"] == 2
    assert [row["clip_id"] for row in table("data/catalog.parquet")] == ["bbbbbbbbbbb_0"]


def test_copies_that_hang_together_with_one_in_test_are_all_dropped():
    """Of forty copies of one sound not every two are a pair."""
    split = ["train"] * 4 + ["valid", "test", "train", "train"]
    assert copies.across_splits(split, [(0, 1), (1, 2), (2, 5), (3, 4), (6, 7)]) == {0: 5, 1: 5, 2: 5, 3: 4}


def test_a_video_in_two_given_splits_fails_by_name_or_is_dropped_outside_test(small, capsys):
    """Also where its windows do not meet, so that no pair of clips is found."""
    recordings = table("data/corpus/recordings.parquet")
    for row, name in zip(recordings, ("-aaaaaaaaaa_30", "-aaaaaaaaaa_90", "0123456789ab"), strict=True):
        row["recording_id"] = name
        row["group"] = None if name == "0123456789ab" else "-aaaaaaaaaa"
    shards.write_rows(recordings, small / "data/corpus/recordings.parquet", manifest.RECORDINGS)
    clips = [
        [clip("-aaaaaaaaaa_30", "-aaaaaaaaaa_30", 0.0), clip("-aaaaaaaaaa_35", "-aaaaaaaaaa_30", 5.0)],
        [clip("-aaaaaaaaaa_90", "-aaaaaaaaaa_90", 0.0), clip("0123456789ab_0", "0123456789ab", 0.0)],
    ]
    for number, rows in enumerate(clips):
        shards.write_rows(rows, small / "data/clips" / shards.shard_name(number), manifest.CLIPS)
    said = refusal(capsys)
    assert "2 clips are the same sound or video as one in another of the corpus's own splits" in said
    assert "(-aaaaaaaaaa_30, train)" in said
    assert "(-aaaaaaaaaa_90, test)" in said
    settle(small, **NAMING | {"splits": SPLITS | {"duplicates": "drop"}})
    assert call_rename()["duplicates_dropped"] == 2
    assert [row["clip_id"] for row in table("data/catalog.parquet")] == ["-aaaaaaaaaa_90", "0123456789ab_0"]
    # A copy of what has to go by its video goes too, and the clip that is named is one that stays.
    assert call_rename(duplicate("-aaaaaaaaaa_30", "0123456789ab_0"))["duplicates_dropped"] == 3
    assert all("as -aaaaaaaaaa_90 (test)" in row["detail"] for row in table("data/quarantine/splits.parquet"))


def test_rename_refuses_ids_that_come_twice_or_leave_the_directory(small, capsys):
    rows = [clip("bbbbbbbbbbb_0", "bbbbbbbbbbb", 0.0)] * 2
    shards.write_rows(rows, small / "data/clips" / shards.shard_name(1), manifest.CLIPS)
    assert "clip ids occur twice (first: bbbbbbbbbbb_0)" in refusal(capsys)
    shards.write_rows([], small / "data/clips" / shards.shard_name(0), manifest.CLIPS)
    shards.write_rows([], small / "data/clips" / shards.shard_name(1), manifest.CLIPS)
    assert "no clip at all" in refusal(capsys)
    with pytest.raises(Exception, match="cannot be a file name"):
        shards.write_rows([clip("../x", "bbbbbbbbbbb", 0.0)], small / "evil.parquet", manifest.CLIPS)
        rename.name_clips(small / "evil.parquet", {"../x"}, small / "out")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"catalog": {"caption_template": "a sound"}}, "must contain {label}"),
        ({"splits": SPLITS | {"valid_fraction": 0.6, "test_fraction": 0.5}}, "must be below 1"),
        ({"splits": SPLITS | {"valid_fraction": 1.5}}, "splits.valid_fraction"),
    ],
)
def test_parameters_of_splits_and_catalog(small, capsys, changes, said):
    settle(small, **NAMING | changes)
    assert said in refusal(capsys)


@pytest.mark.slow
def test_real_recordings_keep_their_folds_and_labels(project, shared):
    root = str(shared / "data" / "esc10")
    settle(project, 2, corpus=external(root, "esc"), **NAMING)
    assert call(scan, "--name", "scan", "--corpus", "data/corpus", section="corpus")["recordings"] == 240
    metrics = from_corpus_to_names()
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
