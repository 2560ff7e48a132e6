"""Kept sounds and votes: each with the checkpoint that made it, whatever is at its path since."""

import zipfile

import pytest

from soundmill import disk
from soundmill.errors import UserError
from soundmill.listening import answers
from soundmill.models.family import origin
from soundmill.play import making
from soundmill.play.checkpoints import Found


@pytest.fixture
def found(tmp_path):
    """Two checkpoints of the same weights."""
    for name in "ab":
        disk.write_json(tmp_path / name / "config.json", {"family": "rave"})
    return [Found(tmp_path / name, tmp_path) for name in "ab"]


def test_its_clips_are_those_of_its_family_wherever_it_lies(found, tmp_path):
    (tmp_path / "params.yaml").write_text("families: {rave: {clips: high_rate}}")
    assert found[0].tables.clips == tmp_path / "data/clips/high_rate"


def test_nobody_is_credited_for_a_sound_of_another_checkpoint(found, tmp_path):
    request, asked = tmp_path / making.KEPT / "x.json", making.Asked(checkpoint="a", digest=origin(tmp_path / "a")["checkpoint"])
    for digest, credits in ((asked.digest, "ATTRIBUTION a.csv"), ("0", "ATTRIBUTION MISSING.txt")):
        asked.but(digest=digest).write(request)
        request.with_suffix(".wav").touch()
        with zipfile.ZipFile(making.export(tmp_path, {"a": found[0]}, tmp_path)) as archive:
            assert [name for name in archive.namelist() if name.startswith("ATTR")] == [credits]
    with pytest.raises(UserError, match="is not the checkpoint that made"):
        making.keep(request.with_suffix(".wav"), found[0], tmp_path / "other")
    asked.but(number=2).write(request)
    for output, said in ((request.parent, "choose another"), (tmp_path, "set it to 0")):
        with pytest.raises(UserError, match=said):
            making.repeat(request, found[0], output)


def test_a_vote_that_could_not_be_stored_spoils_no_other(found, tmp_path, monkeypatch):
    def votes(*shown):
        path = making.vote(tmp_path, shown, {"quality": "first"})
        return len(answers.read(path, answers.read_key(path.with_name("key.json"))).given)

    assert votes(found[0], None) == 1
    with monkeypatch.context() as full, pytest.raises(ZeroDivisionError):
        full.setattr(disk, "write_text", lambda *_: 1 / 0)
        votes(None, found[0])
    assert votes(found[0], None) == 2
    assert votes(found[1], None) == 1  # another checkpoint, if of the same weights
