"""The comparison of protocols with other tools' own code: kadtk's, which is installed."""

import sys

import pytest

from bench import parity
from soundmill.metrics import scores


def run(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["bench.parity", *arguments])
    with pytest.raises(SystemExit) as stopped:
        parity.main()
    return stopped.value.code


def test_our_kad_is_kadtks(monkeypatch, capsys):
    assert run(monkeypatch, "kadtk") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "kadtk-1"
    assert len(lines) == 3
    assert all("KAD" in line for line in lines[1:])


def test_a_difference_is_told(monkeypatch, capsys):
    monkeypatch.setattr(scores, "KAD_SCALE", 101)
    assert run(monkeypatch, "kadtk") == 1
    assert capsys.readouterr().out.count("DIFFERENT") == 2


def test_a_tool_that_is_no_package_needs_a_checkout(monkeypatch, capsys):
    assert run(monkeypatch, "av-benchmark") == 2
    assert "give a checkout with --tool" in capsys.readouterr().err
