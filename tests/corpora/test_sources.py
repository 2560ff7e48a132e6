"""Recordings in files, in the cells of Parquet tables, and below the parts of a union: found, bounded, digested alike."""

import hashlib
import io
import os
import pickle
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from soundmill import hashing, params, shards
from soundmill.corpora import parquet_pages, sources
from soundmill.corpora.buckets import Bucket
from soundmill.corpora.sources import Sources
from soundmill.decoding import decode
from soundmill.decoding.decode import DecodeError
from soundmill.errors import UserError
from tests.corpora.tiny import AUDIO, cell, scan, sound, write_table


def embedded(path, name=b"t.parquet", digests=True):
    with sources.open_table(bytes(path)) as file:
        return list(sources.embedded_files(name, file, sources.digest_cells(file) if digests else None))


@pytest.fixture
def reads(monkeypatch) -> list[int]:
    """Row groups whose recordings were started to be read, in order."""
    started = []
    original = sources.read_cells

    def counted(file, group):
        started.append(group)
        return original(file, group)

    monkeypatch.setattr(sources, "read_cells", counted)
    return started


def content(corpus: Sources, raw_path: bytes, scratch) -> bytes:
    with corpus.open(raw_path, scratch) as path, open(path, "rb") as file:
        return file.read()


def test_cells_are_read_back_as_decodable_files_that_vanish(tmp_path):
    write_table(tmp_path / "t" / "a\nb.parquet", [cell(n) for n in range(10)])
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    result = pickle.loads(pickle.dumps(Sources({b"": bytes(tmp_path)})))
    for row in (0, 1, 7, 3, 9):
        raw_path = sources.embedded_path(b"t/a\nb.parquet", row)
        with result.open(raw_path, scratch) as path:
            assert os.path.dirname(path) == bytes(scratch)
            with open(path, "rb") as file:
                assert file.read() == sound(row)
            assert decode.probe(path, 10.0).num_frames == 2000
        assert sources.shown(raw_path) == rf"t/a\x0ab.parquet#{row}"
    assert not list(scratch.iterdir())


def test_consecutive_recordings_of_one_row_group_cost_one_read(tmp_path, reads):
    write_table(tmp_path / "t.parquet", [cell(n) for n in range(12)])
    result = Sources({b"": bytes(tmp_path)})
    paths = [sources.embedded_path(b"t.parquet", row) for row in range(12)]
    assert sorted(paths) == paths  # the order of bytes, in which stages go, is that of rows
    assert [content(result, path, tmp_path) for path in paths] == [sound(n) for n in range(12)]
    assert reads == [0, 1, 2]
    assert content(result, paths[10], tmp_path) == sound(10)  # backwards: read again, and right
    assert reads == [0, 1, 2, 2]


def test_the_members_of_a_row_group_share_a_shard(tmp_path):
    write_table(tmp_path / "t.parquet", [cell(n) for n in range(40)])
    shard_of = {}
    for file, _ in embedded(tmp_path / "t.parquet"):
        shard_of.setdefault(file.row_group, set()).add(shards.shard_of(file.shard_key, 64))
    assert [len(result) for result in shard_of.values()] == [1] * 10
    assert len(set.union(*shard_of.values())) > 5


def test_recordings_are_digested_like_files(tmp_path):
    write_table(tmp_path / "t.parquet", [cell(0), {"bytes": sound(1), "path": None}], text=["one", None], year=[1, 2])
    (first, values), (second, _) = embedded(tmp_path / "t.parquet", b"d/t.parquet")
    assert (first.size, first.digest) == (len(sound(0)), hashlib.sha256(sound(0)).hexdigest()[:32])
    assert (first.path, first.stem, first.folders) == ("d/t.parquet#0", "sound 0", [b"d"])
    assert second.name == b"t.parquet#1"
    assert values == {"text": "one", "year": 1}
    with Sources({b"": bytes(tmp_path)}).open(sources.embedded_path(b"t.parquet", 0), tmp_path) as path:
        assert hashing.file_digest(path) == first.digest


