"""The list of what must not be used: read strictly, and obeyed by id and by digest."""

import pytest

from soundmill import ledger, params
from soundmill.corpora import forgotten
from soundmill.corpora.forgotten import Entry
from soundmill.corpora.inventory import AudioFile, Inventory
from soundmill.corpora.tables import CorpusTables
from soundmill.errors import UserError
from tests.flows.tiny import DOG as WHOLE
from tests.imports import ROOT

A, B = "a" * 32, "b" * 32
PART = WHOLE | {"recording_id": "cat", "digest": B, "start": 5.0, "end": 10.0}


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "forgotten.yaml"
    odd = PART | {"source": "ä: # 'x'\\x0a", "reason": "null", "clips": [{"clip_id": "0", "digest": A}]}
    entries = [Entry(**WHOLE), Entry(**odd)]
    ledger.write([entry.model_dump(mode="json") for entry in entries], path)
    assert list(forgotten.read(path).entries) == entries
    assert forgotten.read(None).entries == ()
    assert path.read_text().splitlines()[0] == (ROOT / "forgotten.yaml").read_text().splitlines()[0]
    assert forgotten.read(ROOT / "forgotten.yaml").entries == ()


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        (WHOLE | {"digest": "../../etc"}, "forgotten.0.digest"),
        (WHOLE | {"resaon": "x"}, "forgotten.0.resaon"),
        ({key: value for key, value in WHOLE.items() if key != "reason"}, "forgotten.0.reason"),
        (WHOLE | {"start": 1.0}, "forgotten.0"),
        (PART | {"end": 5.0}, "forgotten.0"),
        (PART | {"start": -1.0}, "forgotten.0.start"),
        (PART | {"end": float("inf")}, "forgotten.0.end"),
        (WHOLE | {"recording_id": 7}, "forgotten.0.recording_id"),
        (WHOLE | {"fingerprint": "!"}, "forgotten.0.fingerprint"),
        (WHOLE | {"fingerprint": "AAAA"}, "forgotten.0.fingerprint"),
        (WHOLE | {"clips": "a"}, "forgotten.0.clips"),
        (WHOLE | {"clips": [{"clip_id": "dog_0", "digest": "a"}]}, "forgotten.0.clips.0.digest"),
    ],
)
def test_a_mistake_names_its_key(tmp_path, entry, named):
    params.write_yaml({"forgotten": [entry]}, tmp_path / "forgotten.yaml")
    with pytest.raises(UserError, match=rf"forgotten\.yaml\.{named.replace('.', '[.]')}"):
        forgotten.read(tmp_path / "forgotten.yaml")


@pytest.mark.parametrize(
    "text", ["", "[]", "forgotten", "forgotten: {}", "forgotten: [1]", "{", "forgotten: []\nmore: 1", "[" * 5000, "\0"]
)
def test_what_is_no_list_or_lists_the_same_twice_is_refused(tmp_path, text):
    (tmp_path / "forgotten.yaml").write_text(text)
    with pytest.raises(UserError, match=r"forgotten\.yaml"):
        forgotten.read(tmp_path / "forgotten.yaml")
    params.write_yaml({"forgotten": [WHOLE, WHOLE]}, tmp_path / "forgotten.yaml")
    with pytest.raises(UserError, match="'dog' is listed twice"):
        forgotten.read(tmp_path / "forgotten.yaml")


def test_recordings_are_left_out_by_id_and_by_digest(tmp_path):
    left_out = forgotten.Forgotten((Entry(**WHOLE),))
    files = Inventory(tmp_path, [AudioFile(b"renamed.wav", 9, A), AudioFile(b"other.wav", 9, B)])
    left_out.leave_out_files(files)
    assert [file.path for file in files.audio] == ["other.wav"]
    assert files.rejected == [{"path": "renamed.wav", "reason": "forgotten", "detail": "asked for"}]

    tables = CorpusTables()
    for name, digest in (("dog", B), ("copy", A), ("bird", B)):
        tables.add_recording(AudioFile(f"{name}.ogg".encode(), 9, digest), 1, recording_id=name)
        tables.add_caption(name, f"a {name}", "captions.csv:1")
    tables.settle("test")
    left_out.leave_out_recordings(tables)
    assert [row["recording_id"] for row in tables.recordings] == ["bird"]
    assert [row["caption"] for row in tables.captions] == ["a bird"]
    assert [row["id"] for row in tables.matched] == ["bird"]
    assert {row["path"]: row["reason"] for row in tables.rejected} == {"dog.ogg": "forgotten", "copy.ogg": "forgotten"}


def test_stretches_hold_for_the_id_and_for_any_file_with_the_bytes():
    left_out = forgotten.Forgotten((Entry(**WHOLE), Entry(**PART)))
    rows = [{"recording_id": name, "digest": digest} for name, digest in (("cat", A), ("renamed", B), ("bird", "c" * 32))]
    stretches = left_out.stretches(rows)
    assert stretches == {"cat": [(5.0, 10.0, "asked for")], "renamed": [(5.0, 10.0, "asked for")]}
    cuts = {(0.0, 5.0): None, (4.0, 5.0005): None, (9.9, 14.9): "asked for", (6.0, 7.0): "asked for", (10.0, 15.0): None}
    assert {cut: forgotten.reason_of(*cut, stretches["cat"]) for cut in cuts} == cuts
