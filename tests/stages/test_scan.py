"""The inventory of an external corpus: what is recorded, quarantined and refused; a union from there to the catalog; captions from
tags inside files, of every container; the embedded corpus: the same bytes by any number of workers."""

import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from soundmill import attribution, hashing, manifest, stage, tracking
from soundmill.corpora import catalog, inventory, registry
from stages import corpus, scan
from tests.corpora.test_sound_tags import id3, info
from tests.corpora.tiny import cell, put, write, write_table
from tests.decoding.files import ffmpeg
from tests.prepared import PLAN
from tests.stages import handling
from tests.stages.handling import BOUNDS, CORPUS, NAMING, RATE, call, external, failure, json_rows, scanned, settle, table, tree


def test_scan_records_a_run_where_it_found_something_new(project, monkeypatch):
    begun = []
    monkeypatch.setattr(tracking.StageRun, "start", lambda run: begun.append(run))
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
    metrics = scanned()
    assert [metrics[key] for key in ("files", "recordings", "captions", "labels")] == [5, 2, 1, 1]
    assert metrics["ignored_kinds"] == {".md": 1, ".txt": 1}
    reasons = {"none.wav": "empty", "pipe.wav": "not a regular file", "gone.wav": "dangling link"}
    assert {row["path"]: row["reason"] for row in table("data/quarantine/scan.parquet")} == reasons
    assert [row["path"] for row in table("data/corpus/recordings.parquet")] == ["Dog/a.wav", r"\xff\x0a.ogg"]
    before = tree(project / "data" / "corpus")
    scanned()
    assert tree(project / "data" / "corpus") == before
    assert not (project / "x").exists()


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
        metrics = scanned()
        assert [row["caption"] for row in table("data/corpus/captions.parquet")] == (["root:x:0:0"] if follow else [])
        assert metrics["recordings"] == (2 if follow else 1)
        rejected = {row["path"] for row in table("data/quarantine/scan.parquet") if row["reason"] == "link_leaves_corpus"}
        assert rejected == (set() if follow else links)
        said = "followed" if follow else "not followed"
        assert f"2 links that lead out of the folder and are {said}" in str(metrics["remarks"])
    # What was said of links is not said of the same files without them.
    settle(project, corpus=external("sounds") | {"follow_links": True})
    scanned()
    for path in (project / "sounds" / name for name in links):
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    assert "links" not in str(scanned()["remarks"])


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (None, "corpus.path is not set"),
        ("nowhere", "nowhere: no such directory"),
        ("params.yaml", "params.yaml is a file, not a directory"),
        ("hollow", "no recording in"),
    ],
)
def test_scan_of_nothing_names_the_key_the_path_and_the_remedy(project, capsys, path, said):
    (project / "hollow").mkdir()
    settle(project, corpus=external(path))
    message = failure(capsys, scan, "--corpus", "data/corpus", section="corpus")
    assert said in message
    assert "the directory of" in message
    assert not (project / "data" / "corpus").exists()


def test_wrong_parameters_are_named(project, capsys):
    settle(project, corpus={**CORPUS, "recordings": 3, "sed": 1})
    message = failure(capsys, corpus, "--corpus", "data/corpus")
    assert "corpus.recordings" in message
    assert "did you mean 'seed'?" in message