def test_cells_without_usable_bytes_are_named_and_the_others_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_BYTES", 5000)
    cells = [cell(0), None, {"bytes": None, "path": "x.wav"}, {"bytes": b"", "path": "e.wav"}, {"bytes": b"0" * 5001, "path": "h"}]
    write_table(tmp_path / "t.parquet", [*cells, cell(5)], rows_per_group=2)
    result = embedded(tmp_path / "t.parquet")
    assert [getattr(file, "reason", "") for file, _ in result] == ["", "empty", "empty", "empty", "too large", ""]
    assert result[2][1] == {"audio": "x.wav"}
    assert result[5][0].raw_path == sources.embedded_path(b"t.parquet", 5)
    for row, reason in ((2, "empty"), (4, "too large"), (6, "missing")):
        with pytest.raises(DecodeError) as error:
            content(Sources({b"": bytes(tmp_path)}), sources.embedded_path(b"t.parquet", row), tmp_path)
        assert error.value.reason == reason


def test_without_digests_no_cell_is_opened(tmp_path, reads):
    write_table(tmp_path / "t.parquet", [cell(n) for n in range(6)], text=list("abcdef"))
    result = embedded(tmp_path / "t.parquet", digests=False)
    assert [values["text"] for _, values in result] == list("abcdef")
    assert all(file.size > 0 and not file.digest for file, _ in result)
    assert not reads


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("text", "unreadable table"),
        ("truncated", "unreadable table"),
        ("zeroed", "unreadable table"),
        ("empty", "unreadable table"),
        ("fifo", "not a regular file"),
        ("gone", "missing"),
    ],
)
def test_a_table_that_cannot_be_read_says_so(tmp_path, damage, reason):
    path = tmp_path / "t.parquet"
    write_table(path, [cell(n) for n in range(8)], text=list("abcdefgh"))
    raw = path.read_bytes()
    path.unlink()
    if damage == "fifo":
        os.mkfifo(path)
    elif damage != "gone":
        zeroed = raw[:4] + bytes(400) + raw[404:]  # the first page and its header
        path.write_bytes({"text": b"not parquet at all", "truncated": raw[:-20], "zeroed": zeroed, "empty": b""}[damage])
    with pytest.raises(DecodeError) as error:
        content(Sources({b"": bytes(tmp_path)}), sources.embedded_path(b"t.parquet", 0), tmp_path)
    assert error.value.reason == reason
    assert "/" not in str(error.value)  # no paths of this machine in the quarantine


@pytest.mark.parametrize("column", ["audio.bytes", "text"])
def test_a_column_that_unpacks_to_far_more_than_it_is_is_not_opened(tmp_path, monkeypatch, column):
    monkeypatch.setattr(sources, "MAX_BYTES", 1 << 20)
    cells, texts, zeros = [cell(n) for n in range(8)], list("abcdefgh"), bytes(4 << 20)
    if column == "text":
        texts[5] = zeros.decode()
    else:
        cells[5] = {"bytes": zeros, "path": "b.wav"}
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"audio": pa.array(cells, AUDIO), "text": texts}), path, compression="zstd")
    assert path.stat().st_size < 200_000
    with pytest.raises(DecodeError, match=rf"{column} of row group 0 unpacks from \d+ to 4\d{{6}} bytes") as error:
        sources.open_table(bytes(path))
    assert error.value.reason == "too large"


def test_a_large_row_group_of_recordings_is_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_BYTES", 1 << 20)
    rng = np.random.default_rng(0)
    path = tmp_path / "t.parquet"
    write_table(path, [{"bytes": rng.bytes(1 << 19), "path": None} for _ in range(8)], rows_per_group=8)
    with sources.open_table(bytes(path)) as file:
        assert file.metadata.row_group(0).column(0).total_uncompressed_size > 4 << 20


def test_a_table_that_is_written_anew_is_read_anew(tmp_path):
    path, result = tmp_path / "t.parquet", Sources({b"": bytes(tmp_path)})
    raw_path = sources.embedded_path(b"t.parquet", 1)
    write_table(path, [cell(n) for n in range(3)])
    assert content(result, raw_path, tmp_path) == sound(1)
    path.unlink()
    write_table(path, [cell(n + 20) for n in range(3)])
    assert content(result, raw_path, tmp_path) == sound(21)


