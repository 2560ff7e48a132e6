"""Checkpoints of a running training: whole or not there, the last good one kept, no code run on load."""

import pickle
import random

import pytest
import torch

from soundmill.errors import UserError
from soundmill.training.loop import LAST, PREVIOUS, load, resume_point, save
from tests.lost_bits import lose_a_bit


def test_keeps_the_one_before(tmp_path):
    for step in (1, 2, 3):
        save({"step": step}, tmp_path / LAST)
    assert load(tmp_path / LAST)["step"] == 3
    assert load(tmp_path / PREVIOUS)["step"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [LAST, PREVIOUS]
    assert resume_point(tmp_path) == tmp_path / LAST


def test_no_lost_bit_is_trained_on(tmp_path, capsys):
    checkpoint = {"weights": torch.randn(3, 400), "step": 7, "names": ["a", "b"]}
    for _ in range(2):
        save(checkpoint, tmp_path / LAST)
    whole = (tmp_path / LAST).read_bytes()
    rng, passed_over = random.Random(5), 0
    for turn in range(300):
        lose_a_bit(tmp_path / LAST, rng.random() if turn % 2 else 1 - 0.2 * rng.random() ** 2)  # the last part is the index
        found = resume_point(tmp_path)
        damaged = found == tmp_path / PREVIOUS
        assert damaged == ("last.ckpt: damaged" in capsys.readouterr().out)
        passed_over += damaged
        read = load(found)  # a bit of what nobody reads, as the time of writing, may be another
        assert torch.equal(read.pop("weights"), checkpoint["weights"])
        assert read == {"step": 7, "names": ["a", "b"]}
        (tmp_path / LAST).write_bytes(whole)
    assert passed_over > 200


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_nothing_to_resume_from(tmp_path, capsys, content):
    assert resume_point(tmp_path) is None
    assert capsys.readouterr().out == ""
    (tmp_path / LAST).write_bytes(content)
    assert resume_point(tmp_path) is None
    assert "training starts from the beginning" in capsys.readouterr().out


def test_a_failed_write_leaves_the_good_one(tmp_path):
    save({"step": 1}, tmp_path / LAST)
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        save({"step": lambda: 2}, tmp_path / LAST)
    assert load(resume_point(tmp_path))["step"] == 1


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    def full(*_):
        raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed\nmore")

    save({"step": 1}, tmp_path / LAST)
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="free some space and run again"):
        save({"step": 2}, tmp_path / LAST)
    assert load(resume_point(tmp_path))["step"] == 1


class _Harmful:
    def __reduce__(self):
        return (print, ("ran code from a checkpoint",))


def test_loading_runs_no_code(tmp_path, capsys):
    torch.save({"weights": _Harmful()}, tmp_path / LAST)
    assert resume_point(tmp_path) is None
    with pytest.raises(pickle.UnpicklingError):
        load(tmp_path / LAST)
    assert "ran code" not in capsys.readouterr().out.replace(LAST, "")


def test_one_of_an_earlier_version_is_passed_over_and_named(tmp_path, capsys):
    save({"state_dict": {}, "optimizer_states": [], "global_step": 3}, tmp_path / LAST)
    assert resume_point(tmp_path) is None
    said = capsys.readouterr().out
    assert f"{LAST}: written by an earlier version of Soundmill, which alone can resume it" in said
    assert "training starts from the beginning" in said