def test_terms_are_in_the_table_and_decide_what_is_used(project):
    (project / "sounds").mkdir()
    for name in "abc":
        (project / "sounds" / f"{name}.wav").write_bytes(b"RIFF" + name.encode())
    listed = project / "sounds" / "licences.csv"
    listed.write_text("glob,licence,creator,source_url,ai_terms\na.wav,CC BY 4.0,Ann,https://a.org,allowed\nb.wav,CC0,,,refused\n")
    settle(project, corpus=external("sounds"))
    scanned()
    found = {row["path"]: tuple(row[name] for name in manifest.TERMS) for row in table("data/corpus/recordings.parquet")}
    assert found == {
        "a.wav": ("CC-BY-4.0", "Ann", "https://a.org", "allowed", "licences.csv:2"),
        "b.wav": ("CC0-1.0", None, None, "refused", "licences.csv:3"),
        "c.wav": (None,) * 5,
    }
    recordings = table("data/corpus/recordings.parquet")
    heard = {"clip_id": "x", "start": 0.0, "seconds": 1.0, "digest": "d"}
    clips = [{**heard, "recording_id": row["recording_id"], "source": row["path"]} for row in recordings]
    assert attribution.credits_of_clips(clips, Path("data/corpus/recordings.parquet"))[0] == attribution.Credit(
        "a.wav", "Ann", "CC-BY-4.0", "allowed", "https://a.org", 1, 1.0, 0, "clips"
    )
    listed.write_text(listed.read_text() + "c.wav,CC0,,,\n")  # a change of this file alone is noticed
    settle(project, corpus=external("sounds") | {"terms": handling.TERMS | {"allow": ["CC0-*"], "ai_refused": "quarantine"}})
    ports = ["--name", "scan", "--corpus", "data/corpus", "--refused", "data/refused.parquet"]
    for _ in range(2):  # the second links what the first kept
        assert call(scan, *ports, section="corpus")["refused"] == 2
        assert [row["path"] for row in table("data/refused.parquet")] == ["a.wav", "b.wav"]
    assert [row["path"] for row in table("data/corpus/recordings.parquet")] == ["a.wav", "b.wav", "c.wav"]
    assert {row["path"]: row["reason"] for row in table("data/quarantine/scan.parquet")} == {"a.wav": "terms", "b.wav": "terms"}


def test_a_union_from_scan_to_catalog(project):
    put(project / "esc", *(f"001 - Dog bark/{fold}-{fold}00-A.wav" for fold in (1, 2, 3)), seconds=2.0)
    write_table(project / "hf/data/train-00000-of-00001.parquet", [cell(0), cell(1)], rows_per_group=1, text=["A", "B"])
    write_table(project / "hf/data/test-00000-of-00001.parquet", [cell(2), None], text=["F", "nothing"])
    put(project / "caps", "r1nicOVtvkQ_30.wav", "aBcDeFgHiJk_0.wav", seconds=6.0)
    header = "audiocap_id,youtube_id,start_time,caption\n"
    write(project, "caps/train.csv", f"{header}1,r1nicOVtvkQ,30,A high tone\n9,gOnEcDeFgHi,0,Lost\n")
    write(project, "caps/test.csv", f"{header}2,aBcDeFgHiJk,0,A low tone\n")
    parts = {
        "esc": {"format": "auto", "path": "esc", "weight": 2.0},
        "hf": {"format": "auto", "path": str(project / "hf"), "weight": 0.5},
        "caps": {"format": "audiocaps", "path": "caps", "weight": 1.0},
    }
    corpus = {"format": "union", "path": None, "parts": parts, "embedded": [], "external": ["union"], "shards": 3, **BOUNDS}
    settle(project, corpus=corpus, clips={"default": PLAN | {"tail": "pad"}}, splits=handling.SPLITS, catalog=handling.CATALOG)

    metrics = scanned()
    assert {name: (about["format"], about["weight"], about["recordings"]) for name, about in metrics["parts"].items()} == {
        "caps": ("audiocaps", 1.0, 2),
        "esc": ("esc", 2.0, 3),
        "hf": ("audiofolder", 0.5, 3),
    }
    assert (metrics["recordings"], metrics["missing"]) == (8, 1)
    assert [row["path"] for row in table("data/quarantine/scan.parquet")] == ["hf/data/test-00000-of-00001.parquet#1"]

    handling.cut_clips()
    assert handling.call_splits()["splits_by"] == "given"
    handling.call_catalog()
    found = {
        row["source"]: (row["weight"], row["split"] == "test", row["labels"] + row["captions"])
        for row in table("data/catalog.parquet")
        if row["start"] == 0
    }
    dog = ["dog bark", "the sound of dog bark"]
    assert found == {
        "caps/aBcDeFgHiJk_0.wav": (1.0, True, ["A low tone"]),
        "caps/r1nicOVtvkQ_30.wav": (1.0, False, ["A high tone"]),
        "esc/001 - Dog bark/1-100-A.wav": (2.0, False, dog),
        "esc/001 - Dog bark/2-200-A.wav": (2.0, False, dog),
        "esc/001 - Dog bark/3-300-A.wav": (2.0, True, dog),
        "hf/data/test-00000-of-00001.parquet#0": (0.5, True, ["F"]),
        "hf/data/train-00000-of-00001.parquet#0": (0.5, False, ["A"]),
        "hf/data/train-00000-of-00001.parquet#1": (0.5, False, ["B"]),
    }
    assert not list(Path("data").rglob("embedded-*"))