def test_the_column_is_found_by_its_type():
    assert sources.audio_column(pa.schema([("text", pa.string()), ("sound", AUDIO)])) == "sound"
    assert sources.audio_column(pa.schema([("noisy", AUDIO), ("audio", AUDIO)])) == "audio"
    large = pa.struct([("path", pa.string()), ("bytes", pa.large_binary())])
    assert sources.audio_column(pa.schema([("a", large)])) == "a"
    assert sources.audio_column(pa.schema([("audio", pa.string()), ("s", pa.struct([("bytes", pa.string())]))])) is None


def test_a_union_leads_below_its_parts(tmp_path):
    result = Sources({b"esc": b"/data/esc", b"hf": bytes(tmp_path)})
    assert result.locate(b"esc/001 - Dog/a.ogg") == (b"/data/esc/001 - Dog/a.ogg", None)
    write_table(tmp_path / "hf" / "t.parquet", [cell(0)])
    assert content(result, sources.embedded_path(b"hf/hf/t.parquet", 0), tmp_path) == sound(0)
    with pytest.raises(UserError, match=r"gone/a\.wav: corpus\.parts has no 'gone'"):
        result.locate(b"gone/a.wav")


def test_sources_of_a_project(tmp_path):
    root, home = tmp_path / "project", tmp_path / "home"
    corpus = root / "data" / "corpus"
    corpus.mkdir(parents=True)
    params.write_yaml({"corpus": {"format": "folder", "path": "../sounds"}}, root / "params.yaml")
    assert Sources.of(corpus, root, home).roots == {b"": bytes(tmp_path / "sounds")}
    params.write_yaml({"corpus": {"format": "union", "path": None, "parts": {"a": {"path": "x"}}}}, root / "params.yaml")
    assert Sources.of(corpus, root, home).roots == {b"a": bytes(home / "x")}
    params.write_yaml({"corpus": {"format": "folder", "path": None}}, root / "params.yaml")
    with pytest.raises(UserError, match=r"corpus\.path is not set"):
        Sources.of(corpus, root, home)
    (corpus / "audio").mkdir()
    assert Sources.of(corpus, root, home).roots == {b"": bytes(corpus / "audio")}


def test_a_damaged_row_group_costs_itself_alone(tmp_path):
    path = tmp_path / "t.parquet"
    write_table(path, [cell(n) for n in range(8)], text=list("abcdefgh"))
    with sources.open_table(bytes(path)) as file:
        about = file.metadata.row_group(0).column(0)
        assert about.path_in_schema == "audio.bytes"
        start = about.dictionary_page_offset or about.data_page_offset
    raw = path.read_bytes()
    path.write_bytes(raw[:start] + bytes(about.total_compressed_size) + raw[start + about.total_compressed_size :])
    result = embedded(path)
    assert [getattr(file, "reason", "") for file, _ in result] == ["unreadable table"] * 4 + [""] * 4
    assert [values["text"] for _, values in result] == list("abcdefgh")
    assert result[5][0].digest == hashlib.sha256(sound(5)).hexdigest()[:32]


def test_columns_named_to_mislead_do_not(tmp_path):
    path = tmp_path / "t.parquet"
    write_table(path, [cell(0), cell(1)], **{"audio.bytes": ["x", "y"], "audio.path": ["p", "q"], "text": ["a", "b"]})
    (first, values), _ = embedded(path)
    assert (first.digest, first.inner_path) == (hashlib.sha256(sound(0)).hexdigest()[:32], "sound 0.wav")
    assert values == {"text": "a"}
    twice = pa.table([pa.array([cell(0)], AUDIO), pa.array([cell(1)], AUDIO)], names=["audio", "audio"])
    pq.write_table(twice, path)
    with pytest.raises(DecodeError, match="two columns have the same name"):
        embedded(path)


