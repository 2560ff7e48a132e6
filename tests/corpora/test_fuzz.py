"""Manifests that somebody damaged: every adapter gives tables or says what is wrong; `make fuzz` looks for long."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soundmill import exports, manifest, shards
from soundmill.corpora import inventory, registry
from soundmill.errors import UserError
from tests.corpora.tiny import filled
from tests.prepared import RATE, prepare
from tests.stages.test_terms import TEXTS, TRUTH

MANIFESTS = (".csv", ".json", ".jsonl", ".gz", ".parquet", ".txt")
NASTY = (
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\x00",
    b"\r\n",
    b'"',
    b'"""',
    b",",
    b"\n",
    b"\x80\x81",
    b"../../../etc/passwd",
    b"/etc/passwd",
    b"NaN",
    b"1e999",
    b"-0",
    b"[" * 5000,
    b"{" * 200,
    b"null",
    b"9" * 5000,
    b"\xf0\x9f\x98\x80",
    b"\\ud800",
    b"PAR1",
)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> list[Path]:
    """A small corpus in every format."""
    top = tmp_path_factory.mktemp("corpora")
    tables = prepare(top / "prepared")
    for name in exports.FORMATS:
        exports.export(tables, name, top / name, RATE)
    return [top / name for name in sorted(exports.FORMATS)]


@st.composite
def damage(draw: st.DrawFn, data: bytes) -> bytes:
    """Some bytes replaced, cut out, doubled, or something nasty put among them."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        stop = min(len(data), start + draw(st.integers(0, 64)))
        piece = draw(st.one_of(st.sampled_from(NASTY), st.binary(max_size=16), st.just(data[start:stop] * 2)))
        data = data[:start] + piece + data[stop:]
    return data


@given(choice=st.data())
def test_a_damaged_manifest_gives_tables_or_a_message(corpora, choice):
    corpus = choice.draw(st.sampled_from(corpora), label="corpus")
    files = sorted(path for path in corpus.rglob("*") if path.suffix in MANIFESTS)
    if not files:  # sounds alone
        return
    victim = choice.draw(st.sampled_from(files), label="manifest")
    whole = victim.read_bytes()
    try:
        victim.write_bytes(choice.draw(damage(whole), label="content"))
        result = inventory.list_files(corpus)
        for format_of in (lambda _: "auto", registry.detect):
            try:
                tables = registry.read(format_of(result), result, 4)
            except UserError:
                continue
            for row in tables.recordings:
                assert (corpus / row["path"].partition("#")[0]).exists()
            ids = [row["recording_id"] for row in tables.recordings]
            assert len(set(ids)) == len(ids)
    finally:
        victim.write_bytes(whole)


@pytest.fixture(scope="module")
def licensed(tmp_path_factory) -> Path:
    """A corpus with terms in many places."""
    top = tmp_path_factory.mktemp("licensed")
    contents = {name: text if isinstance(text, bytes) else text.encode() for name, text in TEXTS.items()}
    for name, content in (contents | {path: b"RIFF" + path.encode() for path in TRUTH}).items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(content)
    return top


@given(choice=st.data())
def test_damaged_terms_give_a_table_or_a_message(licensed, choice):
    victim = licensed / choice.draw(st.sampled_from(sorted(TEXTS)), label="text")
    whole = victim.read_bytes()
    try:
        victim.write_bytes(choice.draw(damage(whole), label="content"))
        tables = filled(inventory.list_files(licensed))
        assert len(tables.recordings) == len(TRUTH)
        shards.write_rows(tables.recordings, licensed.parent / "rows.parquet", manifest.RECORDINGS)
    except UserError:
        assert victim.name == "licences.csv"
    finally:
        victim.write_bytes(whole)