@pytest.mark.slow
def test_the_embedded_corpus_is_the_same_bytes_with_one_worker_or_two(project):
    settle(project, 2, corpus=CORPUS)
    call(corpus, "--corpus", "data/corpus")
    of_two = tree(Path("data/corpus"))
    shutil.rmtree("data")
    settle(project, 1, corpus=CORPUS)
    metrics = call(corpus, "--corpus", "data/corpus", "--refused", "data/refused.parquet")
    assert metrics["recordings"] == 16
    assert metrics["labels"] == 12
    assert metrics["quarantined"] == metrics["collisions"] == 0
    assert metrics["captions"] == metrics["captions_with_audio"]
    first = tree(Path("data/corpus"))
    assert of_two == first
    assert {Path(name).suffix for name in first} == {".wav", ".flac", ".ogg", ".mp3", ".m4a", ".csv", ".parquet"}

    recordings, captions = table("data/corpus/recordings.parquet"), table("data/corpus/captions.parquet")
    for row in recordings:
        path = Path("data/corpus/audio") / os.fsdecode(row["raw_path"])
        assert hashing.file_digest(path) == row["digest"]
        assert path.stat().st_size == row["size"]
    terms = ("CC0-1.0", "Soundmill", None, "allowed", "synthesised")
    assert {tuple(row[name] for name in manifest.TERMS) for row in recordings} == {terms}
    assert table("data/refused.parquet") == []
    split_of = {row["recording_id"]: row["split"] for row in recordings}
    for split in ("valid", "test"):
        assert len({label for row in captions if split_of[row["recording_id"]] == split for label in row["labels"]}) == 12
    assert len({row["group"] for row in recordings}) == 15  # one video gave two recordings
    assert all(manifest.naming_stem(row["recording_id"]) == row["group"] for row in recordings)


TEMPLATES = ["{genre}: {title}, {description}", "{genre}: {title}", "{description}", "{title}"]
TAGS = {"title": "Doors", "genre": "Foley", "description": "A heavy door slams; wood"}
HTML, LONG = "<script>alert(1)</script>{0.__class__}", "x" * (1 << 20)
RAW = {
    "cp1252.wav": info(INAM="Tür".encode("cp1252"), ICMT=b"https://freesound.org/s/1/", ISBJ=b"Regen\0junk"),
    "html.wav": info(INAM=HTML.encode()),
    "huge.wav": info(INAM=LONG.encode(), ICMT=b"rain"),
    "controls.wav": info(ICMT=b"rain\r\n\x1b[31m on\xe2\x80\xae tin\x07"),
    "nothing.wav": info(INAM=b" ", IGNR=b"Other", ICMT=b"unknown"),
    "sox.wav": info(ICMT=b"Processed by SoX"),
    "second.wav": info(ISBJ=b"n/a", ICMT=b"hail"),
    "address.wav": info(INAM=b"https://a.org/1"),
}


def noise(path: Path, seed: int, raw: bytes = b"") -> Path:
    """Noise, with chunks after it."""
    path.parent.mkdir(exist_ok=True)
    soundfile.write(path, 0.1 * np.random.default_rng(seed).standard_normal(2 * RATE), RATE)
    data = path.read_bytes() + raw
    path.write_bytes(b"RIFF" + (len(data) - 8).to_bytes(4, "little") + data[8:])
    return path


def prepare(project: Path) -> dict:
    """The catalog of the recordings in `sounds`; returns the metrics."""
    sections = NAMING | {"catalog": NAMING["catalog"] | {"caption_templates": TEMPLATES}}
    sections |= {"clips": {"default": PLAN | {"tail": "keep"}}, "corpus": external("sounds")}
    settle(project, **sections)
    return scanned() | handling.from_corpus_to_names()