def test_a_long_text_that_a_table_says_once_is_not_held_for_every_row(tmp_path, monkeypatch):
    path = tmp_path / "t.parquet"
    write_table(path, [cell(n) for n in range(40)], rows_per_group=40, text=["x" * (5 << 20)] * 40)
    assert path.stat().st_size < 1 << 20
    held = []
    monkeypatch.setattr(sources, "ROWS", 40)
    with sources.open_table(bytes(path)) as file:
        for _ in sources.read_rows(file, 0):
            held.append(pa.total_allocated_bytes())
    assert max(held) < 40 << 20  # all at once would be 200 MB


def patched(path, **footer: int) -> bytes:
    """The bytes of a table whose footer says this of its last column, in numbers of the same length."""
    data = bytearray(path.read_bytes())
    column = pq.ParquetFile(path).metadata.row_group(0).column(pq.ParquetFile(path).metadata.num_columns - 1)
    for name, value in footer.items():
        old, new = thrift(getattr(column, name)), thrift(value)
        at = data.rindex(old)
        data[at : at + len(old)] = bytes(byte | 128 for byte in new) + bytes([128] * (len(old) - len(new) - 1)) + b"\0"
        if len(new) == len(old):
            data[at : at + len(old)] = new
    return bytes(data)


def thrift(number: int) -> bytes:
    number, out = number * 2, bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


@pytest.mark.parametrize(
    ("header", "unpacked"),
    [
        (b"\x19" * 5000, None),  # lists within lists
        (b"\x19\xf7" + b"\xff" * 8 + b"\x7f", None),  # a list of more numbers than any file holds
        (b"\x18" + b"\xff" * 9 + b"\x01", None),  # a text of that length
        (b"\x25\x0e\x15\x00\x2c\x18\x01a\0\0", 7),  # a text where a count should be
        (b"\x25\x0e\x15\x00\x2c\x1c\0\0\0", 7),  # a struct there
        (b"\x25\x0e\x15\x00\xeb\x01\x85\x01k\x02\0", 7),  # a map, which no table has, but Arrow skips
    ],
)
def test_a_crafted_page_header_is_read_or_damaged(header, unpacked):
    about = SimpleNamespace(dictionary_page_offset=None, data_page_offset=4, total_compressed_size=len(header))
    file = io.BytesIO(b"PAR1" + header)
    if unpacked is None:
        with pytest.raises(ValueError, match="page"):
            parquet_pages.extent(file, about)
    else:
        assert parquet_pages.extent(file, about) == (0, unpacked, 0)


def repeated(text: str, times: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array([0] * times, pa.int32()), [text])


@pytest.mark.parametrize(
    ("column", "footer", "problem"),
    [
        ("path", {}, None),  # of each row its beginning is kept
        ("path", {"total_uncompressed_size": 70}, "its footer says 70"),
        ("labels", {}, "of text"),
        ("label", {}, "values"),
    ],
)
@pytest.mark.parametrize("where", ["a folder", "a bucket"])
def test_a_few_bytes_that_stand_for_more_than_memory_are_refused_unread(tmp_path, request, column, footer, problem, where):
    long = "x" * (5 << 20)
    table, rows = tmp_path / "a.parquet", 64
    columns = {
        "path": pa.array(["x"] * rows),
        "labels": pa.ListArray.from_arrays(pa.array([0] * rows + [100], pa.int32()), repeated(long, 100)),
        "label": pa.ListArray.from_arrays(pa.array([0] * rows + [5 << 20], pa.int32()), np.zeros(5 << 20, np.int64)),
    }
    paths = repeated(long, rows) if column == "path" else repeated("a.wav", rows)
    audio = pa.StructArray.from_arrays([pa.array([sound(1)] * rows), paths], ["bytes", "path"])
    written = {"audio": audio} if column == "path" else {"audio": audio, column: columns[column]}
    pq.write_table(pa.table(written), table, compression="zstd")
    table.write_bytes(patched(table, **footer))
    assert table.stat().st_size < 100_000
    root = tmp_path if where == "a folder" else Bucket(request.getfixturevalue("bucket").upload(tmp_path, f"bombs-{column}"))
    before = pa.total_allocated_bytes()
    try:
        said = str(scan(root).rejected)
    except UserError as error:
        said = str(error)
    assert "a.parquet" in said and problem in said if problem else said == "[]"
    del audio, paths, columns, written
    assert pa.total_allocated_bytes() <= before
