"""Captions from tags inside files, from `scan` to `rename`: every container, hostile tags, older tables, real recordings."""

import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from soundmill import manifest
from soundmill.corpora import catalog, inventory, registry
from soundmill.decoding.ffmpeg import ffmpeg_executable
from tests.corpora.test_sound_tags import id3, info
from tests.prepared import PLAN
from tests.stages.handling import NAMING, call_rename, external, from_corpus_to_names, json_rows, scanned, settle, table

RATE = 16_000
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


def write(path: Path, seed: int, raw: bytes = b"") -> Path:
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
    return scanned() | from_corpus_to_names()


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
        source = write(project / f"plain{number}.wav", number)
        tags = [part for key, text in TAGS.items() for part in ("-metadata", f"{key.replace('description', 'comment')}={text}")]
        target = project / "sounds" / name
        target.parent.mkdir(exist_ok=True)
        more = ["-write_id3v2", "1"] if name.endswith("aiff") else []
        command = [ffmpeg_executable(), "-nostdin", "-loglevel", "error", "-i", source, *tags, *more, target]
        subprocess.run(command, check=True, timeout=60)
    metrics = prepare(project)
    expected = f"{TAGS['genre']}: {TAGS['title']}, {TAGS['description']}"
    assert captions() == {path.name: [expected] for path in (project / "sounds").iterdir()}
    assert metrics["captioned_by"] == {"file_tags": 7}
    assert [row["captions"] for split in manifest.SPLITS for row in json_rows(split)] == [expected] * 7


def test_hostile_tags_are_one_bounded_line_or_nothing_and_older_tables_have_none(project):
    for number, (name, raw) in enumerate(RAW.items()):
        write(project / "sounds" / name, number, raw)
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
    call_rename()
    assert set(map(tuple, captions().values())) == {()}


def test_recordings_in_parquet_have_their_tags_too(tmp_path):
    write(tmp_path / "x.wav", 0, info(INAM=b"Rain", IGNR=b"Ambience"))
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


@pytest.mark.parametrize("name", manifest.FILE_TAGS)
def test_unknown_tags_are_no_fields(name):
    assert name not in catalog.facts_of({"path": "4.wav", "file_tags": None}, [])
    assert name not in catalog.facts_of({"path": "4.wav", "file_tags": dict.fromkeys(manifest.FILE_TAGS)}, [])