def tables_of(folder: Path, form: str = "folder") -> list[dict]:
    """The recordings, with what is written in their files."""
    files = inventory.list_files(folder)
    tables = registry.read(form, files, 1)
    tables.fill_file_tags(files)
    return tables.recordings


def captions() -> dict[str, list[str]]:
    return {row["source"]: row["captions"] for row in table("data/catalog.parquet")}


def test_tags_in_every_container_make_captions(project):
    for number, name in enumerate(("a.wav", "b.flac", "c.ogg", "d.opus", "e.mp3", "f.m4a", "g.aiff")):
        source = noise(project / f"plain{number}.wav", number)
        tags = [part for key, text in TAGS.items() for part in ("-metadata", f"{key.replace('description', 'comment')}={text}")]
        target = project / "sounds" / name
        target.parent.mkdir(exist_ok=True)
        more = ["-write_id3v2", "1"] if name.endswith("aiff") else []
        ffmpeg("-i", source, *tags, *more, target)
    metrics = prepare(project)
    expected = f"{TAGS['genre']}: {TAGS['title']}, {TAGS['description']}"
    assert captions() == {path.name: [expected] for path in (project / "sounds").iterdir()}
    assert metrics["captioned_by"] == {"file_tags": 7}
    assert [row["captions"] for split in manifest.SPLITS for row in json_rows(split)] == [expected] * 7


def test_hostile_tags_are_one_bounded_line_or_nothing_and_older_tables_have_none(project):
    for number, (name, raw) in enumerate(RAW.items()):
        noise(project / "sounds" / name, number, raw)
    metrics = prepare(project)
    assert captions() == {
        "cp1252.wav": ["Regen"],
        "html.wav": [HTML],
        "huge.wav": ["rain"],
        "controls.wav": ["rain [31m on tin"],
        "nothing.wav": [],
        "sox.wav": [],
        "second.wav": ["hail"],
        "address.wav": ["https://a.org/1"],
    }
    said = "1 titles, genres or descriptions in files have more than 4096 characters and are left out (first: huge.wav)"
    assert metrics["remarks"] == [said]
    rows = {row["path"]: row["file_tags"] for row in table("data/corpus/recordings.parquet")}
    assert rows["cp1252.wav"] == {"title": "Tür", "genre": None, "description": "Regen"}
    assert rows["nothing.wav"] is rows["sox.wav"] is None

    recordings = Path("data/corpus/recordings.parquet")
    older = pq.read_table(recordings).drop_columns(["file_tags"])
    recordings.unlink()
    pq.write_table(older, recordings)
    handling.call_rename()
    assert set(map(tuple, captions().values())) == {()}


def test_recordings_in_parquet_have_their_tags_too(tmp_path):
    noise(tmp_path / "x.wav", 0, info(INAM=b"Rain", IGNR=b"Ambience"))
    row = {"audio": {"bytes": (tmp_path / "x.wav").read_bytes(), "path": "x.wav"}, "label": "rain"}
    (tmp_path / "hub").mkdir()
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "hub/train.parquet")
    (row,) = tables_of(tmp_path / "hub", "audiofolder")
    assert row["file_tags"] == {"title": "Rain", "genre": "Ambience", "description": None}


def test_the_first_comment_that_describes_is_taken_and_genres_are_joined(tmp_path):
    comment = b"\0eng" + b"\0https://a.org/1"
    (tmp_path / "a.mp3").write_bytes(id3(COMM=comment, TIT2=b"\0Rain", TCON=b"\0(17)\0" + b"Rain music"))
    assert tables_of(tmp_path)[0]["file_tags"] == {"title": "Rain", "genre": "Rock, Rain music", "description": None}


def test_of_195_real_samples_three_are_described_by_their_comments(shared):
    facts = {row["path"]: catalog.facts_of(row, []) for row in tables_of(shared / "data/cc0_samples")}
    assert len(facts) == 195
    found = {path: of["description"] for path, of in facts.items() if "description" in of}
    assert found == {
        "perc_swash.flac": "Waving a bamboo staff",
        "perc_till.flac": "till - http://freesound.org/people/Zott820/sounds/209578/",
        "vinyl_rewind.flac": "Recorded on 21.06.2011 in Edison.",
    }
    assert not any({"title", "genre"} & of.keys() for of in facts.values())
